package engine

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// What people ask for is worked out when they ask, from what the engine keeps
// anyway.

// PolicyInfo is one policy as the engine understands it.
type PolicyInfo struct {
	Ref       api.Ref
	Wire      *policyv1.Policy  // Without rules.
	Tier      string            // Empty: the kind has none.
	Items     []ItemPlace       // Of the policy and its parts. Empty: it has no effect.
	AppliedTo []storage.ScopeID // Groups that it guards, in ascending order.
	Peers     []storage.ScopeID // Address groups that its rules name, in ascending order.
	Ingress   int               // Rules.
	Egress    int
	Rules     []RuleInfo // As written, ingress first.
	Endpoints int        // That it applies to.
	Faults    []Fault
	Warnings  []string
}

// RuleInfo names a rule of a policy.
type RuleInfo struct {
	Direction policyv1.Direction
	Name      string // Empty: the kind has no names.
	Index     int    // Among the rules of its direction.
}

// ItemPlace is where the store has an item.
type ItemPlace struct {
	Scope storage.ScopeID
	Key   string
}

// Policies lists all policies by kind, Namespace and name.
func (e *Engine) Policies() []PolicyInfo {
	var out []PolicyInfo
	var scratch draft
	for _, ns := range e.namespaces.items {
		for _, p := range ns.policies.items {
			if p.set == nil {
				continue
			}
			d := p.draftOf(&scratch)
			info := PolicyInfo{Ref: p.obj.Ref(), Wire: d.wire(), Ingress: len(p.obj.Ingress), Egress: len(p.obj.Egress)}
			if !d.isolatesIngress {
				info.Ingress = 0
			}
			if !d.isolatesEgress {
				info.Egress = 0
			}
			info.list(func(policyv1.Direction, int) string { return "" })
			out = append(out, info.complete([]*policy{p}, d))
		}
	}
	for _, o := range e.ordered {
		if o.obj != nil {
			out = append(out, e.inspect(o))
		}
	}
	slices.SortFunc(out, func(a, b PolicyInfo) int { return comparePolicyRefs(a.Wire.Ref, b.Wire.Ref) })
	return out
}

// wire is what the draft says of the policy as a whole.
func (d *draft) wire() *policyv1.Policy {
	return &policyv1.Policy{Ref: &policyv1.PolicyRef{Kind: d.kind, Namespace: d.namespace, Name: d.name}, Uid: d.uid, Generation: d.generation,
		Rank: d.rank, Priority: d.priority, Created: d.created, Staged: d.staged, IsolatesIngress: d.isolatesIngress, IsolatesEgress: d.isolatesEgress}
}

func (e *Engine) inspect(o *ordered) PolicyInfo {
	pl := o.plan
	header := (&plan{policy: o.obj, rank: pl.rank}).header()
	info := PolicyInfo{Ref: o.ref, Wire: header.wire(), Tier: o.obj.Tier, Ingress: len(o.obj.Ingress), Egress: len(o.obj.Egress), Faults: append(slices.Clip(pl.faults), e.lockouts(o)...)}
	info.list(func(d policyv1.Direction, i int) string {
		if d == policyv1.Direction_DIRECTION_INGRESS {
			return o.obj.Ingress[i].Name
		}
		return o.obj.Egress[i].Name
	})
	var items []*policy
	for _, part := range slices.Sorted(maps.Keys(o.items)) {
		if o.items[part].set != nil {
			items = append(items, o.items[part])
		}
	}
	return info.complete(items, nil)
}

// list names the rules that are counted in Ingress and Egress.
func (info *PolicyInfo) list(name func(d policyv1.Direction, index int) string) {
	info.Rules = make([]RuleInfo, 0, info.Ingress+info.Egress)
	for i := range info.Ingress {
		info.Rules = append(info.Rules, RuleInfo{policyv1.Direction_DIRECTION_INGRESS, name(policyv1.Direction_DIRECTION_INGRESS, i), i})
	}
	for i := range info.Egress {
		info.Rules = append(info.Rules, RuleInfo{policyv1.Direction_DIRECTION_EGRESS, name(policyv1.Direction_DIRECTION_EGRESS, i), i})
	}
}

// PolicyUID is the UID of a policy's object, which is empty where the source has
// none; false where there is no such policy.
func (e *Engine) PolicyUID(ref api.Ref) (uid string, known bool) {
	if ref.Kind != api.KindNetworkPolicy {
		if o := e.ordered[ref]; o != nil && o.obj != nil {
			return o.obj.UID, true
		}
		return "", false
	}
	if ns := e.lookupNamespace(ref.Namespace); ns != nil { // Which, other than findNamespace, remembers nothing.
		if p := e.findPolicy(ns, ref.Name); p != nil && p.set != nil {
			return p.obj.UID, true
		}
	}
	return "", false
}

