package engine

import (
	"github.com/weirnet/weir/storage"
)

// Flush returns what changed since the last Flush, to be committed as one
// revision, in the order of the slice.
func (e *Engine) Flush() []storage.Change {
	changes := e.flush()
	e.moves = moves{}
	return changes
}

// FlushMoves is Flush, and says too whose addresses moved.
func (e *Engine) FlushMoves() ([]storage.Change, Moves) {
	e.moves = moves{wanted: true}
	changes := e.flush()
	found := e.moves.Moves
	e.moves = moves{}
	return changes, found
}

func (e *Engine) flush() []storage.Change {
	p := &e.pending
	for _, t := range p.sets {
		if t.policies == 0 {
			e.endSet(t)
		}
	}
	for _, c := range p.classes {
		c.touched = false
		for _, pod := range c.pods.items {
			e.touchPod(pod)
		}
	}
	e.settleServices()
	e.settleControl()
	out := changes{list: make([]storage.Change, 0, e.countChanges())}
	e.flushRoutes(&out)
	e.flushServices(&out)
	e.flushNodes(&out)
	e.flushSets(&out)
	e.flushGroups(&out)
	e.flushPolicies(&out)
	e.flushPods(&out)
	e.endNodes(&out)
	p.reset()
	return out.list
}

// countChanges is at least the number of changes that Flush will make: a slice
// that grows on the way costs more than the changes themselves.
func (e *Engine) countChanges() int {
	p := &e.pending
	n := 5*len(p.nodes) + len(p.left) + len(p.members) + len(p.hosts) + len(p.reaches) + len(p.spans) + 2*len(p.policies) + len(p.pods)
	for _, s := range p.services {
		n += s.changes()
	}
	for _, t := range p.sets {
		n++
		if !t.told && t.policies > 0 {
			n += len(*t.span())
		}
	}
	for _, g := range p.groups {
		n++
		if !g.told && g.users > 0 {
			n += len(g.span) + len(g.hosts)
			for _, c := range g.classes.items {
				n += c.pods.len()
			}
		}
	}
	return n
}

// changes collects the changes of one Flush.
type changes struct{ list []storage.Change }

func (c *changes) upsert(id storage.ScopeID, kind storage.ScopeKind, item storage.Encoded) {
	c.list = append(c.list, storage.Change{Op: storage.OpUpsert, Scope: id, Kind: kind, Item: item})
}

func (c *changes) remove(id storage.ScopeID, kind storage.ScopeKind, key string) {
	c.list = append(c.list, storage.Change{Op: storage.OpRemove, Scope: id, Kind: kind, Item: storage.Encoded{Key: key}})
}

// node says that a node is, or is not, in a scope.
func (c *changes) node(id storage.ScopeID, kind storage.ScopeKind, name string, in bool) {
	op := storage.OpJoin
	if !in {
		op = storage.OpLeave
	}
	c.list = append(c.list, storage.Change{Op: op, Scope: id, Kind: kind, Node: name})
}

func (c *changes) drop(s *scope) {
	if s.told {
		c.list = append(c.list, storage.Change{Op: storage.OpDrop, Scope: s.id})
		s.told = false
	}
}

// spread brings a scope that is everybody's to the nodes that want it, and drops it
// where there is nothing in it. Of says whether a node does, and where it is noted
// that it is in the scope.
func (e *Engine) spread(out *changes, s *scope, kind storage.ScopeKind, filled bool, of func(*node) (wants bool, in *bool)) {
	nodes := e.pending.nodes
	switch {
	case !filled && !s.told:
		return
	case !filled:
		out.drop(s)
		for _, n := range e.nodes.list.items {
			_, in := of(n)
			*in = false
		}
		return
	case !s.told:
		s.told, nodes = true, e.nodes.list.items
	}
	for _, n := range nodes {
		if wants, in := of(n); wants != *in {
			out.node(s.id, kind, n.name, wants)
			*in = wants
		}
	}
}

func (e *Engine) flushNodes(out *changes) {
	for _, n := range e.pending.nodes {
		n.touched = false
		if n.idle() {
			continue // endNodes.
		}
		if !n.told {
			out.node(n.id, storage.ScopeNode, n.name, true)
			n.told = true
		}
		if !n.changed {
			continue
		}
		switch n.changed = false; {
		case n.obj != nil:
			groups := e.hostTargets(n)
			servers, clients := e.controlOf(n, len(groups) > 0)
			out.upsert(n.id, storage.ScopeNode, storage.Encoded{Key: nodeKey, Body: string(e.encoder.node(n.obj, groups, servers, clients))})
		case n.facts:
			out.remove(n.id, storage.ScopeNode, nodeKey)
		}
		n.facts = n.obj != nil
	}
}

