package differential

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/services/policy/api"
)

// policy is a NetworkPolicy of any form that validation lets through.
func (g *generator) policy(namespace, name string) *networkingv1.NetworkPolicy {
	o := &networkingv1.NetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}}
	o.Namespace, o.Name = namespace, name
	if g.chance(12) {
		o.Annotations = map[string]string{api.AnnotationEnforcement: one(g, "staged", "staged", "enforced")}
	}
	o.Spec.PodSelector = g.selector(false)
	o.Spec.PolicyTypes = one(g,
		nil,
		[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeIngress},
	)
	for range g.IntN(4) {
		o.Spec.Ingress = append(o.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{Ports: g.rulePorts(), From: g.rulePeers()})
	}
	for range g.IntN(4) {
		o.Spec.Egress = append(o.Spec.Egress, networkingv1.NetworkPolicyEgressRule{Ports: g.rulePorts(), To: g.rulePeers()})
	}
	return o
}

// selector is a label selector with any operators; of Namespaces, also by name.
func (g *generator) selector(ofNamespaces bool) metav1.LabelSelector {
	key := func() (string, []string) {
		if ofNamespaces && g.chance(30) {
			return one(g, api.LabelNamespaceName, api.LabelAntreaNamespaceName), namespaceNames
		}
		return one(g, labelKeys...), labelValues
	}
	var s metav1.LabelSelector
	labels, expressions := 0, 0
	switch g.IntN(8) {
	case 0, 1:
	case 2, 3, 4:
		labels = 1 + g.IntN(2)
	case 5, 6:
		expressions = 1 + g.IntN(2)
	case 7:
		labels, expressions = 1, 1
	}
	for range labels {
		k, values := key()
		if s.MatchLabels == nil {
			s.MatchLabels = map[string]string{}
		}
		s.MatchLabels[k] = one(g, values...)
	}
	for range expressions {
		k, values := key()
		r := metav1.LabelSelectorRequirement{Key: k, Operator: one(g,
			metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
		if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
			for range 1 + g.IntN(3) { // Also the same value twice.
				r.Values = append(r.Values, one(g, values...))
			}
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return s
}

func (g *generator) rulePorts() []networkingv1.NetworkPolicyPort {
	if g.chance(10) {
		return []networkingv1.NetworkPolicyPort{}
	}
	var out []networkingv1.NetworkPolicyPort
	for range g.IntN(4) {
		var p networkingv1.NetworkPolicyPort
		if protocol := one(g, append(protocols, "")...); protocol != "" {
			p.Protocol = &protocol
		}
		switch g.IntN(8) {
		case 0, 1, 2:
			n := intstr.FromInt32(one(g, portNumbers...))
			p.Port = &n
		case 3, 4, 5:
			n := intstr.FromString(one(g, portNames...))
			p.Port = &n
		case 6:
			first := one(g, portNumbers...)
			n, last := intstr.FromInt32(first), min(first+int32(g.IntN(9)*g.IntN(200)), 65535)
			p.Port, p.EndPort = &n, &last
		case 7: // A protocol's every port.
		}
		out = append(out, p)
	}
	return out
}

func (g *generator) rulePeers() []networkingv1.NetworkPolicyPeer {
	if g.chance(10) {
		return []networkingv1.NetworkPolicyPeer{}
	}
	var out []networkingv1.NetworkPolicyPeer
	for range g.IntN(4) {
		var p networkingv1.NetworkPolicyPeer
		kind := g.IntN(8)
		if kind == 0 || kind == 1 || kind == 4 {
			s := g.selector(false)
			p.PodSelector = &s
		}
		if kind == 2 || kind == 3 || kind == 4 {
			s := g.selector(true)
			p.NamespaceSelector = &s
		}
		if kind >= 5 {
			p.IPBlock = g.ipBlock()
		}
		out = append(out, p)
	}
	return out
}

// ipBlock is a block around an address that matters, with exceptions that hold
// other such addresses, or each other.
func (g *generator) ipBlock() *networkingv1.IPBlock {
	addr := one(g, g.addresses()...)
	if pods := g.pods(); len(pods) > 0 && g.chance(50) {
		if list := podAddresses(one(g, pods...)); len(list) > 0 {
			addr = one(g, list...)
		}
	}
	cidr := netip.PrefixFrom(addr, g.length(addr, 0))
	b := &networkingv1.IPBlock{CIDR: cidr.Masked().String()}
	if g.chance(10) {
		b.CIDR = cidr.String() // Host bits are cleared by who reads it.
	}
	if cidr.Bits() == addr.BitLen() {
		return b
	}
	var inside []netip.Addr
	for _, a := range g.addresses() {
		if cidr.Contains(a) {
			inside = append(inside, a)
		}
	}
	for range g.IntN(4) {
		a := one(g, inside...)
		b.Except = append(b.Except, netip.PrefixFrom(a, g.length(a, cidr.Bits()+1)).Masked().String())
	}
	return b
}

// length is a prefix length of an address's family from a least one on.
func (g *generator) length(a netip.Addr, least int) int {
	likely := []int{0, 8, 16, 24, 26, 28, 29, 30, 31, 32}
	if a.Is6() {
		likely = []int{0, 3, 16, 32, 48, 64, 120, 124, 125, 126, 127, 128}
	}
	return max(least, min(one(g, likely...), a.BitLen()))
}

// addresses are all that some object or connection may have.
func (g *generator) addresses() []netip.Addr {
	list := append([]netip.Addr{}, outside...)
	for _, o := range g.sorted() {
		switch o := o.(type) {
		case *corev1.Node:
			list = append(list, hostAddresses(o)...)
		case *corev1.Pod:
			list = append(list, podAddresses(o)...)
		}
	}
	return list
}

func podAddresses(o *corev1.Pod) []netip.Addr { return api.FromPod(o).IPs }

func hostAddresses(o *corev1.Node) []netip.Addr {
	n := api.FromNode(o)
	return append(append(append([]netip.Addr{}, n.Addresses...), n.Gateways...), n.Transport...)
}
