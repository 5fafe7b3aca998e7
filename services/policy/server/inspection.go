package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
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
	scope, err := s.scope(ctx, "list", req.GetNamespace())
	if err != nil {
		return nil, err
	}
	infos, conflicts := s.cfg.Model.Policies(), s.cfg.Model.Conflicts()
	if req.GetByEffectivePriority() {
		slices.SortStableFunc(infos, engine.ByEffectivePriority)
	}
	if req.GetStats() && !req.GetLocal() {
		s.learnTallies(ctx)
	}
	resp := &policyv1.ListPoliciesResponse{}
	for _, p := range infos {
		if ns := req.GetNamespace(); ns != "" && p.Wire.GetRef().GetNamespace() != ns || !scope.Sees(p.Ref.Namespace) {
			continue
		}
		span := s.span(p)
		summary := &policyv1.PolicySummary{
			Ref: p.Wire.Ref, Uid: p.Wire.Uid, Generation: p.Wire.Generation, Tier: p.Tier, Rank: p.Wire.Rank, Priority: p.Wire.Priority,
			IngressRules: uint32(p.Ingress), EgressRules: uint32(p.Egress), Endpoints: uint32(p.Endpoints), Staged: p.Wire.Staged,
			Nodes: uint32(len(span)), NodesRealized: s.realized(p, span), Warnings: p.Warnings,
			Conditions: []*policyv1.Condition{realizable(append(s.failures(p, span), p.Faults...))},
		}
		if list := conflicts[p.Ref]; len(list) > 0 {
			summary.Conditions = append(summary.Conditions, &policyv1.Condition{Type: "Conflicting", Status: true, Reason: "EqualPrecedence", Message: strings.Join(list, "; ")})
		}
		for _, id := range p.AppliedTo {
			summary.AppliedTo = append(summary.AppliedTo, hex.EncodeToString(id[:]))
		}
		if req.GetStats() {
			s.count(p, summary)
		}
		resp.Policies = append(resp.Policies, summary)
	}
	if r := s.barriers.replicas; r != nil && !req.GetLocal() {
		ask := &policyv1.ListPoliciesRequest{Namespace: req.GetNamespace(), Local: true}
		mergePolicies(resp.Policies, elsewhere(ctx, r, func(ctx context.Context, c policyv1.InspectionServiceClient, opts ...grpc.CallOption) (*policyv1.ListPoliciesResponse, error) {
			return c.ListPolicies(ctx, ask, opts...)
		}))
	}
	if !scope.All {
		redactPolicies(resp, infos)
	}
	return resp, nil
}

// The type of the condition that a policy is enforced as it is written, and the
// reason where nodes say that they do not.
const (
	typeRealizable = "Realizable"
	reasonRefused  = "RefusedByNode"
)

// realizable is the condition that a policy can be enforced as it is written.
// The reason is that of the first fault by which more gets through, if any.
func realizable(faults []engine.Fault) *policyv1.Condition {
	c := &policyv1.Condition{Type: typeRealizable, Status: len(faults) == 0}
	var messages []string
	for _, f := range faults {
		messages = append(messages, f.Message)
	}
	c.Message = strings.Join(messages, "; ")
	if i := slices.IndexFunc(faults, func(f engine.Fault) bool { return f.Widens }); len(faults) > 0 {
		c.Reason = faults[max(i, 0)].Reason
	}
	return c
}

// realized counts the nodes of a policy's span that have acknowledged the
// policy's present items, and enforce all of them.
func (s *Server) realized(p engine.PolicyInfo, span map[string]uint64) (nodes uint32) {
	for node, need := range span {
		se := s.sessions.find(node)
		if se == nil {
			continue
		}
		se.mu.Lock()
		failed := slices.ContainsFunc(p.Items, func(i engine.ItemPlace) bool { return se.failed[i] != "" })
		if se.stream != nil && !failed && se.acked >= need {
			nodes++
		}
		se.mu.Unlock()
	}
	return nodes
}

// span are the nodes of a policy's items, each with the revision as of which it
// holds all that reach it.
func (s *Server) span(p engine.PolicyInfo) map[string]uint64 {
	need := make(map[string]uint64)
	for _, item := range p.Items {
		revision := s.cfg.Store.ItemRevision(item.Scope, item.Key)
		for node, joined := range s.cfg.Store.Span(item.Scope) {
			need[node] = max(need[node], revision, joined)
		}
	}
	return need
}

// failures are what nodes say of a policy's items that they do not enforce.
func (s *Server) failures(p engine.PolicyInfo, span map[string]uint64) []engine.Fault {
	var out []engine.Fault
	for _, node := range slices.Sorted(maps.Keys(span)) {
		se := s.sessions.find(node)
		if se == nil {
			continue
		}
		se.mu.Lock()
		for _, item := range p.Items {
			if why := se.failed[item]; why != "" {
				out = append(out, engine.Fault{Reason: reasonRefused, Message: "node " + node + ": " + why, Widens: true})
				break // A node's first is enough, and counted below as a node.
			}
		}
		se.mu.Unlock()
	}
	if most := 4; len(out) > most {
		out = append(out[:most-1], engine.Fault{Reason: reasonRefused, Message: fmt.Sprintf("and %d nodes more", len(out)-most+1)})
	}
	return out
}

// ListGroups implements InspectionService.
func (s *Server) ListGroups(ctx context.Context, req *policyv1.ListGroupsRequest) (*policyv1.ListGroupsResponse, error) {
	scope, err := s.scope(ctx, "list", req.GetNamespace())
	if err != nil {
		return nil, err
	}
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
	if err := s.everything(ctx, "list"); err != nil {
		return nil, err
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
	scope, err := s.scope(ctx, "get", namedNamespaces(req)...)
	if err != nil {
		return nil, err
	}
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