func (e *Engine) endNodes(out *changes) {
	for _, n := range e.pending.nodes {
		if n.idle() {
			out.drop(&n.scope)
			e.nodes.remove(n)
		}
	}
}

func (e *Engine) flushSets(out *changes) {
	for _, t := range e.pending.sets {
		t.touched = false
		switch {
		case t.policies == 0:
			out.drop(&t.scope)
		case !t.told:
			for _, c := range *t.span() {
				out.node(t.id, storage.ScopePolicies, e.nodes.name(c.node), true)
			}
			t.told = true
		}
	}
	for _, r := range e.pending.reaches {
		if r.set.told {
			out.node(r.set.id, storage.ScopePolicies, r.node.name, r.set.span().has(r.node.number))
		}
	}
}

func (e *Engine) flushGroups(out *changes) {
	for _, m := range e.pending.members {
		e.moves.member(m)
		switch g := m.group; {
		case !g.told || g.users == 0:
		case m.pod.in(g):
			out.upsert(g.id, storage.ScopeAddressGroup, e.member(m.pod))
		default:
			out.remove(g.id, storage.ScopeAddressGroup, m.pod.key)
		}
	}
	for _, h := range e.pending.hosts {
		switch g := h.group; {
		case !g.told || g.users == 0:
		case g.has(h.node):
			out.upsert(g.id, storage.ScopeAddressGroup, e.host(h.node))
		default:
			out.remove(g.id, storage.ScopeAddressGroup, hostKey(h.node))
		}
	}
	for _, s := range e.pending.spans {
		if g := s.group; g.told && g.users > 0 {
			out.node(g.id, storage.ScopeAddressGroup, s.node.name, g.span.has(s.node.number))
		}
	}
	for _, g := range e.pending.groups {
		g.touched = false
		switch {
		case g.users == 0:
			out.drop(&g.scope)
			if g.guards.len() == 0 && e.services.behind[g] == nil {
				e.endGroup(g)
			}
		case !g.told:
			for _, c := range g.classes.items {
				for _, p := range c.pods.items {
					out.upsert(g.id, storage.ScopeAddressGroup, e.member(p))
				}
			}
			for n := range g.hosts {
				out.upsert(g.id, storage.ScopeAddressGroup, e.host(n))
			}
			for _, c := range g.span {
				out.node(g.id, storage.ScopeAddressGroup, e.nodes.name(c.node), true)
			}
			g.told = true
		}
	}
}

func (e *Engine) flushPolicies(out *changes) {
	for _, p := range e.pending.policies {
		p.touched = false
		if p.told != nil && p.told != p.set && p.told.told {
			out.remove(p.told.id, storage.ScopePolicies, p.draftOf(&e.draft).key())
		}
		p.told = p.set
		if p.set == nil {
			e.endPolicy(p)
			continue
		}
		d, body := e.encodePolicy(p, &e.draft, &e.encoder)
		out.upsert(p.set.id, storage.ScopePolicies, storage.Encoded{Key: d.key(), Body: string(body)})
	}
}

// endPolicy forgets a policy that has been taken out.
func (e *Engine) endPolicy(p *policy) {
	if p.ordered != nil {
		p.ordered.end(e, p)
		return
	}
	ns := e.findNamespace(p.obj.Namespace)
	ns.policies.remove(p)
	e.releaseNamespace(ns)
}

func (e *Engine) flushPods(out *changes) {
	for _, l := range e.pending.left {
		if n := l.node; n.told && (l.pod.class == nil || l.pod.node != n) {
			out.remove(n.id, storage.ScopeNode, l.pod.key)
		}
	}
	var targets classTargets
	for _, p := range e.pending.pods {
		p.touched = false
		e.moves.pod(p)
		if p.class == nil {
			p.ns.pods.remove(p)
			e.releaseNamespace(p.ns)
			continue
		}
		p.shown, p.told = true, p.obj
		body := e.encoder.endpoint(p.obj, targets.of(p.class))
		out.upsert(p.node.id, storage.ScopeNode, storage.Encoded{Key: p.key, Body: string(body)})
	}
}
