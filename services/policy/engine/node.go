package engine

import (
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// node is there as long as its object or an endpoint on it is.
type node struct {
	scope
	name    string
	hash    uint32
	number  uint32 // By which counts know it. Another node may have it later.
	obj     *api.Node
	changed bool // What its facts are made of has changed.
	facts   bool // The store has its facts.
	pods    int  // Endpoints on it.
	routed  bool // The store has its route,
	routes  bool // and has it in the scope of routes.
	serves  bool // The store has it in the scope of Services.
}

func (n *node) sum() uint32 { return n.hash }

func (n *node) idle() bool { return n.obj == nil && n.pods == 0 }

// nodes finds nodes by name and by number.
type nodes struct {
	list[*node]
	numbered []*node
	unused   []uint32 // Numbers.
}

func (ns *nodes) name(number uint32) string { return ns.numbered[number].name }

func (ns *nodes) add(n *node) {
	if last := len(ns.unused) - 1; last >= 0 {
		n.number = ns.unused[last]
		ns.unused = ns.unused[:last]
		ns.numbered[n.number] = n
	} else {
		n.number = uint32(len(ns.numbered))
		ns.numbered = append(ns.numbered, n)
	}
	ns.list.add(n)
}

func (ns *nodes) remove(n *node) {
	ns.list.remove(n)
	ns.numbered[n.number] = nil
	ns.unused = append(ns.unused, n.number)
}

func (e *Engine) findNode(name string) *node {
	n, _ := e.nodes.find(hashString(e.seed, name), func(n *node) bool { return n.name == name })
	return n
}

// node returns a node, and begins it where there was none.
func (e *Engine) node(name string) *node {
	n := e.findNode(name)
	if n == nil {
		n = &node{name: name, hash: hashString(e.seed, name)}
		n.id = storage.NewScopeID(storage.ScopeNode, name)
		e.nodes.add(n)
		e.touchNode(n)
	}
	return n
}

func (e *Engine) touchNode(n *node) {
	if !n.touched {
		n.touched = true
		e.pending.nodes = append(e.pending.nodes, n)
	}
}

// retellNode is for facts that change while the object does not.
func (e *Engine) retellNode(n *node) {
	n.changed = true
	e.touchNode(n)
}

func (e *Engine) applyNode(name string, obj *api.Node) {
	n := e.findNode(name)
	if n == nil {
		if obj == nil {
			return
		}
		n = e.node(name)
	}
	before := n.obj
	n.obj = obj
	e.control.stale = true
	e.rehost(n, before)
	e.retellNode(n)
}
