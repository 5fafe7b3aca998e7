package engine

import (
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// group is what one normalised selector yields. It is there as long as a
// policy uses it.
type group struct {
	id       storage.ScopeID
	selector podSelector
	text     string
	classes  set[*class] // That it selects.

	// As an applied-to group: the target sets that it is part of, and its
	// endpoints per node.
	guards set[*targetSet]
	pods   map[string]int

	// As an address group: the target sets whose rules name it, with how
	// often, and how many of these reach each node.
	users map[*targetSet]int
	span  map[string]int
}

// targetSet is a set of applied-to groups that policies guard, and the scope
// of these policies' items. It reaches the nodes that hold an endpoint of one
// of the groups.
type targetSet struct {
	id       storage.ScopeID
	groups   []*group
	policies set[*policy]
	nodes    map[string]int // How many of the groups have an endpoint there.
	peers    map[*group]int // Address groups that the policies name, with how often.
}

func (e *Engine) group(s podSelector) *group {
	text := s.text()
	id := storage.NewScopeID(storage.ScopeAddressGroup, text)
	g := e.groups[id]
	if g == nil {
		g = &group{id: id, selector: s, text: text, classes: make(set[*class]),
			guards: make(set[*targetSet]), pods: make(map[string]int), users: make(map[*targetSet]int), span: make(map[string]int)}
		e.groups[id] = g
		e.groupIndex.add(g)
		e.candidates(g, func(c *class) {
			if g.selects(c) {
				e.linkClass(g, c)
			}
		})
	}
	return g
}

func (e *Engine) releaseGroup(g *group) {
	if len(g.guards) > 0 || len(g.users) > 0 {
		return
	}
	for c := range g.classes {
		c.groups.remove(g)
		c.targets = nil
	}
	e.groupIndex.remove(g)
	delete(e.groups, g.id)
}

func (g *group) selects(c *class) bool {
	return g.selector.matchNamespace(c.ns) && g.selector.pods.match(c.labels)
}

// candidates calls fn for classes among which are all that the group selects.
func (e *Engine) candidates(g *group, fn func(*class)) {
	if a := g.selector.pods.anchor(); a != nil {
		for _, v := range a.values {
			for c := range e.classesByLabel[api.Label{Key: a.key, Value: v}] {
				fn(c)
			}
		}
		return
	}
	inNamespace := func(ns *namespace) {
		for _, c := range ns.classes {
			fn(c)
		}
	}
	if g.selector.namespaces == nil {
		if ns := e.namespaces[g.selector.namespace]; ns != nil {
			inNamespace(ns)
		}
		return
	}
	if a := g.selector.namespaces.anchor(); a != nil {
		for _, v := range a.values {
			for ns := range e.nsByLabel[api.Label{Key: a.key, Value: v}] {
				inNamespace(ns)
			}
		}
		return
	}
	for _, ns := range e.namespaces {
		inNamespace(ns)
	}
}

func (e *Engine) linkClass(g *group, c *class) {
	g.classes.add(c)
	c.groups.add(g)
	c.targets = nil
	for p := range c.pods {
		e.addMember(g, p)
	}
}

func (e *Engine) unlinkClass(g *group, c *class) {
	for p := range c.pods {
		e.removeMember(g, p)
	}
	g.classes.remove(c)
	c.groups.remove(g)
	c.targets = nil
}

func (e *Engine) addMember(g *group, p *pod) {
	if len(g.users) > 0 {
		e.emit(storage.Change{Op: storage.OpUpsert, Scope: g.id, Kind: storage.ScopeAddressGroup, Item: p.member})
	}
	if g.pods[p.node]++; g.pods[p.node] == 1 {
		for t := range g.guards {
			e.reach(t, p.node)
		}
	}
	if len(g.guards) > 0 {
		e.dirtyPods.add(p)
	}
}

func (e *Engine) removeMember(g *group, p *pod) {
	if len(g.users) > 0 {
		e.emit(storage.Change{Op: storage.OpRemove, Scope: g.id, Kind: storage.ScopeAddressGroup, Item: storage.Encoded{Key: p.member.Key}})
	}
	if g.pods[p.node]--; g.pods[p.node] == 0 {
		delete(g.pods, p.node)
		for t := range g.guards {
			e.unreach(t, p.node)
		}
	}
	if len(g.guards) > 0 {
		e.dirtyPods.add(p)
	}
}

// reach counts a node once more into a target set's span.
func (e *Engine) reach(t *targetSet, node string) {
	if t.nodes[node]++; t.nodes[node] > 1 {
		return
	}
	e.emit(storage.Change{Op: storage.OpJoin, Scope: t.id, Kind: storage.ScopePolicies, Node: node})
	for g := range t.peers {
		e.extend(g, node)
	}
}

func (e *Engine) unreach(t *targetSet, node string) {
	if t.nodes[node]--; t.nodes[node] > 0 {
		return
	}
	delete(t.nodes, node)
	e.emit(storage.Change{Op: storage.OpLeave, Scope: t.id, Kind: storage.ScopePolicies, Node: node})
	for g := range t.peers {
		e.retract(g, node)
	}
}

// extend counts a node once more into an address group's span.
func (e *Engine) extend(g *group, node string) {
	if g.span[node]++; g.span[node] == 1 {
		e.emit(storage.Change{Op: storage.OpJoin, Scope: g.id, Kind: storage.ScopeAddressGroup, Node: node})
	}
}

func (e *Engine) retract(g *group, node string) {
	if g.span[node]--; g.span[node] == 0 {
		delete(g.span, node)
		e.emit(storage.Change{Op: storage.OpLeave, Scope: g.id, Kind: storage.ScopeAddressGroup, Node: node})
	}
}

// usePeer counts one more rule of a target set's policies that names a group.
func (e *Engine) usePeer(t *targetSet, g *group) {
	if len(g.users) == 0 {
		for c := range g.classes {
			for p := range c.pods {
				e.emit(storage.Change{Op: storage.OpUpsert, Scope: g.id, Kind: storage.ScopeAddressGroup, Item: p.member})
			}
		}
	}
	g.users[t]++
	if t.peers[g]++; t.peers[g] == 1 {
		for node := range t.nodes {
			e.extend(g, node)
		}
	}
}

func (e *Engine) dropPeer(t *targetSet, g *group) {
	if t.peers[g]--; t.peers[g] == 0 {
		delete(t.peers, g)
		for node := range t.nodes {
			e.retract(g, node)
		}
	}
	if g.users[t]--; g.users[t] == 0 {
		delete(g.users, t)
	}
	if len(g.users) == 0 {
		e.emit(storage.Change{Op: storage.OpDrop, Scope: g.id})
	}
}

// guard makes a group one of a target set's.
func (e *Engine) guard(t *targetSet, g *group) {
	e.retarget(g, len(g.guards) == 0)
	g.guards.add(t)
	for node := range g.pods {
		e.reach(t, node)
	}
}

func (e *Engine) unguard(t *targetSet, g *group) {
	for node := range g.pods {
		e.unreach(t, node)
	}
	g.guards.remove(t)
	e.retarget(g, len(g.guards) == 0)
}

// retarget has the endpoints of a group say anew which groups they are in,
// where the group begins or ceases to be applied to anything.
func (e *Engine) retarget(g *group, changes bool) {
	if !changes {
		return
	}
	for c := range g.classes {
		c.targets = nil
		for p := range c.pods {
			e.dirtyPods.add(p)
		}
	}
}

// groupIndex finds the groups that may select a class: each group is under one
// value of its most telling condition.
type groupIndex struct {
	byPodLabel map[indexKey]set[*group] // By Namespace ("" for any) and Pod label.
	byNsLabel  map[api.Label]set[*group]
	byNs       map[string]set[*group] // Of one Namespace ("" for any), with no label to go by.
}

type indexKey struct {
	namespace string
	label     api.Label
}

func newGroupIndex() groupIndex {
	return groupIndex{byPodLabel: make(map[indexKey]set[*group]), byNsLabel: make(map[api.Label]set[*group]), byNs: make(map[string]set[*group])}
}

func (x *groupIndex) add(g *group)    { x.each(g, indexGroup, indexGroupNs, indexGroupAny) }
func (x *groupIndex) remove(g *group) { x.each(g, unindex, unindex, unindex) }

func indexGroup(m map[indexKey]set[*group], k indexKey, g *group)     { index(m, k, g) }
func indexGroupNs(m map[api.Label]set[*group], k api.Label, g *group) { index(m, k, g) }
func indexGroupAny(m map[string]set[*group], k string, g *group)      { index(m, k, g) }

func (x *groupIndex) each(g *group,
	pod func(map[indexKey]set[*group], indexKey, *group),
	ns func(map[api.Label]set[*group], api.Label, *group),
	any func(map[string]set[*group], string, *group),
) {
	if a := g.selector.pods.anchor(); a != nil {
		for _, v := range a.values {
			pod(x.byPodLabel, indexKey{g.selector.namespace, api.Label{Key: a.key, Value: v}}, g)
		}
		return
	}
	if a := g.selector.namespaces.anchor(); a != nil {
		for _, v := range a.values {
			ns(x.byNsLabel, api.Label{Key: a.key, Value: v}, g)
		}
		return
	}
	any(x.byNs, g.selector.namespace, g)
}

// selecting calls fn for every group that selects the class; for some twice.
func (x *groupIndex) selecting(c *class, fn func(*group)) {
	try := func(groups set[*group]) {
		for g := range groups {
			if g.selects(c) {
				fn(g)
			}
		}
	}
	for _, l := range c.labels {
		try(x.byPodLabel[indexKey{c.ns.name, l}])
		try(x.byPodLabel[indexKey{"", l}])
	}
	for _, l := range c.ns.labels {
		try(x.byNsLabel[l])
	}
	try(x.byNs[c.ns.name])
	try(x.byNs[""])
}
