package engine

import (
	"cmp"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// ordered is an ordered policy object, or was one when Flush ran last: its
// items, and what they were made of. The policies that name a tier, group or
// Service are made anew when it changes; those with parts follow the Namespaces.
type ordered struct {
	ref   api.Ref
	obj   *api.OrderedPolicy // Nil: it is gone.
	plan  *plan
	items map[string]*policy // By part; "" is the policy but for its parts.

	parts  map[string]int          // How many Namespaces give rise to each part.
	spaces map[*namespace][]string // The parts to which a Namespace gives rise.
}

// referent is an object that policies name, whether it is there or not.
type referent struct {
	obj   api.Object // Nil: not there (yet), or not in force.
	fault string     // Why it is not in force as it is written. Empty: it is.
	users map[*ordered]struct{}
}

func (e *Engine) applyReferent(ref api.Ref, obj api.Object, fault string) {
	r := e.referents[ref]
	if r == nil {
		if obj == nil && fault == "" {
			return
		}
		r = &referent{}
		e.referents[ref] = r
	}
	r.obj, r.fault = obj, fault
	e.releaseReferent(ref, r)
	users := make([]*ordered, 0, len(r.users))
	for o := range r.users {
		users = append(users, o)
	}
	slices.SortFunc(users, func(a, b *ordered) int { return compareRefs(a.ref, b.ref) })
	for _, o := range users {
		e.compose(o)
	}
}

func (e *Engine) releaseReferent(ref api.Ref, r *referent) {
	if r.obj == nil && r.fault == "" && len(r.users) == 0 {
		delete(e.referents, ref)
	}
}

// refer notes what a policy names in the place of what it named before.
func (e *Engine) refer(o *ordered, before, after []api.Ref) {
	for _, ref := range after {
		r := e.referents[ref]
		if r == nil {
			r = &referent{}
			e.referents[ref] = r
		}
		if r.users == nil {
			r.users = make(map[*ordered]struct{})
		}
		r.users[o] = struct{}{}
	}
	for _, ref := range before {
		if !slices.Contains(after, ref) {
			delete(e.referents[ref].users, o)
			e.releaseReferent(ref, e.referents[ref])
		}
	}
}

func (e *Engine) applyOrdered(ref api.Ref, obj *api.OrderedPolicy) {
	o := e.ordered[ref]
	if o == nil {
		if obj == nil {
			return
		}
		o = &ordered{ref: ref, items: make(map[string]*policy)}
		e.ordered[ref] = o
	}
	o.obj = obj
	e.compose(o)
}

// compose makes a policy's items anew.
func (e *Engine) compose(o *ordered) {
	former := o.plan
	o.plan = &plan{}
	if o.obj != nil {
		o.plan = e.plan(o.obj)
	}
	var before []api.Ref
	if former != nil {
		before = former.refers
	}
	e.refer(o, before, o.plan.refers)
	var whole *draft
	if o.obj != nil {
		whole = o.plan.draft()
	}
	e.set(o, "", whole)

	// The parts that stay are made anew, too; those of no Namespace go.
	o.parts, o.spaces = nil, nil
	delete(e.related, o)
	if len(o.plan.tuples) > 0 {
		e.related[o] = struct{}{}
		o.parts, o.spaces = make(map[string]int), make(map[*namespace][]string)
		for _, ns := range e.namespaces.items {
			e.count(o, ns)
		}
	}
	for part, p := range o.items {
		if part != "" && o.parts[part] == 0 {
			e.withdraw(p)
		}
	}
	o.release(e)
}

// set puts a draft in the place of an item's former one; nil takes it out.
func (e *Engine) set(o *ordered, part string, d *draft) {
	p := o.items[part]
	if d == nil {
		if p != nil {
			e.withdraw(p)
		}
		return
	}
	if p == nil {
		p = &policy{ordered: o}
		o.items[part] = p
	}
	former := *p
	p.draft = d
	e.replace(p, former)
}

// relate follows a Namespace that has come, gone or changed its labels.
func (e *Engine) relate(ns *namespace) {
	if len(e.related) == 0 {
		return
	}
	for _, o := range e.relatedInOrder() {
		e.count(o, ns)
	}
}

func (e *Engine) relatedInOrder() []*ordered {
	list := make([]*ordered, 0, len(e.related))
	for o := range e.related {
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b *ordered) int { return compareRefs(a.ref, b.ref) })
	return list
}

// count works out to which parts of a policy a Namespace gives rise. A part
// begins with its first Namespace and ends with its last.
func (e *Engine) count(o *ordered, ns *namespace) {
	var now []string
	var tuples []tuple
	if ns.present() && o.plan.guards(ns, &e.normaliser) {
		for _, keys := range o.plan.tuples {
			if t := tupleOf(ns, keys); t != nil {
				now, tuples = append(now, t.String()), append(tuples, t)
			}
		}
	}
	before := o.spaces[ns]
	for i, part := range now {
		if slices.Contains(before, part) {
			continue
		}
		if o.parts[part]++; o.parts[part] == 1 {
			e.set(o, part, o.plan.part(tuples[i]))
		}
	}
	for _, part := range before {
		if slices.Contains(now, part) {
			continue
		}
		if o.parts[part]--; o.parts[part] == 0 {
			delete(o.parts, part)
			e.set(o, part, nil)
		}
	}
	if now == nil {
		delete(o.spaces, ns)
	} else {
		o.spaces[ns] = now
	}
}

// end forgets an item that Flush has taken out.
func (o *ordered) end(e *Engine, p *policy) {
	for part, item := range o.items {
		if item == p {
			delete(o.items, part)
		}
	}
	o.release(e)
}

// release forgets a policy that is gone, with its last item.
func (o *ordered) release(e *Engine) {
	if o.obj == nil && len(o.items) == 0 {
		delete(e.ordered, o.ref)
	}
}

func compareRefs(a, b api.Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
