package engine

import (
	"hash/maphash"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// Engine turns objects into store changes. It belongs to one goroutine; what
// inspects it (Policies, Groups) may run beside others of its kind.
type Engine struct {
	seed maphash.Seed // Of hashes that no output depends on.

	namespaces list[*namespace]
	found      *namespace // By the last findNamespace that found one.
	nodes      nodes
	routes     routes
	services   services
	sets       list[*targetSet]
	classes    int // Of all Namespaces.

	shapes    list[*shape]
	selectors list[*selector]
	loose     list[*selector] // Those without an anchor.
	labels    map[api.Label]*labelUse

	spacesByLabel map[api.Label]*list[*namespace] // But for the labels that bear the Namespace's name.
	wideByLabel   map[api.Label]*list[*group]     // Groups without an anchor on Pods, by that on Namespaces.
	wideLoose     list[*group]                    // Those without either.

	hostGroups map[*selector]*group // Of Nodes.
	control    control

	ordered   map[api.Ref]*ordered
	related   map[*ordered]struct{} // Those that have parts.
	referents map[api.Ref]*referent

	pending    pending
	moves      moves
	normaliser normaliser
	draft      draft
	targets    []*group // Scratch.
	encoder    encoder
}

// New returns an engine that holds no object.
func New() *Engine {
	return &Engine{
		seed:          maphash.MakeSeed(),
		labels:        make(map[api.Label]*labelUse),
		spacesByLabel: make(map[api.Label]*list[*namespace]),
		wideByLabel:   make(map[api.Label]*list[*group]),
		hostGroups:    make(map[*selector]*group),
		ordered:       make(map[api.Ref]*ordered),
		related:       make(map[*ordered]struct{}),
		referents:     make(map[api.Ref]*referent),
		routes:        newRoutes(),
		services:      newServices(),
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
		e.applyPod(ev.Ref, obj)
	case api.KindNetworkPolicy:
		obj, _ := ev.Object.(*api.NetworkPolicy)
		e.applyPolicy(ev.Ref, obj)
	case api.KindService:
		obj, _ := ev.Object.(*api.Service)
		e.applyService(ev.Ref, obj)
		e.applyReferent(ev.Ref, ev.Object, ev.Fault)
	case api.KindEndpointSlice:
		obj, _ := ev.Object.(*api.EndpointSlice)
		e.applySlice(ev.Ref, obj)
	case api.KindTier, api.KindClusterGroup, api.KindGroup:
		e.applyReferent(ev.Ref, ev.Object, ev.Fault)
	case api.KindAdminNetworkPolicy, api.KindBaselineAdminNetworkPolicy, api.KindClusterNetworkPolicy,
		api.KindAntreaClusterNetworkPolicy, api.KindAntreaNetworkPolicy:
		obj, _ := ev.Object.(*api.OrderedPolicy)
		e.applyOrdered(ev.Ref, obj)
	}
}

// addTo and removeFrom keep maps of lists without empty ones.
func addTo[K comparable, T element](m map[K]*list[T], k K, v T) {
	l := m[k]
	if l == nil {
		l = new(list[T])
		m[k] = l
	}
	l.add(v)
}

func removeFrom[K comparable, T element](m map[K]*list[T], k K, v T) {
	l := m[k]
	if l == nil {
		return
	}
	l.remove(v)
	if l.len() == 0 {
		delete(m, k)
	}
}

// scope is what the store knows of a scope of the engine's.
type scope struct {
	id      storage.ScopeID
	told    bool // The store has it, as it was at the last Flush.
	touched bool // It is in the list of those that the next Flush looks at as a whole.
}
