package differential

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
)

var (
	serviceNames     = []string{"s0", "s1"}
	servicePortNames = []string{"web", "db", "extra"}
	zoneNames        = []string{"east", "west"}
)

// serviceObject is a Service of any sort. Its ClusterIPs and its ports on nodes
// are no other's.
func (g *generator) serviceObject() Object {
	o := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}}
	n, s := g.IntN(len(g.namespaces)), g.IntN(len(serviceNames))
	o.Namespace, o.Name = g.namespaces[n], serviceNames[s]
	o.Spec.Selector = g.serviceSelector(o.Namespace)
	four, six := fmt.Sprintf("10.96.%d.%d", n, s+1), fmt.Sprintf("fd00:96::%x:%x", n, s+1)
	o.Spec.ClusterIPs = one(g, []string{four, six}, []string{four, six}, []string{six, four}, []string{four}, []string{six})
	switch g.IntN(12) {
	case 11:
		o.Spec.Type, o.Spec.ExternalName, o.Spec.ClusterIPs = corev1.ServiceTypeExternalName, "elsewhere.example.com", nil
	case 10:
		o.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
	case 7, 8:
		o.Spec.Type = corev1.ServiceTypeNodePort
	case 9:
		o.Spec.Type = corev1.ServiceTypeLoadBalancer
	}
	if g.chance(25) {
		o.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}
	if g.chance(15) {
		o.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
	}
	for i := range 1 + g.IntN(len(servicePortNames)) {
		p := corev1.ServicePort{Name: servicePortNames[i], Protocol: one(g, append(protocols, "")...), Port: int32(80 + i)}
		switch g.IntN(7) {
		case 0:
			p.TargetPort = intstr.FromInt32(one(g, portNumbers...))
		case 1:
			p.TargetPort = intstr.FromString(one(g, portNames...))
		}
		if o.Spec.Type == corev1.ServiceTypeNodePort || o.Spec.Type == corev1.ServiceTypeLoadBalancer {
			p.NodePort = int32(30000 + 100*n + 10*s + i)
		}
		o.Spec.Ports = append(o.Spec.Ports, p)
	}
	return o
}

// serviceSelector is any, or one that selects some Pod.
func (g *generator) serviceSelector(namespace string) map[string]string {
	pods := slices.DeleteFunc(g.pods(), func(p *corev1.Pod) bool { return p.Namespace != namespace || len(p.Labels) == 0 || !networked(p) })
	if len(pods) == 0 || g.chance(10) {
		return g.labels()
	}
	pod := one(g, pods...)
	for _, key := range labelKeys {
		if v, has := pod.Labels[key]; has {
			return map[string]string{key: v}
		}
	}
	return nil
}

// sliceObject is an EndpointSlice of some Service, which need not be there.
func (g *generator) sliceObject() Object {
	o := &discoveryv1.EndpointSlice{TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}}
	ref := api.Ref{Kind: api.KindService, Namespace: one(g, g.namespaces...), Name: one(g, serviceNames...)}
	if refs := g.refs(api.KindService); len(refs) > 0 {
		ref = one(g, refs...)
	}
	o.Namespace, o.Name = ref.Namespace, fmt.Sprintf("%s-%d", ref.Name, g.IntN(2))
	o.Labels = map[string]string{discoveryv1.LabelServiceName: ref.Name}
	o.AddressType = one(g, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)
	if svc, is := g.objects[ref].(*corev1.Service); is {
		if ips := api.FromService(svc).ClusterIPs; len(ips) == 1 && ips[0].Is6() {
			o.AddressType = discoveryv1.AddressTypeIPv6
		}
		for _, p := range svc.Spec.Ports {
			if !g.chance(10) {
				o.Ports = append(o.Ports, discoveryv1.EndpointPort{Name: ptr(p.Name), Protocol: ptr(orTCP(p.Protocol)), Port: ptr(one(g, portNumbers...))})
			}
		}
	}
	hinted := g.chance(50)
	for range 5 - g.IntN(6) {
		if e, ok := g.sliceEndpoint(o.AddressType == discoveryv1.AddressTypeIPv4, hinted); ok {
			o.Endpoints = append(o.Endpoints, e)
		}
	}
	return o
}

