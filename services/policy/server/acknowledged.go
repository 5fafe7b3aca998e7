package server

import (
	"context"
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/storage"
)

// acknowledgements is what a replica remembers between two reports of what its
// nodes have acknowledged.
type acknowledgements struct {
	mu       sync.Mutex                // Guards what follows.
	contents map[policyID]contentSince // Of the policies there are.
	whole    map[string]acknowledgedAt // Nodes that lacked nothing, by name.
	apart    map[apartKey]time.Time    // Since when other replicas have read other content.
}

type contentSince struct {
	content string
	at      time.Time
}

// acknowledgedAt is for which revision of the store which revision was all.
type acknowledgedAt struct{ store, acked uint64 }

type apartKey struct {
	epoch string
	policyID
}

// policyID is what makes a policy of two replicas the same object.
type policyID struct {
	kind                 policyv1.PolicyKind
	namespace, name, uid string
}

func idOf(ref *policyv1.PolicyRef, uid string) policyID {
	return policyID{ref.GetKind(), ref.GetNamespace(), ref.GetName(), uid}
}

// reach says which policies hang on what of the store.
type reach struct {
	store    *storage.Store
	items    map[engine.ItemPlace]uint32
	policies map[storage.ScopeID][]uint32
	peers    map[storage.ScopeID][]uint32
	targets  map[storage.ScopeID][]uint32
	infos    []engine.PolicyInfo
}

func newReach(store *storage.Store, infos []engine.PolicyInfo) *reach {
	r := &reach{store: store, infos: infos, items: make(map[engine.ItemPlace]uint32, len(infos)),
		policies: make(map[storage.ScopeID][]uint32), peers: make(map[storage.ScopeID][]uint32), targets: make(map[storage.ScopeID][]uint32)}
	for i := range infos {
		p, n := &infos[i], uint32(i)
		for _, item := range p.Items {
			r.items[item] = n
			if of := r.policies[item.Scope]; len(of) == 0 || of[len(of)-1] != n {
				r.policies[item.Scope] = append(of, n)
			}
		}
		for _, id := range p.Peers {
			r.peers[id] = append(r.peers[id], n)
		}
		for _, id := range p.AppliedTo {
			r.targets[id] = append(r.targets[id], n)
		}
	}
	return r
}

// reaches says whether a node is in the span of a policy.
func (r *reach) reaches(policy uint32, node string) bool {
	return slices.ContainsFunc(r.infos[policy].Items, func(i engine.ItemPlace) bool { return r.store.InSpan(i.Scope, node) })
}

