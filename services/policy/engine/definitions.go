package engine

import (
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// GroupDefinition is a ClusterGroup or Group object, and what it comes to.
type GroupDefinition struct {
	Object   *api.Group
	Members  int      // Pods, of the Namespaces that were asked for.
	Blocks   int      // Blocks of addresses.
	Policies int      // That name it, themselves or by a parent.
	Warnings []string // What is wrong with it, and what it names that is not there.
}

// Definitions lists all group objects by kind, Namespace and name. Pods are counted of
// Namespaces for which of is true; nil: of all.
func (e *Engine) Definitions(of func(namespace string) bool) []GroupDefinition {
	var out []GroupDefinition
	for _, r := range e.referents {
		if g, is := r.obj.(*api.Group); is {
			d := e.define(g, len(r.users), of)
			if r.fault != "" {
				d.Warnings = append([]string{r.fault}, d.Warnings...)
			}
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b GroupDefinition) int { return compareRefs(a.Object.Ref(), b.Object.Ref()) })
	return out
}

// GroupObjects are all group objects, in no order.
func (e *Engine) GroupObjects() (out []*api.Group) {
	for _, r := range e.referents {
		if g, is := r.obj.(*api.Group); is {
			out = append(out, g)
		}
	}
	return out
}

func (e *Engine) define(g *api.Group, policies int, of func(string) bool) GroupDefinition {
	d := GroupDefinition{Object: g, Policies: policies}
	var n normaliser
	seen := make(map[*class]struct{})
	pl := &plan{}
	groups, _ := e.members(pl, g.Ref())
	for _, child := range groups {
		d.Blocks += len(child.IPBlocks)
		for _, s := range e.membersOf(pl, child) {
			e.classesOf(s, &n, func(c *class) {
				if _, twice := seen[c]; !twice && (of == nil || of(c.ns.name)) {
					seen[c] = struct{}{}
					d.Members += c.pods.len()
				}
			})
		}
	}
	for _, ref := range pl.refers {
		switch obj := e.referents[ref]; {
		case obj == nil || obj.obj == nil:
			d.Warnings = append(d.Warnings, ref.String()+" is not there, and adds nothing")
		case ref.Kind == api.KindService && len(obj.obj.(*api.Service).Selector) == 0:
			d.Warnings = append(d.Warnings, ref.String()+" has no selector, and adds nothing")
		}
	}
	return d
}

// classesOf calls fn for every class of a selection. It changes nothing.
func (e *Engine) classesOf(s selection, n *normaliser, fn func(*class)) {
	g := &group{pods: &selector{requirements: n.normalise(s.pods).clone()}}
	if s.namespaces == nil {
		if g.ns = e.lookupNamespace(s.namespace); g.ns != nil {
			e.ownClasses(g.ns, g, fn)
		}
		return
	}
	g.spaces = &selector{requirements: n.normalise(s.namespaces).clone()}
	for _, ns := range e.namespaces.items {
		if g.spaces.matchNamespace(ns) {
			e.ownClasses(ns, g, fn)
		}
	}
}
