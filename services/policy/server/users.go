package server

import (
	"context"
	"slices"
	"strings"
	"time"

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

// maxUserCalls is how many calls of users are answered at a time: each reads what the
// writer of changes waits for.
const maxUserCalls = 4

// scope says what a caller sees of the Namespaces that it asks for; of all, where it
// names none. Leave ends the call.
func (s *Server) scope(ctx context.Context, verb string, namespaces ...string) (scope identity.Scope, leave func(), err error) {
	scope, user, err := s.review(ctx, identity.Right{Resource: identity.Inspections, Verb: verb,
		Namespaces: slices.DeleteFunc(namespaces, func(n string) bool { return n == "" })})
	if err == nil {
		err = s.ready(ctx)
	}
	if err != nil || !user {
		return scope, func() {}, err
	}
	select {
	case s.userCalls <- struct{}{}:
		return scope, func() { <-s.userCalls }, nil
	case <-ctx.Done():
		return identity.Scope{}, nil, status.FromContextError(ctx.Err()).Err()
	case <-time.After(userWait):
		return identity.Scope{}, nil, status.Errorf(codes.ResourceExhausted, "%d calls of users are being answered; try again", maxUserCalls)
	}
}

// userWait is how long a user's call waits for others to be answered.
const userWait = 5 * time.Second

// whereTo says where a right is needed.
func whereTo(namespace string) string {
	if namespace == "" {
		return "in all Namespaces, by a ClusterRoleBinding"
	}
	return "in Namespace " + namespace + ", by a RoleBinding there"
}

func (s *Server) review(ctx context.Context, want identity.Right) (scope identity.Scope, user bool, err error) {
	refused := s.cfg.MayInspect(ctx)
	if refused == nil {
		return identity.Scope{All: true}, false, nil
	}
	if _, verified, err := identity.FromContext(ctx); s.cfg.Users == nil || verified || err == nil {
		return identity.Scope{}, false, status.Errorf(codes.PermissionDenied, "inspection: %v", refused)
	}
	proof, err := identity.ProofFromContext(ctx)
	if err != nil {
		return identity.Scope{}, true, status.Error(codes.Unauthenticated, err.Error())
	}
	if _, scope, err = s.cfg.Users.Review(ctx, proof, want); err != nil {
		return identity.Scope{}, true, identity.ReviewStatus(err)
	}
	return scope, true, nil
}

// redactPolicies takes out what nodes say of policies, which may be of anything that
// these hold. That of the policies themselves is in their own status too.
func redactPolicies(resp *policyv1.ListPoliciesResponse, infos []engine.PolicyInfo) {
	faults := make(map[policyID][]engine.Fault, len(infos))
	for _, p := range infos {
		faults[idOf(p.Wire.GetRef(), p.Wire.GetUid())] = p.Faults
	}
	for _, p := range resp.GetPolicies() {
		p.Content = nil
		own := faults[idOf(p.GetRef(), p.GetUid())]
		for i, c := range p.GetConditions() {
			switch {
			case c.GetType() == TypeRealizable:
				if c.GetReason() == ReasonRefused {
					own = append([]engine.Fault{{Reason: ReasonRefused, Message: "some nodes do not enforce it", Widens: true}}, own...)
				}
				p.Conditions[i] = realizable(own)
			case c.GetType() == TypeRealized && (c.GetReason() == ReasonRefused || c.GetReason() == ReasonNotEnforced):
				c.Message = enforcedBy(int(p.GetNodesRealized()), int(p.GetNodes()))
			}
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