// lacking are the policies of a node that are concerned by what it has not
// acknowledged: their items, members of their groups, and the node's own Pods that
// they apply to. Ascending.
func (r *reach) lacking(node string, missing []storage.Missing) []uint32 {
	found := make(map[uint32]struct{})
	for i := range missing {
		switch m := &missing[i]; m.Kind {
		case storage.ScopePolicies:
			if m.Whole {
				for _, p := range r.policies[m.Scope] {
					found[p] = struct{}{}
				}
			}
			for _, key := range m.Keys {
				if p, is := r.items[engine.ItemPlace{Scope: m.Scope, Key: key}]; is {
					found[p] = struct{}{}
				}
			}
		case storage.ScopeAddressGroup:
			for _, p := range r.peers[m.Scope] {
				if _, already := found[p]; !already && r.reaches(p, node) {
					found[p] = struct{}{}
				}
			}
		case storage.ScopeNode:
			for _, body := range m.Bodies {
				for _, id := range targetsOf(body) {
					for _, p := range r.targets[id] {
						found[p] = struct{}{}
					}
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// targetsOf are the applied-to groups that an item of a node's own scope names.
func targetsOf(body string) (ids []storage.ScopeID) {
	item := &policyv1.Item{}
	if proto.Unmarshal([]byte(body), item) != nil {
		return nil
	}
	for _, raw := range append(item.GetEndpoint().GetGroups(), item.GetNode().GetGroups()...) {
		if id, ok := storage.ScopeIDFromBytes(raw); ok {
			ids = append(ids, id)
		}
	}
	return ids
}

// span is how many nodes a policy reaches, and who they are, where asked for.
func (r *reach) span(policy uint32) map[string]struct{} {
	nodes := make(map[string]struct{})
	for _, item := range r.infos[policy].Items {
		for name := range r.store.Span(item.Scope) {
			nodes[name] = struct{}{}
		}
	}
	return nodes
}

func (r *reach) spanSize(policy uint32) int {
	switch items := r.infos[policy].Items; len(items) {
	case 0:
		return 0
	case 1:
		return r.store.SpanSize(items[0].Scope)
	}
	return len(r.span(policy))
}

// content is the digest of what there is of a policy.
func (r *reach) content(policy uint32) []byte {
	p := &r.infos[policy]
	var d storage.Digest
	for _, item := range p.Items {
		d = d.Plus(r.store.Content(item.Scope, item.Key))
	}
	for _, id := range p.Peers {
		d = d.Plus(r.store.Content(id))
	}
	extent := make([]byte, 0, 16)
	extent = binary.BigEndian.AppendUint64(extent, uint64(p.Endpoints))
	extent = binary.BigEndian.AppendUint64(extent, uint64(r.spanSize(policy)))
	counted, _ := storage.DigestFromBytes(extent)
	return d.Plus(counted).Bytes()
}

// report is what this replica has read of policies, and what its nodes have
// acknowledged.
func (s *Server) report(r *reach, now time.Time) *policyv1.RealizationResponse {
	a := &s.acks
	a.mu.Lock()
	defer a.mu.Unlock()
	out := &policyv1.RealizationResponse{Epoch: s.cfg.Store.Epoch(), Policies: make([]*policyv1.PolicyContent, 0, len(r.infos))}
	contents := make(map[policyID]contentSince, len(r.infos))
	for i := range r.infos {
		wire := r.infos[i].Wire
		id, content := idOf(wire.GetRef(), wire.GetUid()), r.content(uint32(i))
		since := contentSince{string(content), now}
		if former, was := a.contents[id]; was && former.content == since.content {
			since = former
		}
		contents[id] = since
		out.Policies = append(out.Policies, &policyv1.PolicyContent{Ref: wire.GetRef(), Uid: wire.GetUid(), Generation: wire.GetGeneration(),
			Content: content, StillMs: milliseconds(since.at, now)})
	}
	a.contents = contents
	revision, _ := s.cfg.Store.Revision() // Before what is missing: what comes meanwhile is looked at again.
	whole := make(map[string]acknowledgedAt, len(a.whole))
	for _, se := range s.sessions.all() {
		se.mu.Lock()
		acked, failed := se.acked, se.failed
		n := &policyv1.NodeRealization{Name: se.node, Connected: se.stream != nil, SinceMs: milliseconds(se.began, now), BehindMs: milliseconds(se.lacksSince(), now), AckedMs: milliseconds(se.ackedAt, now)}
		if se.stream == nil {
			n.GoneMs = milliseconds(se.ended, now)
		}
		if se.lastErr != "" && acked < se.sent { // It refuses a cut as a whole: time brings nothing.
			n.BehindMs = max(n.BehindMs, uint64(latePatience.Milliseconds()))
		}
		se.mu.Unlock()
		if at := (acknowledgedAt{revision, acked}); acked == 0 || a.whole[se.node] != at {
			if missing := s.cfg.Store.Missing(se.node, acked); len(missing) > 0 {
				n.Lacking = r.lacking(se.node, missing)
			} else {
				whole[se.node] = at
			}
		} else {
			whole[se.node] = at
		}
		for place, why := range failed {
			if p, is := r.items[place]; is {
				n.Refused = append(n.Refused, &policyv1.Refusal{Policy: p, Error: why})
			}
		}
		slices.SortFunc(n.Refused, func(a, b *policyv1.Refusal) int { return int(a.GetPolicy()) - int(b.GetPolicy()) })
		out.Nodes = append(out.Nodes, n)
	}
	a.whole = whole
	slices.SortFunc(out.Nodes, func(a, b *policyv1.NodeRealization) int { return strings.Compare(a.GetName(), b.GetName()) })
	return out
}

func milliseconds(since, now time.Time) uint64 {
	if since.IsZero() || now.Before(since) {
		return 0
	}
	return uint64(now.Sub(since) / time.Millisecond)
}

// Realization implements ReplicaService.
func (s *Server) Realization(ctx context.Context, _ *policyv1.RealizationRequest) (*policyv1.RealizationResponse, error) {
	if err := s.cfg.MayReplicate(ctx); err != nil {
		return nil, status.Errorf(codes.PermissionDenied, "caller is no policy service: %v", err)
	}
	if !s.cfg.Synced() {
		return nil, status.Error(codes.Unavailable, "sources have not been read yet; try again shortly")
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs(EpochHeader, s.cfg.Store.Epoch())) // It fails for callers in this process, who have none.
	return s.report(newReach(s.cfg.Store, s.cfg.Model.Policies()), time.Now()), nil
}