// complete adds what the items tell. The draft is that of the items, or nil
// where they have their own.
func (info PolicyInfo) complete(items []*policy, d *draft) PolicyInfo {
	var groups []*group
	for _, p := range items {
		of := d
		if of == nil {
			of = p.draft
		}
		info.Items = append(info.Items, ItemPlace{p.set.id, of.key()})
		groups = append(groups, p.set.groups...)
		p.eachPeer(of, func(g *group, _ policyv1.Action) { info.Peers = append(info.Peers, g.id) })
	}
	sortScopes(&info.Peers)
	info.Endpoints = members(groups)
	applies, nodes := "Pod", 0
	for _, g := range groups {
		info.AppliedTo = append(info.AppliedTo, g.id)
		if g.hosts != nil {
			applies, nodes = "Node", nodes+len(g.hosts)
		}
	}
	sortScopes(&info.AppliedTo)
	switch {
	case len(items) == 0: // What it applies to has not been worked out.
		info.Warnings = append(info.Warnings, "has no effect now")
	case info.Endpoints == 0 && nodes == 0:
		info.Warnings = append(info.Warnings, "applies to no "+applies+" now")
	}
	return info
}

// sortScopes puts ids into ascending order, each once.
func sortScopes(ids *[]storage.ScopeID) {
	slices.SortFunc(*ids, func(a, b storage.ScopeID) int { return slices.Compare(a[:], b[:]) })
	*ids = slices.Compact(*ids)
}

// members counts the Pods that are in some of the groups.
func members(groups []*group) (n int) {
	seen := make(map[*class]struct{})
	for _, g := range groups {
		for _, c := range g.classes.items {
			if _, twice := seen[c]; !twice {
				seen[c] = struct{}{}
				n += c.pods.len()
			}
		}
	}
	return n
}

// Endpoints is how many Pods a policy applies to, as of the last Flush; zero
// where there is no such policy.
func (e *Engine) Endpoints(ref api.Ref) int {
	if ref.Kind != api.KindNetworkPolicy {
		o := e.ordered[ref]
		if o == nil || o.obj == nil {
			return 0
		}
		var groups []*group
		for _, p := range o.items {
			if p.set != nil {
				groups = append(groups, p.set.groups...)
			}
		}
		return members(groups)
	}
	if ns := e.lookupNamespace(ref.Namespace); ns != nil {
		if p := e.findPolicy(ns, ref.Name); p != nil && p.set != nil {
			return members(p.set.groups)
		}
	}
	return 0
}

func comparePolicyRefs(a, b *policyv1.PolicyRef) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// ByEffectivePriority orders policies as they take effect: by rank, priority,
// among upstream kinds by kind, then age, of which an unknown one counts as the
// youngest, kind, Namespace and name. Those that have no effect come last.
func ByEffectivePriority(a, b PolicyInfo) int {
	born := func(p PolicyInfo) int64 {
		if p.Wire.Created == 0 {
			return math.MaxInt64
		}
		return p.Wire.Created
	}
	held := func(p PolicyInfo) int {
		if slices.ContainsFunc(p.Faults, func(f Fault) bool { return f.Reason == ReasonTierNotFound }) {
			return 1
		}
		return 0
	}
	upstream := 0
	if a.Wire.Rank == api.RankAdmin || a.Wire.Rank == api.RankUpstreamBaseline {
		upstream = cmp.Compare(a.Wire.Ref.Kind, b.Wire.Ref.Kind)
	}
	return cmp.Or(cmp.Compare(held(a), held(b)), cmp.Compare(a.Wire.Rank, b.Wire.Rank), cmp.Compare(a.Wire.Priority, b.Wire.Priority), upstream,
		cmp.Compare(born(a), born(b)), comparePolicyRefs(a.Wire.Ref, b.Wire.Ref))
}

// GroupInfo is one group.
type GroupInfo struct {
	ID        storage.ScopeID
	Selector  string // Normalised.
	Address   bool   // It is a peer of rules.
	AppliedTo bool   // Rules guard it.
	Members   int
	Nodes     int      // As an address group: of its span; else those that hold a member.
	Names     []string // "NAMESPACE/NAME" or "node:NAME", sorted; only where asked for.
}

// Groups lists all groups by their selector.
func (e *Engine) Groups(names bool) []GroupInfo {
	var out []GroupInfo
	for _, ns := range e.namespaces.items {
		for _, g := range ns.groups.items {
			out = append(out, g.inspect(names))
		}
	}
	for _, g := range e.hostGroups {
		out = append(out, g.inspect(names))
	}
	for _, s := range e.selectors.items {
		for _, g := range s.wide.items {
			out = append(out, g.inspect(names))
		}
	}
	slices.SortFunc(out, func(a, b GroupInfo) int { return strings.Compare(a.Selector, b.Selector) })
	return out
}

func (g *group) inspect(names bool) GroupInfo {
	info := GroupInfo{ID: g.id, Selector: g.text(), Address: g.users > 0, AppliedTo: g.guards.len() > 0, Nodes: len(g.nodes)}
	if info.Address {
		info.Nodes = len(g.span)
	}
	info.Members = len(g.hosts)
	if names {
		for n := range g.hosts {
			info.Names = append(info.Names, "node:"+n.name)
		}
	}
	for _, c := range g.classes.items {
		info.Members += c.pods.len()
		if names {
			for _, p := range c.pods.items {
				info.Names = append(info.Names, p.obj.Namespace+"/"+p.obj.Name)
			}
		}
	}
	slices.Sort(info.Names)
	return info
}