func orTCP(p corev1.Protocol) corev1.Protocol {
	if p == "" {
		return corev1.ProtocolTCP
	}
	return p
}

// sliceEndpoint is at a Pod's address, or at any.
func (g *generator) sliceEndpoint(four, hinted bool) (e discoveryv1.Endpoint, ok bool) {
	is := func(a netip.Addr) bool { return a.Is4() == four }
	var addrs []netip.Addr
	if pods := g.pods(); len(pods) > 0 && !g.chance(20) {
		pod := one(g, pods...)
		addrs = podAddresses(pod)
		if pod.Spec.NodeName != "" && !g.chance(10) {
			e.NodeName = ptr(pod.Spec.NodeName)
		}
	} else {
		addrs = g.addresses()
	}
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !is(a) })
	if len(addrs) == 0 {
		return e, false
	}
	e.Addresses = []string{one(g, addrs...).String()}
	switch g.IntN(8) {
	case 4, 5:
		e.Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}
	case 6:
		e.Conditions.Ready = ptr(false)
	case 7:
		e.Conditions = discoveryv1.EndpointConditions{Ready: ptr(true), Terminating: ptr(true)}
	}
	if hinted && !g.chance(10) {
		e.Hints = &discoveryv1.EndpointHints{}
		for range 1 + g.IntN(2) {
			e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: one(g, zoneNames...)})
		}
		if g.chance(40) {
			e.Hints.ForNodes = []discoveryv1.ForNode{{Name: one(g, g.nodes...)}}
		}
	}
	return e, true
}

// balanced are the Services that have ClusterIPs.
func (g *generator) balanced() (list []*corev1.Service) {
	for _, ref := range g.refs(api.KindService) {
		if svc := g.objects[ref].(*corev1.Service); api.FromService(svc).Balanced() {
			list = append(list, svc)
		}
	}
	return list
}

// toService are a Pod's connections to a Service: now and then to a port that is
// none of its, and of some clients two.
func (g *generator) toService(pod end, services []*corev1.Service) (list []evaluate.Connection) {
	svc := one(g, services...)
	ips := slices.DeleteFunc(slices.Clone(api.FromService(svc).ClusterIPs), func(a netip.Addr) bool { return a.Is4() != pod.Addr.Is4() })
	if len(ips) == 0 {
		return nil
	}
	p := one(g, api.FromService(svc).Ports...)
	c := evaluate.Connection{From: pod.Endpoint, To: evaluate.Endpoint{Namespace: svc.Namespace, Service: svc.Name, Addr: ips[0]}, Protocol: p.Protocol, Port: p.Port}
	if g.chance(5) {
		c.Port++
	}
	for range 1 + g.IntN(2) {
		c.SourcePort = g.lastPort
		g.lastPort++
		list = append(list, c)
	}
	return list
}

// toNodePort is a connection of anyone to a port that a Service has on every node.
func (g *generator) toNodePort(e *ends, services []*corev1.Service) (c evaluate.Connection, ok bool) {
	var ports []api.ServicePort
	for _, svc := range services {
		ports = append(ports, api.FromService(svc).Ports...)
	}
	ports = slices.DeleteFunc(ports, func(p api.ServicePort) bool { return p.NodePort == 0 })
	if len(ports) == 0 {
		return c, false
	}
	p := one(g, ports...)
	nodes := slices.DeleteFunc(slices.Clone(e.hosts), func(h end) bool { return h.Node == "" })
	if len(nodes) == 0 {
		return c, false
	}
	to := one(g, nodes...)
	from := one(g, slices.Concat(e.pods, e.hosts, e.world, e.world)...)
	c = evaluate.Connection{From: from.Endpoint, To: to.Endpoint, Protocol: p.Protocol, Port: p.NodePort, SourcePort: g.lastPort}
	g.lastPort++
	return c, from.Addr.Is4() == to.Addr.Is4()
}
