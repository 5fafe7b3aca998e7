package engine

import (
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// services is the scope of the Services that have ClusterIPs, with their
// backends. It is there while there is such a Service, and reaches the nodes
// that hold an endpoint.
type services struct {
	scope
	all    map[api.NamespacedName]*clusterService
	slices map[api.Ref]*api.EndpointSlice
	behind map[*group][]*clusterService // Whose backends are the group's Pods.
	told   int                          // Services that the store has.
}

// clusterService is a Service, or what is said of one that is not there. It is
// there as long as its object or a slice of it is.
type clusterService struct {
	name    api.NamespacedName
	obj     *api.Service // Nil: not there (yet).
	slices  int          // EndpointSlices that name it.
	group   *group       // The Pods that are its backends. Nil: its slices say which they are, or it has none.
	backers backers
	whole   bool // It is to be told with all its backends.
	told    bool // The store has its item.
	touched bool
}

func newServices() services {
	return services{
		scope:  scope{id: storage.NewScopeID(storage.ScopeServices, "")},
		all:    make(map[api.NamespacedName]*clusterService),
		slices: make(map[api.Ref]*api.EndpointSlice),
		behind: make(map[*group][]*clusterService),
	}
}

// clusterService returns a Service, and begins it where there was none.
func (e *Engine) clusterService(name api.NamespacedName) *clusterService {
	s := e.services.all[name]
	if s == nil {
		s = &clusterService{name: name}
		e.services.all[name] = s
	}
	e.touchService(s)
	return s
}

func (e *Engine) touchService(s *clusterService) {
	if !s.touched {
		s.touched = true
		e.pending.services = append(e.pending.services, s)
	}
}

func (e *Engine) applyService(ref api.Ref, obj *api.Service) {
	name := api.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}
	if obj == nil && e.services.all[name] == nil {
		return
	}
	s := e.clusterService(name)
	s.obj, s.whole = obj, true
}

// applySlice puts a slice in the place of the former one, which may have been of
// another Service.
func (e *Engine) applySlice(ref api.Ref, obj *api.EndpointSlice) {
	former := e.services.slices[ref]
	if obj != nil && obj.Service == "" {
		obj = nil
	}
	if former == obj {
		return
	}
	if former != nil && former.Controls() || obj != nil && obj.Controls() {
		e.control.stale = true
	}
	of := func(s *api.EndpointSlice) *clusterService {
		return e.clusterService(api.NamespacedName{Namespace: s.Namespace, Name: s.Service})
	}
	switch {
	case obj == nil:
		delete(e.services.slices, ref)
	default:
		e.services.slices[ref] = obj
	}
	if former != nil && obj != nil && former.Service == obj.Service {
		of(obj).backers.replace(former, obj)
		return
	}
	if former != nil {
		s := of(former)
		s.backers.replace(former, nil)
		s.slices--
	}
	if obj != nil {
		s := of(obj)
		s.backers.replace(nil, obj)
		s.slices++
	}
}

// touchBacker notes that a Pod may have become a backend, or another one, or
// none any more.
func (e *Engine) touchBacker(g *group, p *pod) {
	if len(e.services.behind) > 0 && e.services.behind[g] != nil {
		e.pending.backers = append(e.pending.backers, groupMember{g, p})
	}
}

// settleServices works out which Services have Pods for backends because no
// slice says otherwise, and which Pods these are. It waits for Flush: a Service
// and its slices come one after the other.
func (e *Engine) settleServices() {
	for _, m := range e.pending.backers {
		for _, s := range e.services.behind[m.group] {
			s.backers.follow(m.pod, m.pod.in(m.group))
			e.touchService(s)
		}
	}
	for _, s := range e.pending.services {
		var g *group
		if s.balanced() && s.slices == 0 && len(s.obj.Selector) > 0 {
			g = e.group(selection{namespace: s.name.Namespace, pods: &api.Selector{MatchLabels: s.obj.Selector}})
		}
		if former := s.group; former != g {
			s.group = g
			e.rebind(s, former, g)
		}
	}
}

// rebind makes the Pods of another group a Service's backends; nil for none.
func (e *Engine) rebind(s *clusterService, former, g *group) {
	if former != nil {
		left := e.services.behind[former]
		for i, other := range left {
			if other == s {
				left = append(left[:i:i], left[i+1:]...)
				break
			}
		}
		if e.services.behind[former] = left; len(left) == 0 {
			delete(e.services.behind, former)
			e.touchGroup(former)
		}
		for p := range s.backers.pods {
			s.backers.follow(p, g != nil && p.in(g))
		}
	}
	if g == nil {
		return
	}
	e.services.behind[g] = append(e.services.behind[g], s)
	for _, c := range g.classes.items {
		for _, p := range c.pods.items {
			s.backers.follow(p, true)
		}
	}
}

// balanced says whether the Service has an item.
func (s *clusterService) balanced() bool { return s.obj != nil && s.obj.Balanced() }

// changes is how many changes flushServices will make of it, at most.
func (s *clusterService) changes() int {
	if !s.whole {
		return len(s.backers.touched)
	}
	return 1 + len(s.backers.touched) + len(s.backers.at)
}

func (e *Engine) flushServices(out *changes) {
	s := &e.services
	for _, svc := range e.pending.services {
		e.flushService(out, svc)
	}
	e.spread(out, &s.scope, storage.ScopeServices, s.told > 0, func(n *node) (bool, *bool) { return n.pods > 0, &n.serves })
}

func (e *Engine) flushService(out *changes, s *clusterService) {
	id, is := e.services.id, s.balanced()
	s.touched = false
	switch key := storage.ServiceKey(s.name.Namespace, s.name.Name); {
	case is && s.whole:
		out.upsert(id, storage.ScopeServices, storage.Encoded{Key: key, Body: string(e.encoder.service(s.obj))})
	case !is && s.told:
		out.remove(id, storage.ScopeServices, key)
		s.whole = true
	}
	if is || s.told {
		for a := range s.backers.touched {
			e.flushBackend(out, s, a)
		}
		for a := range s.backers.at {
			if _, done := s.backers.touched[a]; s.whole && !done {
				e.flushBackend(out, s, a)
			}
		}
	}
	if is != s.told {
		if s.told = is; is {
			e.services.told++
		} else {
			e.services.told--
		}
	}
	s.whole, s.backers.touched = false, nil
	if s.obj == nil && s.slices == 0 {
		delete(e.services.all, s.name)
	}
}
