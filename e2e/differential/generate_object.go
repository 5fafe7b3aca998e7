package differential

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/services/policy/api"
)

func (g *generator) labels() map[string]string {
	m := map[string]string{}
	for range g.IntN(4) {
		m[one(g, labelKeys...)] = one(g, labelValues...)
	}
	return m
}

func (g *generator) namespace(name string) *corev1.Namespace {
	o := &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}}
	o.Name, o.Labels = name, g.labels()
	if g.chance(20) {
		o.Annotations = map[string]string{api.AnnotationLogPolicies: "true"}
	}
	return o
}

func (g *generator) node(i int) *corev1.Node {
	o := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}}
	o.Name, o.Labels = g.nodes[i], g.labels()
	four, six := fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("fd00:ff::%d", i+1)
	for _, a := range one(g, []string{four, six}, []string{four}, []string{six}, []string{}) {
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	o.Spec.PodCIDRs = one(g, nil, []string{fmt.Sprintf("10.244.%d.0/24", i+1), fmt.Sprintf("fd00:%d::/64", i+1)}, []string{fmt.Sprintf("10.244.%d.0/24", i+1)})
	if zone := one(g, append(zoneNames, "")...); zone != "" {
		o.Labels[corev1.LabelTopologyZone] = zone
	}
	if g.chance(15) {
		o.Annotations = map[string]string{one(g, api.AnnotationGateways, api.AnnotationTransport, api.AnnotationAntreaTransport): fmt.Sprintf("10.244.%d.2, fd00:%d::2", i+1, i+1)}
	}
	return o
}

// pod is a Pod of any sort. A running one has addresses that no other running
// Pod has.
func (g *generator) pod(namespace, name string) *corev1.Pod {
	o := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}}
	o.Namespace, o.Name, o.Labels = namespace, name, g.labels()
	i := g.IntN(len(g.nodes))
	o.Spec.NodeName = g.nodes[i]
	if g.chance(25) {
		o.Spec.ServiceAccountName = one(g, accountNames...)
	}
	g.containers(o)
	o.Status.Phase = corev1.PodRunning
	mine := g.IntN(24)
	switch g.IntN(20) {
	case 17:
		o.Status.Phase = corev1.PodPending
		if g.chance(50) {
			o.Spec.NodeName = ""
		}
		return o
	case 18:
		o.Status.Phase = one(g, corev1.PodSucceeded, corev1.PodFailed)
	case 19:
		o.Spec.HostNetwork = true
		if node, ok := g.objects[api.Ref{Kind: api.KindNode, Name: o.Spec.NodeName}].(*corev1.Node); ok && g.chance(80) {
			for _, a := range node.Status.Addresses {
				o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: a.Address})
			}
		}
		return o
	default:
		taken := g.taken(refOf(o))
		for taken[hostPart(i, mine, false)] || taken[hostPart(i, mine, true)] {
			mine = (mine + 1) % 24
		}
	}
	switch g.IntN(6) {
	case 5:
		o.Status.PodIPs = []corev1.PodIP{{IP: hostPart(i, mine, true)}}
	case 3, 4:
		o.Status.PodIPs = []corev1.PodIP{{IP: hostPart(i, mine, false)}, {IP: hostPart(i, mine, true)}}
	case 2:
		o.Status.PodIPs = []corev1.PodIP{{IP: hostPart(i, mine, true)}, {IP: hostPart(i, mine, false)}}
	default:
		o.Status.PodIPs = []corev1.PodIP{{IP: hostPart(i, mine, false)}}
	}
	return o
}

// hostPart is one of the addresses that Pods of a node have.
func hostPart(node, host int, six bool) string {
	if six {
		return fmt.Sprintf("fd00:%d::%x", node+1, host+10)
	}
	return fmt.Sprintf("10.244.%d.%d", node+1, host+10)
}

// taken are the addresses of running Pods but one.
func (g *generator) taken(but api.Ref) map[string]bool {
	m := map[string]bool{}
	for _, p := range g.pods() {
		if refOf(p) != but && networked(p) {
			for _, ip := range p.Status.PodIPs {
				m[ip.IP] = true
			}
		}
	}
	return m
}

// networked reports whether a Pod has a place in the Pod network.
func networked(p *corev1.Pod) bool {
	return !p.Spec.HostNetwork && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && len(p.Status.PodIPs) > 0
}

// containers gives a Pod ports: with and without a name, of one name by several
// numbers and protocols, in init containers too.
func (g *generator) containers(o *corev1.Pod) {
	o.Spec.Containers = []corev1.Container{{Name: "main"}}
	for i := range g.IntN(5) {
		port := corev1.ContainerPort{ContainerPort: one(g, portNumbers...), Protocol: one(g, append(protocols, "")...)}
		if !g.chance(15) {
			port.Name = one(g, portNames...)
		}
		c := corev1.Container{Name: fmt.Sprint("c", i), Ports: []corev1.ContainerPort{port}}
		if g.chance(20) {
			o.Spec.InitContainers = append(o.Spec.InitContainers, c)
		} else {
			o.Spec.Containers = append(o.Spec.Containers, c)
		}
	}
}
