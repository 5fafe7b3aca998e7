package audit

import (
	"context"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/identity"
)

// view is what one caller sees of the record. It is immutable.
type view struct {
	holder string // Who it is.
	identity.Scope
	// proof is what a user of the cluster showed, whose view is to be reviewed again for
	// as long as it is used. Nil: no user's.
	proof *identity.Proof
}

// access says what a caller sees who wants to do something with the record, of some
// Namespaces alone where it names any. Certificates of ours say it themselves: an
// operator's all, a reader's its Namespaces. Of users of the cluster the policy service
// says it. Without TLS those who come over loopback, or whom the operator let in by
// --insecure, see all.
func (s *Service) access(ctx context.Context, verb string, namespaces ...string) (*view, error) {
	id, verified, err := identity.FromContext(ctx)
	switch {
	case err != nil && s.reviewer != nil:
		return s.userView(ctx, verb, namespaces)
	case err != nil:
		return nil, status.Error(codes.Unauthenticated, err.Error())
	case !verified || id.Has(identity.RoleOperator):
		return &view{holder: id.String(), Scope: identity.Scope{All: true}}, nil
	case id.Has(identity.RoleReader):
		return &view{holder: id.String(), Scope: identity.ScopeOf(id.Namespaces...)}, nil
	}
	return nil, status.Errorf(codes.PermissionDenied,
		"%s may not read the record: a certificate of an operator (weir://role/operator) or of a reader (weir://role/reader, with weir://namespace/NAME) is needed", id)
}

func (s *Service) userView(ctx context.Context, verb string, namespaces []string) (*view, error) {
	proof, err := identity.ProofFromContext(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return s.reviewer.review(ctx, &proof, verb, namespaces)
}

// mayRead admits those who see all, to what is not of some Namespaces.
func (s *Service) mayRead(ctx context.Context) error {
	v, err := s.access(ctx, "get")
	switch {
	case err != nil || v.All:
		return err
	case v.proof != nil:
		return status.Errorf(codes.PermissionDenied, "%s may not read this; it takes %s in all Namespaces, by a ClusterRoleBinding", v.holder, identity.Right{Resource: identity.Records, Verb: "get"})
	}
	return status.Errorf(codes.PermissionDenied, "%s may not read this; an operator's certificate (weir://role/operator) is needed", v.holder)
}

// mayOperate admits operators, to what leaves traces.
func (s *Service) mayOperate(ctx context.Context) error {
	if _, _, err := identity.FromContext(ctx); err != nil {
		return status.Errorf(codes.PermissionDenied, "an operator's certificate (weir://role/operator) is needed: %v", err)
	}
	return s.mayRead(ctx)
}

// sees says whether an event concerns the caller: a packet of which one Pod or
// Service that is named is of its Namespaces, a change of an object in them, and
// every loss, since nobody knows whose packets they were.
func (v *view) sees(e *record.Event) bool {
	if v.All {
		return true
	}
	switch e.Kind {
	case record.KindPacket:
		p, c := &e.Packet, e.Context
		return v.owns(p.AppliedTo) || v.owns(p.Peer) || c != nil && (v.Sees(c.Source.Namespace) || v.Sees(c.Destination.Namespace))
	case record.KindLoss:
		return true
	case record.KindChange:
		return v.Sees(e.Change.Object.GetNamespace())
	default:
		return false
	}
}

// owns reads "NAMESPACE/POD" and "service:NAMESPACE/NAME", as packets name them.
func (v *view) owns(name string) bool {
	namespace, _, ok := strings.Cut(strings.TrimPrefix(name, servicePrefix), "/")
	return ok && v.Sees(namespace)
}

const servicePrefix = "service:"
