package differential

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
	"github.com/weirnet/weir/services/policy/evaluate"
)

func compareRefs(a, b api.Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// sorted are the objects that are there, by Ref.
func (g *generator) sorted() []Object {
	refs := slices.SortedFunc(maps.Keys(g.objects), compareRefs)
	list := make([]Object, len(refs))
	for i, ref := range refs {
		list[i] = g.objects[ref]
	}
	return list
}

// ends are who can take part in a connection.
type ends struct {
	pods  []end
	hosts []end // Nodes, and Pods on their network.
	world []end
}

type end struct {
	evaluate.Endpoint
	node string
}

func (g *generator) ends() ends {
	var e ends
	used := map[netip.Addr]bool{}
	for _, o := range g.sorted() {
		switch o := o.(type) {
		case *corev1.Node:
			for _, a := range hostAddresses(o) {
				used[a] = true
				e.hosts = append(e.hosts, end{evaluate.Endpoint{Node: o.Name, Addr: a}, o.Name})
			}
		case *corev1.Pod:
			for _, a := range podAddresses(o) {
				at := end{evaluate.Endpoint{Namespace: o.Namespace, Pod: o.Name, Addr: a}, o.Spec.NodeName}
				switch _, attached := g.ports[podOf(o)]; {
				case o.Spec.HostNetwork:
					used[a] = true
					e.hosts = append(e.hosts, at)
				case networked(o) && (attached || g.chance(40) && !g.contested(o, true)):
					e.pods = append(e.pods, at)
				}
				if networked(o) {
					used[a] = true
				}
			}
		}
	}
	for _, a := range outside {
		e.world = append(e.world, end{Endpoint: evaluate.Endpoint{Addr: a}})
	}
	for _, a := range g.addresses() { // What was somebody's and is nobody's.
		if !used[a] && !slices.Contains(outside, a) {
			used[a] = true
			e.world = append(e.world, end{Endpoint: evaluate.Endpoint{Addr: a}})
		}
	}
	return e
}

// probes are connections that pass a bridge, to and from Pods; some that are
// tried do not come about.
func (g *generator) probes(number int) []evaluate.Connection {
	e := g.ends()
	if len(e.pods) == 0 {
		return nil
	}
	services, balanced := g.services(), g.balanced()
	var list []evaluate.Connection
	for range number {
		pod := one(g, e.pods...)
		if len(balanced) > 0 && g.chance(30) {
			list = append(list, g.toService(pod, balanced)...)
			continue
		}
		if len(balanced) > 0 && g.chance(12) {
			if c, ok := g.toNodePort(&e, balanced); ok {
				list = append(list, c)
			}
			continue
		}
		others := e.pods
		switch g.IntN(10) {
		case 6, 7:
			if len(e.hosts) > 0 {
				others = e.hosts
			}
		case 8, 9:
			others = e.world
		}
		other := one(g, others...)
		for range 3 {
			if other.Addr.Is4() == pod.Addr.Is4() && other.Endpoint != pod.Endpoint {
				break
			}
			other = one(g, others...)
		}
		if other.Addr.Is4() != pod.Addr.Is4() || (other.Pod == pod.Pod && other.Namespace == pod.Namespace) {
			continue
		}
		c := evaluate.Connection{From: pod.Endpoint, To: other.Endpoint}
		if g.chance(50) {
			c.From, c.To = c.To, c.From
		}
		c.Protocol, c.Port = g.service(services)
		c.SourcePort = g.lastPort
		g.lastPort++
		list = append(list, c)
	}
	return list
}

func (g *generator) service(services []service) (api.Protocol, uint16) {
	switch g.IntN(12) {
	case 11:
		return api.ProtocolICMP, 0
	case 9, 10:
		return one(g, api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP), uint16(1 + g.IntN(1<<16-1))
	}
	s := one(g, services...)
	port := int(s.port) + one(g, 0, 0, 0, 0, -1, 1)
	if g.chance(15) {
		s.protocol = one(g, api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP)
	}
	return s.protocol, uint16(min(max(port, 1), 65535))
}

type service struct {
	protocol api.Protocol
	port     uint16
}

// services are those that rules and containers name.
func (g *generator) services() []service {
	list := []service{{api.ProtocolTCP, 80}}
	add := func(p corev1.Protocol, port int32) {
		protocol := map[corev1.Protocol]api.Protocol{corev1.ProtocolUDP: api.ProtocolUDP, corev1.ProtocolSCTP: api.ProtocolSCTP}[p]
		if protocol == 0 {
			protocol = api.ProtocolTCP
		}
		list = append(list, service{protocol, uint16(port)})
	}
	rule := func(ports []networkingv1.NetworkPolicyPort) {
		for _, p := range ports {
			var protocol corev1.Protocol
			if p.Protocol != nil {
				protocol = *p.Protocol
			}
			if p.Port != nil && p.Port.Type == intstr.Int {
				add(protocol, p.Port.IntVal)
			}
			if p.EndPort != nil {
				add(protocol, *p.EndPort)
			}
		}
	}
	antrea := func(spec antreav1beta1.PolicySpec) {
		for _, r := range slices.Concat(spec.Ingress, spec.Egress) {
			for _, p := range r.Ports {
				rule([]networkingv1.NetworkPolicyPort{{Protocol: p.Protocol, Port: p.Port, EndPort: p.EndPort}})
			}
		}
	}
	for _, o := range g.sorted() {
		switch o := o.(type) {
		case *corev1.Pod:
			for _, c := range slices.Concat(o.Spec.Containers, o.Spec.InitContainers) {
				for _, p := range c.Ports {
					add(p.Protocol, p.ContainerPort)
				}
			}
		case *corev1.Service:
			for _, p := range o.Spec.Ports {
				if p.TargetPort.Type == intstr.Int {
					add(p.Protocol, p.TargetPort.IntVal)
				}
			}
		case *discoveryv1.EndpointSlice:
			for _, p := range api.FromEndpointSlice(o).Ports {
				list = append(list, service{p.Protocol, p.Port})
			}
		case *antreav1beta1.NetworkPolicy:
			antrea(o.Spec)
		case *antreav1beta1.ClusterNetworkPolicy:
			antrea(o.Spec)
		case *networkingv1.NetworkPolicy:
			for _, r := range o.Spec.Ingress {
				rule(r.Ports)
			}
			for _, r := range o.Spec.Egress {
				rule(r.Ports)
			}
		}
	}
	return list
}
