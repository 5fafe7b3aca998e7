package engine

import (
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// namespace is there as long as its object or something in it is.
type namespace struct {
	name string
	hash uint32
	obj  *api.Namespace // Nil: not there (yet).

	pods     list[*pod]
	classes  list[*class]
	groups   list[*group] // Of this Namespace alone.
	policies list[*policy]
}

func (ns *namespace) sum() uint32 { return ns.hash }

// namesItself says whether a label key is one under which every Namespace
// bears its own name, whether or not its object is there.
func namesItself(key string) bool {
	return key == api.LabelNamespaceName || key == api.LabelAntreaNamespaceName
}

func (ns *namespace) label(key string) (value string, has bool) {
	if namesItself(key) {
		return ns.name, true
	}
	if ns.obj == nil {
		return "", false
	}
	return ns.obj.Labels.Get(key)
}

// logs says whether the Namespace's policies are recorded.
func (ns *namespace) logs() bool { return ns.obj != nil && ns.obj.LogPolicies }

// findNamespace remembers the last answer: what is done to one object asks
// several times, and objects of one Namespace often follow each other.
func (e *Engine) findNamespace(name string) *namespace {
	if e.found == nil || e.found.name != name {
		e.found = e.lookupNamespace(name)
	}
	return e.found
}

// lookupNamespace changes nothing: inspection may use it.
func (e *Engine) lookupNamespace(name string) *namespace {
	ns, _ := e.namespaces.find(hashString(e.seed, name), func(ns *namespace) bool { return ns.name == name })
	return ns
}

// namespace returns a Namespace, and begins it where there was none.
func (e *Engine) namespace(name string) *namespace {
	ns := e.findNamespace(name)
	if ns == nil {
		ns = &namespace{name: name, hash: hashString(e.seed, name)}
		e.namespaces.add(ns)
		e.found = ns
	}
	return ns
}

func (e *Engine) releaseNamespace(ns *namespace) {
	if ns.obj == nil && ns.pods.len() == 0 && ns.classes.len() == 0 && ns.groups.len() == 0 && ns.policies.len() == 0 {
		e.namespaces.remove(ns)
		e.found = nil
	}
}

func (e *Engine) applyNamespace(name string, obj *api.Namespace) {
	ns := e.findNamespace(name)
	if ns == nil {
		if obj == nil {
			return
		}
		ns = e.namespace(name)
	}
	logged := ns.logs()
	var before, after api.Labels
	if ns.obj != nil {
		before = ns.obj.Labels
	}
	if obj != nil {
		after = obj.Labels
	}
	ns.obj = obj
	if !slices.Equal(before, after) {
		e.relabelNamespace(ns, before, after)
	}
	if logged != ns.logs() {
		for _, p := range ns.policies.items {
			e.touchPolicy(p)
		}
	}
	e.relate(ns)
	e.releaseNamespace(ns)
}

func (e *Engine) relabelNamespace(ns *namespace, before, after api.Labels) {
	for _, l := range before {
		if !namesItself(l.Key) {
			removeFrom(e.spacesByLabel, l, ns)
		}
	}
	for _, l := range after {
		if !namesItself(l.Key) {
			addTo(e.spacesByLabel, l, ns)
		}
	}
	for _, c := range ns.classes.items {
		e.rematch(c)
	}
}

// present says whether there is a Namespace, or at least an endpoint in it.
func (ns *namespace) present() bool { return ns.obj != nil || ns.classes.len() > 0 }
