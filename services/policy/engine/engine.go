package engine

import (
	"slices"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// Engine turns objects into store changes. It belongs to one goroutine.
type Engine struct {
	namespaces map[string]*namespace
	nodes      map[string]*node
	pods       map[podKey]*pod
	groups     map[storage.ScopeID]*group
	policies   map[api.Ref]*policy
	sets       map[storage.ScopeID]*targetSet

	classesByLabel map[api.Label]set[*class]
	nsByLabel      map[api.Label]set[*namespace]
	groupIndex     groupIndex

	changes       []storage.Change
	dirtyPods     set[*pod]
	dirtyPolicies set[*policy]
}

type podKey struct{ namespace, name string }

type set[T comparable] map[T]struct{}

func (s set[T]) add(v T)    { s[v] = struct{}{} }
func (s set[T]) remove(v T) { delete(s, v) }

// New returns an engine that holds no object.
func New() *Engine {
	return &Engine{
		namespaces:     make(map[string]*namespace),
		nodes:          make(map[string]*node),
		pods:           make(map[podKey]*pod),
		groups:         make(map[storage.ScopeID]*group),
		policies:       make(map[api.Ref]*policy),
		sets:           make(map[storage.ScopeID]*targetSet),
		classesByLabel: make(map[api.Label]set[*class]),
		nsByLabel:      make(map[api.Label]set[*namespace]),
		groupIndex:     newGroupIndex(),
		dirtyPods:      make(set[*pod]),
		dirtyPolicies:  make(set[*policy]),
	}
}

// Apply takes one event. Its effects show in the next Flush.
func (e *Engine) Apply(ev api.Event) {
	switch ev.Ref.Kind {
	case api.KindNamespace:
		obj, _ := ev.Object.(*api.Namespace)
		e.applyNamespace(ev.Ref.Name, obj)
	case api.KindNode:
		obj, _ := ev.Object.(*api.Node)
		e.applyNode(ev.Ref.Name, obj)
	case api.KindPod:
		obj, _ := ev.Object.(*api.Pod)
		e.applyPod(podKey{ev.Ref.Namespace, ev.Ref.Name}, obj)
	case api.KindNetworkPolicy:
		obj, _ := ev.Object.(*api.NetworkPolicy)
		if obj == nil {
			e.applyPolicy(ev.Ref, nil)
		} else {
			e.applyPolicy(ev.Ref, e.compileNetworkPolicy(obj))
		}
	}
}

// Flush returns what changed since the last Flush, to be committed as one
// revision, in the order of the slice.
func (e *Engine) Flush() []storage.Change {
	for _, p := range sorted(e.dirtyPods, func(p *pod) podKey { return p.key }, comparePodKeys) {
		e.emitEndpoint(p)
	}
	for _, p := range sorted(e.dirtyPolicies, func(p *policy) api.Ref { return p.ref }, compareRefs) {
		e.emitPolicy(p)
	}
	clear(e.dirtyPods)
	clear(e.dirtyPolicies)
	out := e.changes
	e.changes = nil
	return out
}

func (e *Engine) emit(c storage.Change) { e.changes = append(e.changes, c) }

func sorted[T comparable, K any](s set[T], key func(T) K, compare func(a, b K) int) []T {
	out := make([]T, 0, len(s))
	for v := range s {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b T) int { return compare(key(a), key(b)) })
	return out
}
