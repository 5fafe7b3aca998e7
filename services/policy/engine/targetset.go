package engine

import (
	"encoding/binary"
	"slices"

	"github.com/weirnet/weir/storage"
)

// targetSet is a set of applied-to groups that policies guard, and the scope
// of these policies' items. It reaches the nodes that hold an endpoint of one
// of the groups, or are in one themselves. It is there as long as it has policies.
type targetSet struct {
	scope
	groups   []*group // By id.
	policies int
	peers    list[*use]
	nodes    *counts // How many of the groups have an endpoint there. Nil for one group, whose own nodes tell it.
}

func (t *targetSet) sum() uint32 { return sumOfGroups(t.groups) }

func sumOfGroups(groups []*group) uint32 {
	h := uint32(len(groups))
	for _, g := range groups {
		h = mix(h, binary.LittleEndian.Uint32(g.id[:]))
	}
	return h
}

// use is an address group that rules of a target set's policies name.
type use struct {
	group *group
	n     int // How often.
}

func (u *use) sum() uint32 { return u.group.sum() }

// targetSet returns the set of some groups, which it may put in another order,
// and begins it where there was none.
func (e *Engine) targetSet(groups []*group) *targetSet {
	if len(groups) > 1 {
		slices.SortFunc(groups, func(a, b *group) int { return slices.Compare(a.id[:], b.id[:]) })
		groups = slices.Compact(groups)
	}
	t, ok := e.sets.find(sumOfGroups(groups), func(t *targetSet) bool { return slices.Equal(t.groups, groups) })
	if ok {
		return t
	}
	t = &targetSet{groups: slices.Clone(groups)}
	content := make([]byte, 0, 64)
	for _, g := range groups {
		content = append(content, g.id[:]...)
	}
	t.id = storage.NewScopeID(storage.ScopePolicies, string(content))
	if len(groups) != 1 {
		t.nodes = new(counts)
	}
	e.sets.add(t)
	e.touchSet(t)
	for _, g := range groups {
		e.guard(t, g)
	}
	return t
}

// endSet undoes targetSet. No policy is left.
func (e *Engine) endSet(t *targetSet) {
	e.sets.remove(t)
	for _, g := range t.groups {
		e.unguard(t, g)
	}
}

// span is the nodes that the set reaches.
func (t *targetSet) span() *counts {
	if t.nodes == nil {
		return &t.groups[0].nodes
	}
	return t.nodes
}

// guard makes a group one of a target set's. The endpoints and Nodes of a group
// that was applied to nothing have to say anew which groups they are in.
func (e *Engine) guard(t *targetSet, g *group) {
	if g.guards.len() == 0 {
		for _, c := range g.classes.items {
			e.touchClass(c)
			for _, p := range c.pods.items {
				g.nodes.add(p.node.number)
			}
		}
		for n := range g.hosts {
			e.retellNode(n)
			g.nodes.add(n.number)
		}
	}
	g.guards.add(t)
	if t.nodes != nil {
		for _, c := range g.nodes {
			t.nodes.add(c.node)
		}
	}
}

func (e *Engine) unguard(t *targetSet, g *group) {
	g.guards.remove(t)
	if g.guards.len() > 0 {
		return
	}
	for _, c := range g.classes.items {
		e.touchClass(c)
	}
	for n := range g.hosts {
		e.retellNode(n)
	}
	g.nodes = nil
	e.touchGroup(g)
}

// reach counts one more group of a target set on a node.
func (e *Engine) reach(t *targetSet, n *node) {
	if t.nodes == nil || t.nodes.add(n.number) {
		e.touchReach(t, n)
		for _, u := range t.peers.items {
			e.extend(u.group, n)
		}
	}
}

func (e *Engine) unreach(t *targetSet, n *node) {
	if t.nodes == nil || t.nodes.remove(n.number) {
		e.touchReach(t, n)
		for _, u := range t.peers.items {
			e.retract(u.group, n)
		}
	}
}

func (e *Engine) touchReach(t *targetSet, n *node) {
	if t.told {
		e.pending.reaches = append(e.pending.reaches, setNode{t, n})
	}
}

func (e *Engine) touchSet(t *targetSet) {
	if !t.touched {
		t.touched = true
		e.pending.sets = append(e.pending.sets, t)
	}
}

// usePeer counts one more rule of a target set's policies that names a group.
func (e *Engine) usePeer(t *targetSet, g *group) {
	u := t.use(g)
	if u == nil {
		u = &use{group: g}
		t.peers.add(u)
		for _, c := range *t.span() {
			e.extend(g, e.nodes.numbered[c.node])
		}
		if g.users++; g.users == 1 {
			e.touchGroup(g)
		}
	}
	u.n++
}

func (e *Engine) dropPeer(t *targetSet, g *group) {
	u := t.use(g)
	if u.n--; u.n > 0 {
		return
	}
	t.peers.remove(u)
	for _, c := range *t.span() {
		e.retract(g, e.nodes.numbered[c.node])
	}
	if g.users--; g.users == 0 {
		e.touchGroup(g)
	}
}

// use is the use of a group; nil where no policy names it.
func (t *targetSet) use(g *group) *use {
	u, _ := t.peers.find(g.sum(), func(u *use) bool { return u.group == g })
	return u
}
