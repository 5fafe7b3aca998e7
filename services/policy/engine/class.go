package engine

import (
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// class is all Pods of one Namespace with the same labels and service account.
type class struct {
	ns      *namespace
	shape   *shape
	pods    list[*pod]
	groups  list[*group] // That select it.
	touched bool         // Its endpoints' groups are to be told.
}

func (c *class) sum() uint32 { return mix(c.ns.hash, c.shape.hash) }

// findClass is the class of a shape in a Namespace; nil where there is none.
func (ns *namespace) findClass(s *shape) *class {
	c, _ := ns.classes.find(mix(ns.hash, s.hash), func(c *class) bool { return c.shape == s })
	return c
}

// class returns the class of a Pod, and begins it where there was none.
func (e *Engine) class(ns *namespace, obj *api.Pod) *class {
	s := e.shape(obj)
	c := ns.findClass(s)
	if c == nil {
		c = &class{ns: ns, shape: s}
		ns.classes.add(c)
		s.classes.add(c)
		e.classes++
		e.ownGroups(c, func(g *group) { e.linkClass(g, c) })
		e.wideGroups(c, func(g *group) { e.linkClass(g, c) })
		if ns.obj == nil && ns.classes.len() == 1 {
			e.relate(ns) // What begins here links the class itself.
		}
	}
	return c
}

func (e *Engine) releaseClass(c *class) {
	if c.pods.len() > 0 {
		return
	}
	for _, g := range c.groups.items {
		g.classes.remove(c)
	}
	c.ns.classes.remove(c)
	c.shape.classes.remove(c)
	e.classes--
	e.releaseShape(c.shape)
	if c.ns.obj == nil && c.ns.classes.len() == 0 {
		e.relate(c.ns)
	}
	e.releaseNamespace(c.ns)
}

// ownGroups calls fn for every group of the class's own Namespace that selects it.
func (e *Engine) ownGroups(c *class, fn func(*group)) {
	bySelector := e.loose.len()
	for _, u := range c.shape.uses {
		bySelector += u.selectors.len()
	}
	if c.ns.groups.len() <= bySelector {
		for _, g := range c.ns.groups.items {
			if g.pods.matchShape(c.shape) {
				fn(g)
			}
		}
		return
	}
	try := func(selectors []*selector) {
		for _, s := range selectors {
			if g := c.ns.findGroup(s); g != nil && s.matchShape(c.shape) {
				fn(g)
			}
		}
	}
	for _, u := range c.shape.uses {
		try(u.selectors.items)
	}
	try(e.loose.items)
}

// wideGroups calls fn for every group over more than one Namespace that
// selects the class.
func (e *Engine) wideGroups(c *class, fn func(*group)) {
	try := func(groups []*group) {
		for _, g := range groups {
			if g.selects(c) {
				fn(g)
			}
		}
	}
	for _, u := range c.shape.uses {
		for _, s := range u.selectors.items {
			try(s.wide.items)
		}
	}
	try(e.wideLoose.items)
	if len(e.wideByLabel) == 0 {
		return
	}
	byLabel := func(l api.Label) {
		if groups := e.wideByLabel[l]; groups != nil {
			try(groups.items)
		}
	}
	byLabel(api.Label{Key: api.LabelNamespaceName, Value: c.ns.name})
	byLabel(api.Label{Key: api.LabelAntreaNamespaceName, Value: c.ns.name})
	if c.ns.obj != nil {
		for _, l := range c.ns.obj.Labels {
			if !namesItself(l.Key) {
				byLabel(l)
			}
		}
	}
}

// rematch works out again which groups select a class, where the labels of
// its Namespace have changed.
func (e *Engine) rematch(c *class) {
	for _, g := range slices.Clone(c.groups.items) {
		if !g.selects(c) {
			e.unlinkClass(g, c)
		}
	}
	e.wideGroups(c, func(g *group) {
		if !c.groups.has(g) {
			e.linkClass(g, c)
		}
	})
}

func (e *Engine) touchClass(c *class) {
	if !c.touched {
		c.touched = true
		e.pending.classes = append(e.pending.classes, c)
	}
}

// classTargets works out which groups that rules guard select a class. It
// remembers the last answer: Pods of one class often follow each other.
type classTargets struct {
	class *class
	ids   [][]byte
}

// of returns the groups' ids, ascending. They are good until the next call.
func (t *classTargets) of(c *class) [][]byte {
	if t.class == c {
		return t.ids
	}
	t.class, t.ids = c, t.ids[:0]
	for _, g := range c.groups.items {
		if g.guards.len() > 0 {
			t.ids = append(t.ids, g.id[:])
		}
	}
	slices.SortFunc(t.ids, slices.Compare)
	return t.ids
}
