package server

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/services/policy/evaluate"
)

// Users judges callers who are no part of Weir; see identity.Users.
type Users interface {
	Review(context.Context, identity.Proof, identity.Right) (identity.User, identity.Scope, error)
}

// scope says what a caller sees of the Namespaces that it asks for; of all, where it
// names none.
func (s *Server) scope(ctx context.Context, verb string, namespaces ...string) (identity.Scope, error) {
	scope, err := s.review(ctx, identity.Right{Resource: identity.Inspections, Verb: verb,
		Namespaces: slices.DeleteFunc(namespaces, func(n string) bool { return n == "" })})
	if err != nil {
		return identity.Scope{}, err
	}
	return scope, s.ready(ctx)
}

// everything admits those who see all.
func (s *Server) everything(ctx context.Context, verb string) error {
	scope, err := s.scope(ctx, verb)
	if err == nil && !scope.All {
		err = status.Errorf(codes.PermissionDenied, "it takes %s %s", identity.Right{Resource: identity.Inspections, Verb: verb}, whereTo(""))
	}
	return err
}

// whereTo says where a right is needed.
func whereTo(namespace string) string {
	if namespace == "" {
		return "in all Namespaces, by a ClusterRoleBinding"
	}
	return "in Namespace " + namespace + ", by a RoleBinding there"
}

func (s *Server) review(ctx context.Context, want identity.Right) (identity.Scope, error) {
	refused := s.cfg.MayInspect(ctx)
	if refused == nil {
		return identity.Scope{All: true}, nil
	}
	if _, verified, err := identity.FromContext(ctx); s.cfg.Users == nil || verified || err == nil {
		return identity.Scope{}, status.Errorf(codes.PermissionDenied, "inspection: %v", refused)
	}
	proof, err := identity.ProofFromContext(ctx)
	if err != nil {
		return identity.Scope{}, status.Error(codes.Unauthenticated, err.Error())
	}
	_, scope, err := s.cfg.Users.Review(ctx, proof, want)
	if err != nil {
		return identity.Scope{}, identity.ReviewStatus(err)
	}
	return scope, nil
}

// redactPolicies takes out what nodes say of policies, which may be of anything that
// these hold. That of the policies themselves is in their own status too.
func redactPolicies(resp *policyv1.ListPoliciesResponse, infos []engine.PolicyInfo) {
	faults := make(map[policyID][]engine.Fault, len(infos))
	for _, p := range infos {
		faults[idOf(&policyv1.PolicySummary{Ref: p.Wire.GetRef(), Uid: p.Wire.GetUid(), Generation: p.Wire.GetGeneration()})] = p.Faults
	}
	for _, p := range resp.GetPolicies() {
		own := faults[idOf(p)]
		for i, c := range p.GetConditions() {
			if c.GetType() != typeRealizable {
				continue
			}
			if c.GetReason() == reasonRefused {
				own = append([]engine.Fault{{Reason: reasonRefused, Message: "some nodes do not enforce it", Widens: true}}, own...)
			}
			p.Conditions[i] = realizable(own)
		}
	}
}

// groupsOf lists, of Namespaces of which there is to be told, what their policies
// guard and which groups they define, without members that are not seen. Of what
// their policies have as peers nothing is told: others may have the same.
func (s *Server) groupsOf(resp *policyv1.ListGroupsResponse, of func(string) bool, scope identity.Scope, members bool) {
	guarded := make(map[string]bool)
	for _, p := range s.cfg.Model.Policies() {
		for _, id := range p.AppliedTo {
			guarded[string(id[:])] = guarded[string(id[:])] || of(p.Ref.Namespace)
		}
	}
	for _, g := range s.cfg.Model.Groups(true) {
		if !guarded[string(g.ID[:])] {
			continue
		}
		names := slices.DeleteFunc(g.Names, func(name string) bool {
			namespace, _, _ := strings.Cut(name, "/")
			return !scope.Sees(namespace)
		})
		summary := &policyv1.GroupSummary{Id: g.ID[:], Use: policyv1.GroupUse_GROUP_USE_APPLIED_TO, Selector: g.Selector, Members: uint32(len(names)), Nodes: uint32(g.Nodes)}
		if members {
			summary.MemberNames = names
		}
		resp.Groups = append(resp.Groups, summary)
	}
	for _, d := range s.cfg.Model.Definitions(scope.Sees) {
		if of(d.Object.Namespace) {
			resp.Definitions = append(resp.Definitions, definition(d))
		}
	}
}

// namedNamespaces are those of the ends that a request names; none where it gives
// addresses.
func namedNamespaces(req *policyv1.ExplainRequest) (names []string) {
	for _, text := range []string{req.GetFrom(), req.GetTo()} {
		if e, err := evaluate.ParseEndpoint(text); err == nil && e.Namespace != "" && !slices.Contains(names, e.Namespace) {
			names = append(names, e.Namespace)
		}
	}
	return names
}
