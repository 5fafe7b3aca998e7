package audit

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/identity"
)

// accessRule says which Namespaces' record a caller with a certificate may read.
// Certificates say it themselves (certified); what asks the cluster's own access
// reviews would be another one.
type accessRule interface {
	// Namespaces is either all of the record, or the named ones' part of it. An error
	// says what the caller lacks.
	Namespaces(ctx context.Context, id identity.Identity) (all bool, names []string, err error)
}

// certified goes by the certificate's role and Namespaces.
type certified struct{}

var errNotReader = errors.New("a certificate of an operator (weir://role/operator) or of a reader (weir://role/reader, with weir://namespace/NAME) is needed")

// Namespaces implements accessRule.
func (certified) Namespaces(_ context.Context, id identity.Identity) (bool, []string, error) {
	switch {
	case id.Has(identity.RoleOperator):
		return true, nil, nil
	case id.Has(identity.RoleReader):
		return false, id.Namespaces, nil
	default:
		return false, nil, errNotReader
	}
}

// view is what one caller sees of the record. It is immutable.
type view struct {
	holder     string // Who it is.
	all        bool   // An operator's; namespaces then say nothing.
	namespaces map[string]bool
}

// access says what a caller sees. Without TLS those who come over loopback, or
// whom the operator let in by --insecure, see all.
func (s *Service) access(ctx context.Context) (*view, error) {
	id, verified, err := identity.FromContext(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	v := &view{holder: id.String(), all: !verified}
	if v.all {
		return v, nil
	}
	all, names, err := s.rule.Namespaces(ctx, id)
	if err != nil {
		return nil, status.Errorf(codes.PermissionDenied, "%s may not read the record: %v", id, err)
	}
	v.all, v.namespaces = all, make(map[string]bool, len(names))
	for _, name := range names {
		v.namespaces[name] = true
	}
	return v, nil
}

// mayRead admits operators alone, to what is not of some Namespaces; and all
// where there is no TLS.
func (s *Service) mayRead(ctx context.Context) error {
	v, err := s.access(ctx)
	if err == nil && !v.all {
		err = status.Errorf(codes.PermissionDenied, "%s may not read this; an operator's certificate (weir://role/operator) is needed", v.holder)
	}
	return err
}

// sees says whether an event concerns the caller: a packet of which one Pod or
// Service that is named is of its Namespaces, a change of an object in them, and
// every loss, since nobody knows whose packets they were.
func (v *view) sees(e *record.Event) bool {
	if v.all {
		return true
	}
	switch e.Kind {
	case record.KindPacket:
		p, c := &e.Packet, e.Context
		return v.owns(p.AppliedTo) || v.owns(p.Peer) || c != nil && (v.namespaces[c.Source.Namespace] || v.namespaces[c.Destination.Namespace])
	case record.KindLoss:
		return true
	case record.KindChange:
		return v.namespaces[e.Change.Object.GetNamespace()]
	default:
		return false
	}
}

// owns reads "NAMESPACE/POD" and "service:NAMESPACE/NAME", as packets name them.
func (v *view) owns(name string) bool {
	namespace, _, ok := strings.Cut(strings.TrimPrefix(name, servicePrefix), "/")
	return ok && v.namespaces[namespace]
}

const servicePrefix = "service:"
