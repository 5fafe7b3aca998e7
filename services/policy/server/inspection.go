package server

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/storage"
)

// admit admits parts of Weir and operators, who see all.
func (s *Server) admit(ctx context.Context) error {
	if err := s.cfg.MayInspect(ctx); err != nil {
		return status.Errorf(codes.PermissionDenied, "inspection: %v", err)
	}
	return s.ready(ctx)
}

func (s *Server) ready(ctx context.Context) error {
	if !s.cfg.Synced() {
		return status.Error(codes.Unavailable, "sources have not been read yet; try again shortly")
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs(EpochHeader, s.cfg.Store.Epoch())) // It fails for callers in this process, who have none.
	return nil
}

// ListPolicies implements InspectionService.
func (s *Server) ListPolicies(ctx context.Context, req *policyv1.ListPoliciesRequest) (*policyv1.ListPoliciesResponse, error) {
	scope, leave, err := s.scope(ctx, "list", req.GetNamespace())
	if err != nil {
		return nil, err
	}
	defer leave()
	infos, conflicts := s.cfg.Model.Policies(), s.cfg.Model.Conflicts()
	if req.GetByEffectivePriority() {
		slices.SortStableFunc(infos, engine.ByEffectivePriority)
	}
	if req.GetStats() && !req.GetLocal() {
		s.learnTallies(ctx)
	}
	resp := &policyv1.ListPoliciesResponse{}
	for _, r := range s.gather(ctx, newReach(s.cfg.Store, infos), !req.GetLocal()) {
		p := r.Info
		if ns := req.GetNamespace(); ns != "" && p.Wire.GetRef().GetNamespace() != ns || !scope.Sees(p.Ref.Namespace) {
			continue
		}
		summary := &policyv1.PolicySummary{
			Ref: p.Wire.Ref, Uid: p.Wire.Uid, Generation: p.Wire.Generation, Tier: p.Tier, Rank: p.Wire.Rank, Priority: p.Wire.Priority,
			IngressRules: uint32(p.Ingress), EgressRules: uint32(p.Egress), Endpoints: uint32(p.Endpoints), Staged: p.Wire.Staged,
			Nodes: uint32(r.Nodes), NodesRealized: uint32(r.Realized()), Warnings: p.Warnings, Content: r.Content,
			Conditions: r.Conditions(conflicts[p.Ref]),
		}
		for _, id := range p.AppliedTo {
			summary.AppliedTo = append(summary.AppliedTo, hex.EncodeToString(id[:]))
		}
		if req.GetStats() {
			s.count(p, summary)
		}
		resp.Policies = append(resp.Policies, summary)
	}
	if !scope.All {
		redactPolicies(resp, infos)
	}
	return resp, nil
}

// ListGroups implements InspectionService.
func (s *Server) ListGroups(ctx context.Context, req *policyv1.ListGroupsRequest) (*policyv1.ListGroupsResponse, error) {
	scope, leave, err := s.scope(ctx, "list", req.GetNamespace())
	if err != nil {
		return nil, err
	}
	defer leave()
	resp := &policyv1.ListGroupsResponse{}
	if ns := req.GetNamespace(); ns != "" || !scope.All {
		s.groupsOf(resp, func(namespace string) bool { return scope.Sees(namespace) && (ns == "" || namespace == ns) }, scope, req.GetMembers())
		return resp, nil
	}
	for _, g := range s.cfg.Model.Groups(req.GetMembers()) {
		uses := map[policyv1.GroupUse]bool{policyv1.GroupUse_GROUP_USE_ADDRESS: g.Address, policyv1.GroupUse_GROUP_USE_APPLIED_TO: g.AppliedTo}
		for _, use := range []policyv1.GroupUse{policyv1.GroupUse_GROUP_USE_ADDRESS, policyv1.GroupUse_GROUP_USE_APPLIED_TO} {
			if !uses[use] {
				continue
			}
			resp.Groups = append(resp.Groups, &policyv1.GroupSummary{
				Id: g.ID[:], Use: use, Selector: g.Selector, Members: uint32(g.Members), Nodes: uint32(g.Nodes), MemberNames: g.Names})
		}
	}
	for _, d := range s.cfg.Model.Definitions(nil) {
		resp.Definitions = append(resp.Definitions, definition(d))
	}
	return resp, nil
}

