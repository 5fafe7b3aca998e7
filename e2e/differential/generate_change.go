package differential

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/weirnet/weir/services/policy/api"
)

// change is what a later step does.
func (g *generator) change() []Event {
	var events []Event
	for range 1 + g.IntN(4) {
		if pods := g.pods(); len(pods) > 0 {
			events = append(events, g.changeOne(pods)...)
			continue
		}
		events = append(events, g.apply(set(g.pod(one(g, g.namespaces...), "p0"))))
	}
	return events
}

// refsAfter are the objects of the kinds that came after one, and Services
// with their slices: ordered policies and what they name.
func (g *generator) refsAfter(kind api.Kind) []api.Ref {
	refs := append(g.refs(api.KindService), g.refs(api.KindEndpointSlice)...)
	for k := kind + 1; k <= api.KindGroup; k++ {
		refs = append(refs, g.refs(k)...)
	}
	return refs
}

// changeOne is one thing that happens, if anything.
func (g *generator) changeOne(pods []*corev1.Pod) (events []Event) {
	do := func(e Event) { events = append(events, g.apply(e)) }
	pod := func() *corev1.Pod { return one(g, pods...) }
	switch g.IntN(30) {
	case 26:
		do(set(one(g, g.serviceObject, func() Object { return g.nodePortPolicy("ports-0") }, func() Object { return g.hostPolicy("hosts-0") })()))
	case 27, 28:
		do(set(g.sliceObject()))
	case 29:
		if refs := append(g.refs(api.KindService), g.refs(api.KindEndpointSlice)...); len(refs) > 0 {
			do(Event{Ref: one(g, refs...)})
		}
	case 20, 21:
		do(set(g.orderedPolicy()))
	case 22, 23:
		do(set(g.referent()))
	case 24, 25:
		if refs := g.refsAfter(api.KindNetworkPolicy); len(refs) > 0 {
			do(Event{Ref: one(g, refs...)})
		}
	case 0, 1, 2:
		do(set(g.policy(one(g, g.namespaces...), fmt.Sprint("np", g.IntN(6)))))
	case 3:
		if refs := g.refs(api.KindNetworkPolicy); len(refs) > 0 {
			do(Event{Ref: one(g, refs...)})
		}
	case 4:
		do(set(g.namespace(one(g, g.namespaces...))))
	case 5:
		do(Event{Ref: api.Ref{Kind: api.KindNamespace, Name: one(g, g.namespaces...)}})
	case 6:
		do(set(g.node(g.IntN(len(g.nodes)))))
	case 7:
		do(Event{Ref: api.Ref{Kind: api.KindNode, Name: one(g, g.nodes...)}})
	case 8:
		p := pod()
		do(Event{Ref: refOf(p)})
		if g.chance(70) {
			delete(g.ports, podOf(p))
		}
	case 9: // Other labels on the same Pod.
		p := pod().DeepCopy()
		p.Labels = g.labels()
		do(set(p))
	case 10:
		events = g.handOver(pod().DeepCopy())
	case 11, 12: // A Pod is new, or quite another.
		p := g.pod(one(g, g.namespaces...), fmt.Sprint("p", g.IntN(maxPods)))
		do(set(p))
		if g.chance(80) {
			g.attach(p)
		}
	case 13, 14, 15: // Something has one thing less.
		refs := append(g.refs(api.KindNetworkPolicy), g.refs(api.KindPod)...)
		refs = append(refs, g.refsAfter(api.KindNetworkPolicy)...)
		less := slices.Collect(reduce(g.objects[one(g, refs...)]))
		if len(less) == 0 {
			return nil
		}
		if o := one(g, less...); valid(o) {
			do(set(o))
		}
	case 16, 17: // Something is as it was before.
		if len(g.former) == 0 {
			return nil
		}
		o := one(g, g.former...)
		if p, ok := o.(*corev1.Pod); !ok || !networked(p) || !g.contested(p, false) {
			do(set(o))
		}
	case 18: // Two ports are mixed up.
		p, q := podOf(pod()), podOf(pod())
		if a, b := g.ports[p], g.ports[q]; a.Node == b.Node && a.Node != "" {
			g.ports[p], g.ports[q] = b, a
		}
	default:
		p := pod()
		delete(g.ports, podOf(p))
		if g.chance(60) {
			g.attach(p)
		}
	}
	return events
}

// handOver ends a Pod, perhaps without saying so yet, and gives its address to
// another.
func (g *generator) handOver(p *corev1.Pod) []Event {
	was := networked(p)
	if delete(g.ports, podOf(p)); g.chance(70) {
		p.Status.Phase = one(g, corev1.PodSucceeded, corev1.PodFailed)
	}
	heir := g.pod(one(g, g.namespaces...), fmt.Sprint("p", g.IntN(maxPods)))
	heir.Spec.NodeName, heir.Status.PodIPs = p.Spec.NodeName, p.Status.PodIPs
	if !was || heir.Spec.HostNetwork || refOf(p) == refOf(heir) {
		return nil
	}
	events := []Event{g.apply(set(p)), g.apply(set(heir))}
	g.attach(heir)
	return events
}

func valid(o Object) bool {
	_, err := Convert(o)
	return err == nil
}

// contested tells whether another running Pod, or another that has a port, has
// one of a Pod's addresses.
func (g *generator) contested(p *corev1.Pod, withPort bool) bool {
	for _, other := range g.pods() {
		if _, attached := g.ports[podOf(other)]; refOf(other) == refOf(p) || !networked(other) || withPort && !attached {
			continue
		}
		if slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { return slices.Contains(other.Status.PodIPs, ip) }) {
			return true
		}
	}
	return false
}
