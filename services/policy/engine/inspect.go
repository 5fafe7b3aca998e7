package engine

import (
	"cmp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// What people ask for is worked out when they ask, from what the engine keeps
// anyway.

// PolicyInfo is one policy as the engine understands it.
type PolicyInfo struct {
	Wire      *policyv1.Policy
	Scope     storage.ScopeID
	Ingress   int // Rules.
	Egress    int
	Endpoints int // That it applies to.
	Warnings  []string
}

// Policies lists all policies by kind, Namespace and name.
func (e *Engine) Policies() []PolicyInfo {
	var out []PolicyInfo
	var d draft
	var enc encoder
	for _, ns := range e.namespaces.items {
		for _, p := range ns.policies.items {
			if p.set != nil {
				out = append(out, e.inspect(p, &d, &enc))
			}
		}
	}
	slices.SortFunc(out, func(a, b PolicyInfo) int { return comparePolicyRefs(a.Wire.Ref, b.Wire.Ref) })
	return out
}

func (e *Engine) inspect(p *policy, d *draft, enc *encoder) PolicyInfo {
	item := &policyv1.Item{}
	if err := proto.Unmarshal(e.encodePolicy(p, d, enc), item); err != nil {
		panic("engine: policy item cannot be read: " + err.Error())
	}
	info := PolicyInfo{Wire: item.GetPolicy(), Scope: p.set.id}
	for _, r := range info.Wire.Rules {
		if r.Direction == policyv1.Direction_DIRECTION_INGRESS {
			info.Ingress++
		} else {
			info.Egress++
		}
	}
	for i, g := range p.set.groups {
		for _, c := range g.classes.items {
			if !slices.ContainsFunc(p.set.groups[:i], func(former *group) bool { return former.classes.has(c) }) {
				info.Endpoints += c.pods.len()
			}
		}
	}
	if info.Endpoints == 0 {
		info.Warnings = append(info.Warnings, "applies to no Pod now")
	}
	return info
}

func comparePolicyRefs(a, b *policyv1.PolicyRef) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// ByEffectivePriority orders policies as they take effect: by rank, priority,
// age where both are known, kind, Namespace and name.
func ByEffectivePriority(a, b PolicyInfo) int {
	age := 0
	if a.Wire.Created != 0 && b.Wire.Created != 0 {
		age = cmp.Compare(a.Wire.Created, b.Wire.Created)
	}
	return cmp.Or(cmp.Compare(a.Wire.Rank, b.Wire.Rank), cmp.Compare(a.Wire.Priority, b.Wire.Priority), age,
		comparePolicyRefs(a.Wire.Ref, b.Wire.Ref))
}

// GroupInfo is one group.
type GroupInfo struct {
	ID        storage.ScopeID
	Selector  string // Normalised.
	Address   bool   // It is a peer of rules.
	AppliedTo bool   // Rules guard it.
	Members   int
	Nodes     int      // As an address group: of its span; else those that hold a member.
	Names     []string // "NAMESPACE/NAME", sorted; only where asked for.
}

// Groups lists all groups by their selector.
func (e *Engine) Groups(names bool) []GroupInfo {
	var out []GroupInfo
	for _, ns := range e.namespaces.items {
		for _, g := range ns.groups.items {
			out = append(out, g.inspect(names))
		}
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
