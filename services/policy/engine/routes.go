package engine

import (
	"github.com/weirnet/weir/storage"
)

// routes is the scope that says to every Node where the Pods of all are. It is
// there while a Node has prefixes for Pods.
type routes struct {
	scope
	nodes int // That have a route.
}

func newRoutes() routes {
	return routes{scope: scope{id: storage.NewScopeID(storage.ScopeRoutes, "")}}
}

// flushRoutes goes before flushNodes, which forgets what has changed.
func (e *Engine) flushRoutes(out *changes) {
	r := &e.routes
	for _, n := range e.pending.nodes {
		has := n.obj != nil && len(n.obj.PodCIDRs) > 0
		switch {
		case has && n.changed:
			out.upsert(r.id, storage.ScopeRoutes, storage.Encoded{Key: hostKey(n), Body: string(e.encoder.route(n.obj))})
		case !has && n.routed:
			out.remove(r.id, storage.ScopeRoutes, hostKey(n))
		}
		if has && !n.routed {
			r.nodes++
		} else if n.routed && !has {
			r.nodes--
		}
		n.routed = has
	}
	e.spread(out, &r.scope, storage.ScopeRoutes, r.nodes > 0, func(n *node) (bool, *bool) { return n.obj != nil, &n.routes })
}
