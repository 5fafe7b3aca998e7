package engine

import (
	"cmp"
	"slices"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// draft is a policy object, compiled but for its groups. What is the same for
// all kinds of policies begins here; compileNetworkPolicy and its like end here.
type draft struct {
	wire  *policyv1.Policy // Without applied_to and rules.
	rules []draftRule

	// appliedTo is empty where each rule has its own.
	appliedTo []podSelector

	// Where loggedBy is not empty, the annotation of that Namespace decides
	// whether rules and isolation are recorded.
	loggedBy string
}

type draftRule struct {
	wire      *policyv1.Rule // Without applied_to and peers.groups.
	peers     []podSelector  // Added to wire.Peers, which is nil where any peer matches.
	appliedTo []podSelector
	named     []podSelector // Where port names are resolved beside peers.
}

type policy struct {
	ref   api.Ref
	draft *draft
	set   *targetSet
	peers []*group // One for each use.
}

func compareRefs(a, b api.Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// applyPolicy puts a draft in the place of the policy's former one; nil ends
// the policy. The new is in before the old goes, so that groups and scopes that
// both use stay.
func (e *Engine) applyPolicy(ref api.Ref, d *draft) {
	old := e.policies[ref]
	if d == nil {
		if old != nil {
			delete(e.policies, ref)
			e.dirtyPolicies.remove(old)
			e.detach(old, nil)
		}
		return
	}
	p := &policy{ref: ref, draft: d}
	e.attach(p)
	e.policies[ref] = p
	e.dirtyPolicies.add(p)
	if old != nil {
		e.dirtyPolicies.remove(old)
		e.detach(old, p.set)
	}
}

func (e *Engine) attach(p *policy) {
	var targets []podSelector
	targets = append(targets, p.draft.appliedTo...)
	for _, r := range p.draft.rules {
		targets = append(targets, r.appliedTo...)
	}
	p.set = e.targetSet(targets)
	p.set.policies.add(p)
	for _, r := range p.draft.rules {
		for _, s := range slices.Concat(r.peers, r.named) {
			g := e.group(s)
			p.peers = append(p.peers, g)
			e.usePeer(p.set, g)
		}
	}
}

// detach undoes attach. The item is removed unless it stays in the same scope,
// where that of the policy's successor replaces it.
func (e *Engine) detach(p *policy, successor *targetSet) {
	t := p.set
	if t != successor {
		e.emit(storage.Change{Op: storage.OpRemove, Scope: t.id, Kind: storage.ScopePolicies, Item: storage.Encoded{Key: storage.PolicyKey(p.draft.wire.Ref)}})
	}
	for _, g := range p.peers {
		e.dropPeer(t, g)
		e.releaseGroup(g)
	}
	t.policies.remove(p)
	if len(t.policies) > 0 {
		return
	}
	delete(e.sets, t.id)
	for _, g := range t.groups {
		e.unguard(t, g)
		e.releaseGroup(g)
	}
	e.emit(storage.Change{Op: storage.OpDrop, Scope: t.id})
}

// targetSet returns the set of the selectors' groups, and begins it where
// there was none.
func (e *Engine) targetSet(selectors []podSelector) *targetSet {
	var groups []*group
	for _, s := range selectors {
		groups = append(groups, e.group(s))
	}
	slices.SortFunc(groups, func(a, b *group) int { return slices.Compare(a.id[:], b.id[:]) })
	groups = slices.Compact(groups)
	var content strings.Builder
	for _, g := range groups {
		content.Write(g.id[:])
	}
	id := storage.NewScopeID(storage.ScopePolicies, content.String())
	t := e.sets[id]
	if t == nil {
		t = &targetSet{id: id, groups: groups, policies: make(set[*policy]), nodes: make(map[string]int), peers: make(map[*group]int)}
		e.sets[id] = t
		for _, g := range groups {
			e.guard(t, g)
		}
	}
	return t
}

// emitPolicy encodes a policy's item into its scope.
func (e *Engine) emitPolicy(p *policy) {
	w := p.draft.wire
	logged := false
	if ns := e.namespaces[p.draft.loggedBy]; ns != nil && ns.obj != nil {
		logged = ns.obj.LogPolicies
	}
	w.AppliedTo = groupIDs(p.draft.appliedTo)
	if p.draft.loggedBy != "" {
		w.LogIsolation = logged
	}
	w.Rules = w.Rules[:0]
	for _, r := range p.draft.rules {
		r.wire.AppliedTo, r.wire.PortNameGroups = groupIDs(r.appliedTo), groupIDs(r.named)
		if r.wire.Peers != nil {
			r.wire.Peers.Groups = groupIDs(r.peers)
		}
		if p.draft.loggedBy != "" {
			r.wire.Log = logged
		}
		w.Rules = append(w.Rules, r.wire)
	}
	e.emit(storage.Change{Op: storage.OpUpsert, Scope: p.set.id, Kind: storage.ScopePolicies,
		Item: storage.Encode(&policyv1.Item{Body: &policyv1.Item_Policy{Policy: w}})})
}

func groupIDs(selectors []podSelector) [][]byte {
	var ids [][]byte
	for _, s := range selectors {
		id := storage.NewScopeID(storage.ScopeAddressGroup, s.text())
		ids = append(ids, id[:])
	}
	return ids
}
