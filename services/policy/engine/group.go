package engine

import (
	"math"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// group is what one normalised selection of Pods yields. It is there as long
// as a policy uses it, or a Service whose backends they are.
type group struct {
	scope              // As an address group.
	ns      *namespace // The one whose Pods it selects; nil where namespaces says which.
	spaces  *selector  // On Namespace labels; nil where ns counts.
	pods    *selector
	classes list[*class]       // That it selects.
	hosts   map[*node]struct{} // Nodes that it selects; nil where it selects Pods.

	// As an applied-to group: the target sets that it is part of, and, as long
	// as there are any, its endpoints by node.
	guards list[*targetSet]
	nodes  counts

	// As an address group: the target sets whose rules name it, and how many
	// of these reach each node.
	users   int32
	awaited int32 // Rules that name it and do more than allow.
	span    counts
}

func (g *group) sum() uint32 {
	switch {
	case g.hosts != nil:
		return g.pods.hash
	case g.ns != nil:
		return mix(g.ns.hash, g.pods.hash)
	}
	return mix(g.spaces.hash, g.pods.hash) + 1
}

// selection is a pair of selectors as peers and applied-to entries have them.
// Nil on Namespaces means the given one, nil on Pods means all.
type selection struct {
	namespace  string
	namespaces *api.Selector
	pods       *api.Selector
	hosts      bool // It selects Nodes, by their labels, and pods says which.
}

// findGroup is the group of the Namespace's Pods that a selector selects.
func (ns *namespace) findGroup(s *selector) *group {
	g, _ := ns.groups.find(mix(ns.hash, s.hash), func(g *group) bool { return g.pods == s })
	return g
}

// group returns the group of a selection, and begins it where there was none.
func (e *Engine) group(s selection) *group {
	pods := e.selector(s.pods)
	if s.hosts {
		return e.hostGroup(pods)
	}
	name, one := s.namespace, s.namespaces == nil
	if !one {
		name, one = e.normaliser.normalise(s.namespaces).namespace()
	}
	if one {
		ns := e.namespace(name)
		if g := ns.findGroup(pods); g != nil {
			return g
		}
		return e.beginGroup(&group{ns: ns, pods: pods})
	}
	spaces := e.selector(s.namespaces)
	g, ok := pods.wide.find(mix(spaces.hash, pods.hash)+1, func(g *group) bool { return g.spaces == spaces })
	if !ok {
		g = e.beginGroup(&group{spaces: spaces, pods: pods})
	}
	return g
}

func (e *Engine) beginGroup(g *group) *group {
	g.id = storage.NewScopeID(storage.ScopeAddressGroup, g.text())
	g.pods.groups++
	if g.hosts != nil {
		e.beginHosts(g)
		return g
	}
	if g.ns != nil {
		g.ns.groups.add(g)
		e.ownClasses(g.ns, g, func(c *class) { e.linkClass(g, c) })
		return g
	}
	g.spaces.groups++
	g.pods.wide.add(g)
	if g.pods.anchor() == nil {
		if a := g.spaces.anchor(); a == nil {
			e.wideLoose.add(g)
		} else {
			for _, v := range a.values {
				addTo(e.wideByLabel, api.Label{Key: a.key, Value: v}, g)
			}
		}
	}
	e.wideClasses(g, func(c *class) { e.linkClass(g, c) })
	return g
}

// endGroup undoes beginGroup. Nothing uses the group.
func (e *Engine) endGroup(g *group) {
	for _, c := range g.classes.items {
		c.groups.remove(g)
	}
	g.pods.groups--
	if g.hosts != nil {
		delete(e.hostGroups, g.pods)
		e.releaseSelector(g.pods)
		return
	}
	if g.ns != nil {
		g.ns.groups.remove(g)
		e.releaseNamespace(g.ns)
		e.releaseSelector(g.pods)
		return
	}
	g.spaces.groups--
	g.pods.wide.remove(g)
	if g.pods.anchor() == nil {
		if a := g.spaces.anchor(); a == nil {
			e.wideLoose.remove(g)
		} else {
			for _, v := range a.values {
				removeFrom(e.wideByLabel, api.Label{Key: a.key, Value: v}, g)
			}
		}
	}
	e.releaseSelector(g.pods)
	if g.spaces != g.pods {
		e.releaseSelector(g.spaces)
	}
}

// text is the canonical form of the selection: equal ones written alike have
// the same.
func (g *group) text() string {
	b := make([]byte, 0, 128)
	switch {
	case g.hosts != nil:
		return string(g.pods.appendText(append(b, "nodes "...)))
	case g.ns != nil:
		b = append(append(b, "namespace "...), g.ns.name...)
	default:
		b = g.spaces.appendText(append(b, "namespaces "...))
	}
	return string(g.pods.appendText(append(b, ", pods "...)))
}

func (g *group) selects(c *class) bool {
	if g.ns != nil {
		return c.ns == g.ns && g.pods.matchShape(c.shape)
	}
	return g.spaces.matchNamespace(c.ns) && g.pods.matchShape(c.shape)
}

// ownClasses calls fn for every class of a Namespace that a group selects.
func (e *Engine) ownClasses(ns *namespace, g *group, fn func(*class)) {
	if a := g.pods.anchor(); a != nil {
		shapes := 0
		for _, v := range a.values {
			if u := e.labels[api.Label{Key: a.key, Value: v}]; u != nil {
				shapes += u.shapes.len()
			}
		}
		if shapes < ns.classes.len() {
			e.anchoredShapes(a, func(s *shape) {
				if c := ns.findClass(s); c != nil && g.selects(c) {
					fn(c)
				}
			})
			return
		}
	}
	for _, c := range ns.classes.items {
		if g.selects(c) {
			fn(c)
		}
	}
}

func (e *Engine) anchoredShapes(a *requirement, fn func(*shape)) {
	for _, v := range a.values {
		if u := e.labels[api.Label{Key: a.key, Value: v}]; u != nil {
			for _, s := range u.shapes.items {
				fn(s)
			}
		}
	}
}

// wideClasses calls fn for every class that a group over more than one
// Namespace selects. It goes by Pod labels or by Namespaces, whichever leads
// past fewer classes.
func (e *Engine) wideClasses(g *group, fn func(*class)) {
	byPods := math.MaxInt
	if a := g.pods.anchor(); a != nil {
		byPods = 0
		e.anchoredShapes(a, func(s *shape) { byPods += s.classes.len() })
	}
	bySpaces := e.classes
	if g.spaces.anchor() != nil {
		bySpaces = 0
		e.anchoredSpaces(g.spaces, func(ns *namespace) { bySpaces += 1 + ns.classes.len() })
	}
	if byPods <= bySpaces {
		e.anchoredShapes(g.pods.anchor(), func(s *shape) {
			for _, c := range s.classes.items {
				if g.selects(c) {
					fn(c)
				}
			}
		})
		return
	}
	e.anchoredSpaces(g.spaces, func(ns *namespace) { e.ownClasses(ns, g, fn) })
}

// anchoredSpaces calls fn for Namespaces among which are all that a selector selects.
func (e *Engine) anchoredSpaces(s *selector, fn func(*namespace)) {
	a := s.anchor()
	if a == nil {
		for _, ns := range e.namespaces.items {
			fn(ns)
		}
		return
	}
	for _, v := range a.values {
		if namesItself(a.key) {
			if ns := e.findNamespace(v); ns != nil {
				fn(ns)
			}
		} else if spaces := e.spacesByLabel[api.Label{Key: a.key, Value: v}]; spaces != nil {
			for _, ns := range spaces.items {
				fn(ns)
			}
		}
	}
}

func (e *Engine) linkClass(g *group, c *class) {
	g.classes.add(c)
	c.groups.add(g)
	for _, p := range c.pods.items {
		e.gain(g, p.node)
		e.touchMember(g, p)
	}
	if g.guards.len() > 0 {
		e.touchClass(c)
	}
}

func (e *Engine) unlinkClass(g *group, c *class) {
	for _, p := range c.pods.items {
		e.lose(g, p.node)
		e.touchMember(g, p)
	}
	g.classes.remove(c)
	c.groups.remove(g)
	if g.guards.len() > 0 {
		e.touchClass(c)
	}
}

// touchMember notes that a Pod may have become a member, or another one, or
// none any more.
func (e *Engine) touchMember(g *group, p *pod) {
	if g.told {
		e.pending.members = append(e.pending.members, groupMember{g, p})
	}
	e.touchBacker(g, p)
}

// gain counts one more endpoint on a node.
func (e *Engine) gain(g *group, n *node) {
	if g.guards.len() > 0 && g.nodes.add(n.number) {
		for _, t := range g.guards.items {
			e.reach(t, n)
		}
	}
}

func (e *Engine) lose(g *group, n *node) {
	if g.guards.len() > 0 && g.nodes.remove(n.number) {
		for _, t := range g.guards.items {
			e.unreach(t, n)
		}
	}
}

// extend counts one more target set that brings an address group to a node.
func (e *Engine) extend(g *group, n *node) {
	if g.span.add(n.number) && g.told {
		e.pending.spans = append(e.pending.spans, groupNode{g, n})
	}
}

func (e *Engine) retract(g *group, n *node) {
	if g.span.remove(n.number) && g.told {
		e.pending.spans = append(e.pending.spans, groupNode{g, n})
	}
}

func (e *Engine) touchGroup(g *group) {
	if !g.touched {
		g.touched = true
		e.pending.groups = append(e.pending.groups, g)
	}
}
