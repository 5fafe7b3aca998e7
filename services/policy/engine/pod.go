package engine

import (
	"cmp"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// namespace is there as long as its object or a Pod or class of it is.
type namespace struct {
	name    string
	obj     *api.Namespace // Nil: not there (yet).
	labels  api.Labels     // Of obj, or those that every Namespace has.
	classes map[string]*class
}

// class is all Pods of one Namespace with the same labels and service account.
type class struct {
	ns      *namespace
	key     string
	labels  api.Labels
	account string
	pods    set[*pod]
	groups  set[*group] // That select it.
	targets [][]byte    // Ids of those groups that are applied to something, ascending. Nil: to be worked out.
}

type pod struct {
	key    podKey
	obj    *api.Pod
	class  *class
	active bool   // It is an endpoint.
	node   string // Where it is an endpoint.
	shown  string // Node in whose scope its endpoint item is. Empty: in none.
	member storage.Encoded
}

// node is there as long as its object or an endpoint on it is.
type node struct {
	name  string
	obj   *api.Node
	scope storage.ScopeID
	pods  int // Endpoints on it.
}

func comparePodKeys(a, b podKey) int {
	return cmp.Or(strings.Compare(a.namespace, b.namespace), strings.Compare(a.name, b.name))
}

func (e *Engine) namespace(name string) *namespace {
	ns := e.namespaces[name]
	if ns == nil {
		ns = &namespace{name: name, classes: make(map[string]*class)}
		e.namespaces[name] = ns
		e.labelNamespace(ns, impliedLabels(name))
	}
	return ns
}

// impliedLabels are those that every Namespace counts as having.
func impliedLabels(name string) api.Labels {
	return api.Labels{{Key: "antrea.io/metadata.name", Value: name}, {Key: "kubernetes.io/metadata.name", Value: name}}
}

func (e *Engine) labelNamespace(ns *namespace, labels api.Labels) {
	for _, l := range ns.labels {
		unindex(e.nsByLabel, l, ns)
	}
	ns.labels = labels
	for _, l := range labels {
		index(e.nsByLabel, l, ns)
	}
}

func (e *Engine) releaseNamespace(ns *namespace) {
	if ns.obj == nil && len(ns.classes) == 0 {
		e.labelNamespace(ns, nil)
		delete(e.namespaces, ns.name)
	}
}

func (e *Engine) applyNamespace(name string, obj *api.Namespace) {
	if obj == nil && e.namespaces[name] == nil {
		return
	}
	ns := e.namespace(name)
	logged := ns.obj != nil && ns.obj.LogPolicies
	ns.obj = obj
	labels := impliedLabels(name)
	if obj != nil {
		labels = obj.Labels
	}
	if !slices.Equal(labels, ns.labels) {
		e.labelNamespace(ns, labels)
		for _, c := range ns.classes {
			e.rematch(c)
		}
	}
	if logged != (obj != nil && obj.LogPolicies) {
		for _, p := range e.policies {
			if p.ref.Namespace == name {
				e.dirtyPolicies.add(p)
			}
		}
	}
	e.releaseNamespace(ns)
}

func (e *Engine) node(name string) *node {
	n := e.nodes[name]
	if n == nil {
		n = &node{name: name, scope: storage.NewScopeID(storage.ScopeNode, name)}
		e.nodes[name] = n
		e.emit(storage.Change{Op: storage.OpJoin, Scope: n.scope, Kind: storage.ScopeNode, Node: name})
	}
	return n
}

func (e *Engine) releaseNode(n *node) {
	if n.obj == nil && n.pods == 0 {
		delete(e.nodes, n.name)
		e.emit(storage.Change{Op: storage.OpDrop, Scope: n.scope})
	}
}

func (e *Engine) applyNode(name string, obj *api.Node) {
	if obj == nil {
		if n := e.nodes[name]; n != nil && n.obj != nil {
			n.obj = nil
			e.emit(storage.Change{Op: storage.OpRemove, Scope: n.scope, Kind: storage.ScopeNode, Item: storage.Encoded{Key: "node"}})
			e.releaseNode(n)
		}
		return
	}
	n := e.node(name)
	n.obj = obj
	e.emit(storage.Change{Op: storage.OpUpsert, Scope: n.scope, Kind: storage.ScopeNode, Item: storage.Encode(nodeFacts(obj))})
}

// isEndpoint says whether Pod rules may guard or name the Pod. A Pod on the
// host's network is its Node's traffic; a finished one has given its
// addresses back.
func isEndpoint(p *api.Pod) bool {
	return p != nil && !p.HostNetwork && !p.Finished && p.Node != "" && len(p.IPs) > 0
}

func (e *Engine) applyPod(key podKey, obj *api.Pod) {
	p := e.pods[key]
	if !isEndpoint(obj) {
		if p != nil {
			e.retire(p)
			delete(e.pods, key)
		}
		return
	}
	if p == nil {
		p = &pod{key: key}
		e.pods[key] = p
	}
	if p.active && (p.node != obj.Node || p.class.account != obj.ServiceAccount || !slices.Equal(p.class.labels, obj.Labels)) {
		e.withdraw(p)
	}
	p.obj = obj
	member := storage.Encode(memberItem(obj))
	changed := member.Body != p.member.Body
	p.member = member
	if !p.active {
		e.bring(p, e.class(obj))
	} else if changed {
		e.upsertMember(p)
	}
	e.dirtyPods.add(p)
}

// bring makes a Pod an endpoint of its class, on its node.
func (e *Engine) bring(p *pod, cls *class) {
	p.active, p.class, p.node = true, cls, p.obj.Node
	cls.pods.add(p)
	e.node(p.node).pods++
	for g := range cls.groups {
		e.addMember(g, p)
	}
}

// withdraw undoes bring.
func (e *Engine) withdraw(p *pod) {
	for g := range p.class.groups {
		e.removeMember(g, p)
	}
	p.class.pods.remove(p)
	e.releaseClass(p.class)
	e.hideEndpoint(p)
	n := e.nodes[p.node]
	n.pods--
	e.releaseNode(n)
	p.active, p.class, p.node = false, nil, ""
}

func (e *Engine) retire(p *pod) {
	e.withdraw(p)
	e.dirtyPods.remove(p)
}

func (e *Engine) hideEndpoint(p *pod) {
	if p.shown != "" {
		if n := e.nodes[p.shown]; n != nil {
			e.emit(storage.Change{Op: storage.OpRemove, Scope: n.scope, Kind: storage.ScopeNode, Item: storage.Encoded{Key: storage.EndpointKey(p.key.namespace, p.key.name)}})
		}
		p.shown = ""
	}
}

func (e *Engine) emitEndpoint(p *pod) {
	if !p.active {
		return
	}
	p.shown = p.node
	e.emit(storage.Change{Op: storage.OpUpsert, Scope: e.nodes[p.node].scope, Kind: storage.ScopeNode,
		Item: storage.Encode(endpointItem(p.obj, p.class.targetIDs()))})
}

func (e *Engine) upsertMember(p *pod) {
	for g := range p.class.groups {
		if len(g.users) > 0 {
			e.emit(storage.Change{Op: storage.OpUpsert, Scope: g.id, Kind: storage.ScopeAddressGroup, Item: p.member})
		}
	}
}

// class returns the class of a Pod, and begins it where there was none.
func (e *Engine) class(obj *api.Pod) *class {
	ns := e.namespace(obj.Namespace)
	var b strings.Builder
	for _, l := range obj.Labels {
		b.WriteString(l.Key)
		b.WriteByte('=')
		b.WriteString(l.Value)
		b.WriteByte(',')
	}
	b.WriteByte('|')
	b.WriteString(obj.ServiceAccount)
	key := b.String()
	c := ns.classes[key]
	if c == nil {
		c = &class{ns: ns, key: key, labels: obj.Labels, account: obj.ServiceAccount, pods: make(set[*pod]), groups: make(set[*group])}
		ns.classes[key] = c
		for _, l := range c.labels {
			index(e.classesByLabel, l, c)
		}
		e.rematch(c)
	}
	return c
}

func (e *Engine) releaseClass(c *class) {
	if len(c.pods) > 0 {
		return
	}
	for g := range c.groups {
		g.classes.remove(c)
	}
	for _, l := range c.labels {
		unindex(e.classesByLabel, l, c)
	}
	delete(c.ns.classes, c.key)
	e.releaseNamespace(c.ns)
}

// rematch works out again which groups select a class.
func (e *Engine) rematch(c *class) {
	now := make(set[*group])
	e.groupIndex.selecting(c, func(g *group) { now.add(g) })
	for g := range c.groups {
		if _, still := now[g]; !still {
			e.unlinkClass(g, c)
		}
	}
	for g := range now {
		if _, already := c.groups[g]; !already {
			e.linkClass(g, c)
		}
	}
}

// targetIDs are the ids of the groups of the class that rules guard.
func (c *class) targetIDs() [][]byte {
	if c.targets == nil {
		c.targets = [][]byte{}
		for g := range c.groups {
			if len(g.guards) > 0 {
				c.targets = append(c.targets, g.id[:])
			}
		}
		slices.SortFunc(c.targets, slices.Compare)
	}
	return c.targets
}

func index[K, V comparable](m map[K]set[V], k K, v V) {
	if m[k] == nil {
		m[k] = make(set[V])
	}
	m[k].add(v)
}

func unindex[K, V comparable](m map[K]set[V], k K, v V) {
	delete(m[k], v)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}
