package engine

import (
	"cmp"
	"slices"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// PolicyInfo is one policy as the engine understands it.
type PolicyInfo struct {
	Wire      *policyv1.Policy // Must not be changed.
	Scope     storage.ScopeID
	Ingress   int // Rules.
	Egress    int
	Endpoints int // That it applies to.
	Warnings  []string
}

// Policies lists all policies by kind, Namespace and name.
func (e *Engine) Policies() []PolicyInfo {
	var out []PolicyInfo
	for _, p := range e.policies {
		info := PolicyInfo{Wire: p.draft.wire, Scope: p.set.id}
		for _, r := range p.draft.rules {
			if r.wire.Direction == policyv1.Direction_DIRECTION_INGRESS {
				info.Ingress++
			} else {
				info.Egress++
			}
		}
		classes := make(set[*class])
		for _, g := range p.set.groups {
			for c := range g.classes {
				classes.add(c)
			}
		}
		for c := range classes {
			info.Endpoints += len(c.pods)
		}
		if info.Endpoints == 0 {
			info.Warnings = append(info.Warnings, "applies to no Pod now")
		}
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b PolicyInfo) int { return comparePolicyRefs(a.Wire.Ref, b.Wire.Ref) })
	return out
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
	for _, g := range e.groups {
		info := GroupInfo{ID: g.id, Selector: g.text, Address: len(g.users) > 0, AppliedTo: len(g.guards) > 0, Nodes: len(g.pods)}
		if info.Address {
			info.Nodes = len(g.span)
		}
		for c := range g.classes {
			info.Members += len(c.pods)
			if names {
				for p := range c.pods {
					info.Names = append(info.Names, p.key.namespace+"/"+p.key.name)
				}
			}
		}
		slices.Sort(info.Names)
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b GroupInfo) int { return strings.Compare(a.Selector, b.Selector) })
	return out
}
