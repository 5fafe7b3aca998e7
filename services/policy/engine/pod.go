package engine

import (
	"slices"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// pod is an endpoint, or was one when Flush ran last.
type pod struct {
	ns      *namespace
	obj     *api.Pod // The last one that was an endpoint.
	class   *class   // Nil: it is no endpoint any more.
	node    *node    // Where it is, or was, an endpoint.
	key     string   // Of its items.
	member  string   // Body of its item in every address group; empty where it is to be encoded.
	hash    uint32
	told    *api.Pod // As the last Flush had it; nil where it was no endpoint then.
	touched bool     // Its endpoint item is to be told.
	shown   bool     // The store has its endpoint item, in the scope of node.
}

func (p *pod) sum() uint32 { return p.hash }

// isEndpoint says whether Pod rules may guard or name the Pod. A Pod on the
// host's network is its Node's traffic; a finished one has given its
// addresses back.
func isEndpoint(p *api.Pod) bool {
	return p != nil && !p.HostNetwork && !p.Finished && p.Node != "" && len(p.IPs) > 0
}

func (e *Engine) applyPod(ref api.Ref, obj *api.Pod) {
	h := hashString(e.seed, ref.Name)
	var p *pod
	ns := e.findNamespace(ref.Namespace)
	if ns != nil {
		p, _ = ns.pods.find(h, func(p *pod) bool { return p.obj.Name == ref.Name })
	}
	if !isEndpoint(obj) {
		if p != nil && p.class != nil {
			e.touchPod(p)
			e.move(p, nil, nil)
		}
		return
	}
	if p == nil {
		if ns == nil {
			ns = e.namespace(ref.Namespace)
		}
		p = &pod{ns: ns, obj: obj, key: storage.PodKey(ref.Namespace, ref.Name), hash: h}
		ns.pods.add(p)
	}
	e.touchPod(p)
	from := p.class
	same := slices.Equal(p.obj.IPs, obj.IPs) && slices.Equal(p.obj.Ports, obj.Ports)
	p.obj = obj
	if !same {
		p.member = ""
	}
	c, n := from, p.node
	if c == nil || !c.shape.is(obj) {
		c = e.class(p.ns, obj)
	}
	if from == nil || n.name != obj.Node {
		n = e.node(obj.Node)
	}
	if c != from || n != p.node {
		e.move(p, c, n)
	}
	if !same && from != nil {
		for _, g := range c.groups.items {
			e.touchMember(g, p)
		}
	}
}

// move makes a Pod an endpoint of another class or node; nil for none. What it
// joins is counted before what it leaves, so that nothing that is in both ends
// and begins again.
func (e *Engine) move(p *pod, c *class, n *node) {
	from, at := p.class, p.node
	if c != nil {
		if n.pods++; n.pods == 1 {
			e.touchNode(n)
		}
		for _, g := range c.groups.items {
			e.gain(g, n)
			if from == nil || from != c && !from.groups.has(g) {
				e.touchMember(g, p)
			} else if at != n {
				e.touchBacker(g, p)
			}
		}
	}
	if from != nil {
		for _, g := range from.groups.items {
			e.lose(g, at)
			if c == nil || from != c && !c.groups.has(g) {
				e.touchMember(g, p)
			}
		}
		if at.pods--; at.pods == 0 {
			e.touchNode(at)
		}
		if p.shown && at != n {
			e.pending.left = append(e.pending.left, podAt{p, at})
			p.shown = false
		}
	}
	p.class = c
	if c != nil {
		p.node = n
	}
	if c == from {
		return
	}
	if c != nil {
		c.pods.add(p)
	}
	if from != nil {
		from.pods.remove(p)
		e.releaseClass(from)
	}
}

// in says whether the Pod is an endpoint that a group selects.
func (p *pod) in(g *group) bool { return p.class != nil && p.class.groups.has(g) }

func (e *Engine) touchPod(p *pod) {
	if !p.touched {
		p.touched = true
		e.pending.pods = append(e.pending.pods, p)
	}
}

// member is a Pod's item in every address group, encoded once.
func (e *Engine) member(p *pod) storage.Encoded {
	if p.member == "" {
		p.member = string(e.encoder.member(p.obj))
	}
	return storage.Encoded{Key: p.key, Body: p.member}
}