func definition(d engine.GroupDefinition) *policyv1.GroupDefinition {
	return &policyv1.GroupDefinition{
		Namespace: d.Object.Namespace, Name: d.Object.Name, Uid: d.Object.UID, Generation: d.Object.Generation,
		Members: uint32(d.Members), Blocks: uint32(d.Blocks), Policies: uint32(d.Policies),
		Conditions: []*policyv1.Condition{{Type: "GroupMembersComputed", Status: true, Message: strings.Join(d.Warnings, "; ")}},
	}
}

// ListNodes implements InspectionService.
func (s *Server) ListNodes(ctx context.Context, req *policyv1.ListNodesRequest) (*policyv1.ListNodesResponse, error) {
	scope, leave, err := s.scope(ctx, "list")
	if err != nil {
		return nil, err
	}
	defer leave()
	if !scope.All {
		return nil, status.Errorf(codes.PermissionDenied, "it takes %s %s", identity.Right{Resource: identity.Inspections, Verb: "list"}, whereTo(""))
	}
	revision, position := s.cfg.Store.Revision()
	resp := &policyv1.ListNodesResponse{Epoch: s.cfg.Store.Epoch(), Revision: revision, Position: &policyv1.Position{Sources: position}}
	now := time.Now()
	for _, name := range s.known() {
		n := s.nodeSummary(name, now)
		if !req.GetNamed() {
			n.Named = nil
		}
		resp.Nodes = append(resp.Nodes, n)
	}
	if r := s.barriers.replicas; r != nil && !req.GetLocal() {
		resp.Nodes = mergeNodes(resp.Nodes, elsewhere(ctx, r, nodesOf(req.GetNamed())))
	}
	return resp, nil
}

// known are the nodes that ought to hold something, or are connected, by name.
func (s *Server) known() []string {
	names := s.cfg.Store.Nodes()
	for _, se := range s.sessions.all() {
		se.mu.Lock()
		if se.stream != nil {
			names = append(names, se.node)
		}
		se.mu.Unlock()
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (s *Server) nodeSummary(name string, now time.Time) *policyv1.NodeSummary {
	want := s.cfg.Store.Node(name)
	out := &policyv1.NodeSummary{
		Name:      name,
		Digest:    want.Digest.Bytes(),
		Policies:  uint32(want.Items[storage.ScopePolicies]),
		Endpoints: uint32(want.Endpoints),
	}
	se := s.sessions.find(name)
	if se == nil {
		out.Lag, out.BehindSeconds = want.Revision, seconds(s.absences.of(name), now)
		return out
	}
	se.mu.Lock()
	defer se.mu.Unlock()
	out.Connected = se.stream != nil
	out.AckedRevision, out.SentRevision = se.acked, se.sent
	out.InSync = out.Connected && se.acked > 0 && se.digest == want.Digest && se.lastErr == ""
	out.LastError, out.ApplyMicros = se.lastErr, se.apply
	if out.Connected {
		out.Version, out.Replica = se.version, s.cfg.Store.Epoch()
	}
	for _, p := range se.ports {
		out.SpoofedPackets += p.GetSpoofed()
	}
	out.Named, out.NamedTotal = se.named.GetNamed(), se.named.GetNamedTotal()
	if !out.InSync {
		out.BehindSeconds = seconds(se.behind, now)
	}
	if !out.InSync && want.Revision > se.acked {
		out.Lag = want.Revision - se.acked
	}
	return out
}

// Explain implements InspectionService.
func (s *Server) Explain(ctx context.Context, req *policyv1.ExplainRequest) (*policyv1.ExplainResponse, error) {
	scope, leave, err := s.scope(ctx, "get", namedNamespaces(req)...)
	if err != nil {
		return nil, err
	}
	defer leave()
	var sees func(string) bool
	if !scope.All {
		sees = scope.Sees
	}
	resp, err := s.cfg.Model.Explain(req, sees)
	var hidden *evaluate.Hidden
	switch {
	case errors.As(err, &hidden):
		return nil, status.Errorf(codes.PermissionDenied, "%v: it takes %s %s", err, identity.Right{Resource: identity.Inspections, Verb: "get"}, whereTo(hidden.Namespace))
	case err != nil:
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return resp, nil
}
