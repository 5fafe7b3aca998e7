package differential

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	anpv1alpha1 "sigs.k8s.io/network-policy-api/apis/v1alpha1"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/adminv1alpha2"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

var (
	groupNames   = []string{"g0", "g1", "g2", "g3"}
	accountNames = []string{"default", "robot"}
	tierNames    = []string{"", "Emergency", "securityops", "baseline", "mine", "yours"}
)

// orderedPolicy is a policy of any kind whose rules have an order.
func (g *generator) orderedPolicy() Object {
	name := fmt.Sprint("op", g.IntN(5))
	switch g.IntN(8) {
	case 0:
		return g.adminPolicy(name)
	case 1:
		return g.baseline()
	case 2:
		return g.clusterPolicy(name)
	case 3, 4:
		o := &antreav1beta1.NetworkPolicy{TypeMeta: antreaMeta("NetworkPolicy"), Spec: g.antreaSpec(true)}
		o.Namespace = one(g, g.namespaces...)
		g.policyMeta(o, name)
		return o
	}
	o := &antreav1beta1.ClusterNetworkPolicy{TypeMeta: antreaMeta("ClusterNetworkPolicy"), Spec: g.antreaSpec(false)}
	g.policyMeta(o, name)
	return o
}

func antreaMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: antreav1beta1.APIVersion, Kind: kind}
}

// policyMeta names a policy, and gives it an age and annotations, or not.
func (g *generator) policyMeta(o Object, name string) {
	o.SetName(name)
	if g.chance(30) {
		o.SetCreationTimestamp(metav1.Unix(int64(1700000000+g.IntN(3)), 0))
	}
	if g.chance(10) {
		o.SetAnnotations(map[string]string{api.AnnotationEnforcement: one(g, "staged", "staged", "enforced")})
	}
}

func (g *generator) tier() Object {
	o := &antreav1beta1.Tier{TypeMeta: antreaMeta("Tier")}
	o.Name, o.Spec.Priority = one(g, "mine", "yours"), int32(one(g, 7, 120, 249))
	return o
}

func (g *generator) groupObject() Object {
	name := one(g, groupNames...)
	if g.chance(40) {
		o := &antreav1beta1.Group{TypeMeta: antreaMeta("Group"), Spec: g.groupSpec(name)}
		o.Name, o.Namespace = name, one(g, g.namespaces...)
		return o
	}
	o := &antreav1beta1.ClusterGroup{TypeMeta: antreaMeta("ClusterGroup"), Spec: g.groupSpec(name)}
	o.Name = name
	return o
}

func (g *generator) groupSpec(name string) (s antreav1beta1.GroupSpec) {
	switch g.IntN(8) {
	case 0:
		s.IPBlock = g.antreaBlock()
	case 1:
		for range 1 + g.IntN(3) {
			s.IPBlocks = append(s.IPBlocks, *g.antreaBlock())
		}
	case 2:
		s.ServiceReference = g.serviceName()
	case 3:
		for _, child := range groupNames {
			if child != name && g.chance(60) {
				s.ChildGroups = append(s.ChildGroups, child)
			}
		}
	case 4:
		s.NamespaceSelector = g.optional(true)
	case 5:
		s.NamespaceSelector, s.PodSelector = g.optional(true), g.optional(false)
	default:
		s.PodSelector = g.optional(false)
	}
	return s
}

func (g *generator) optional(ofNamespaces bool) *metav1.LabelSelector {
	s := g.selector(ofNamespaces)
	return &s
}

// antreaSpec is that of a policy of a Namespace, or of the cluster.
func (g *generator) antreaSpec(namespaced bool) (s antreav1beta1.PolicySpec) {
	s.Tier = one(g, tierNames...)
	priority := one(g, 1, 1.5, 2, 10000)
	s.Priority = &priority
	if !namespaced && g.chance(6) { // For Nodes, which are not judged here: it must not leak to Pods.
		s.AppliedTo = []antreav1beta1.AppliedTo{{NodeSelector: g.optional(false)}}
		s.Ingress = []antreav1beta1.Rule{{Action: ptr("Drop"), Name: "n"}}
		return s
	}
	if g.chance(10) { // For Services, and for all their clients.
		s.AppliedTo = []antreav1beta1.AppliedTo{{PodSelector: &metav1.LabelSelector{}}}
		for i := range 1 + g.IntN(2) {
			s.Egress = append(s.Egress, g.serviceRule(i, s.Tier))
		}
		return s
	}
	perRule := g.chance(30)
	if !perRule {
		s.AppliedTo = g.appliedTo(namespaced)
	}
	for i := range g.IntN(4) {
		s.Ingress = append(s.Ingress, g.antreaRule(namespaced, false, perRule, i, s.Tier))
	}
	for i := range g.IntN(4) {
		s.Egress = append(s.Egress, g.antreaRule(namespaced, true, perRule, i, s.Tier))
	}
	if perRule && len(s.Ingress)+len(s.Egress) == 0 {
		s.AppliedTo = g.appliedTo(namespaced)
	}
	return s
}

func ptr[T any](v T) *T { return &v }

func (g *generator) appliedTo(namespaced bool) (list []antreav1beta1.AppliedTo) {
	for range 1 + g.IntN(2) {
		var a antreav1beta1.AppliedTo
		switch n := g.IntN(10); {
		case n == 0:
			a.Group = one(g, groupNames...)
		case n == 1 && !namespaced:
			a.ServiceAccount = g.account()
		case namespaced, n < 4:
			a.PodSelector = g.optional(false)
		case n < 8:
			a.NamespaceSelector = g.optional(true)
		default:
			a.NamespaceSelector, a.PodSelector = g.optional(true), g.optional(false)
		}
		list = append(list, a)
	}
	return list
}

func (g *generator) account() *antreav1beta1.NamespacedName {
	return &antreav1beta1.NamespacedName{Namespace: one(g, g.namespaces...), Name: one(g, accountNames...)}
}

// serviceName names a Service, most often one that is there.
func (g *generator) serviceName() *antreav1beta1.NamespacedName {
	if refs := g.refs(api.KindService); len(refs) > 0 && g.chance(80) {
		ref := one(g, refs...)
		return &antreav1beta1.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}
	}
	return &antreav1beta1.NamespacedName{Namespace: one(g, g.namespaces...), Name: one(g, serviceNames...)}
}

// nodePortPolicy guards what a Service has on nodes. It must not leak to Pods.
func (g *generator) nodePortPolicy(name string) Object {
	o := &antreav1beta1.ClusterNetworkPolicy{TypeMeta: antreaMeta("ClusterNetworkPolicy")}
	g.policyMeta(o, name)
	o.Spec.Tier, o.Spec.Priority = one(g, "", "", tierNames[g.IntN(len(tierNames))]), ptr(one(g, 1, 1.5, 2, 10000))
	o.Spec.AppliedTo = []antreav1beta1.AppliedTo{{Service: g.nodePortName()}}
	for i := range 1 + g.IntN(3) {
		o.Spec.Ingress = append(o.Spec.Ingress, g.nodePortRule(i, o.Spec.Tier))
	}
	return o
}

// hostPolicy guards Nodes themselves.
func (g *generator) hostPolicy(name string) Object {
	o := &antreav1beta1.ClusterNetworkPolicy{TypeMeta: antreaMeta("ClusterNetworkPolicy")}
	g.policyMeta(o, name)
	o.Spec.Tier, o.Spec.Priority = one(g, "", "", tierNames[g.IntN(len(tierNames))]), ptr(one(g, 1, 1.5, 2, 10000))
	o.Spec.AppliedTo = []antreav1beta1.AppliedTo{{NodeSelector: g.optional(false)}}
	for i := range 1 + g.IntN(3) {
		o.Spec.Ingress = append(o.Spec.Ingress, g.hostRule(i, o.Spec.Tier, false))
		o.Spec.Egress = append(o.Spec.Egress, g.hostRule(i, o.Spec.Tier, true))
	}
	return o
}

// hostRule is of a policy for Nodes, in which not all peers may be written.
func (g *generator) hostRule(i int, tier string, egress bool) antreav1beta1.Rule {
	r := g.antreaRule(false, egress, false, i, tier)
	r.L7Protocols, r.ToServices = nil, nil
	refused := func(p antreav1beta1.Peer) bool { return p.FQDN != "" || p.ServiceAccount != nil || p.Namespaces != nil }
	r.From, r.To = slices.DeleteFunc(r.From, refused), slices.DeleteFunc(r.To, refused)
	if !egress {
		r.Ports = slices.DeleteFunc(r.Ports, func(p antreav1beta1.Port) bool { return p.Port != nil && p.Port.Type == intstr.String })
	}
	return r
}

// nodePortName names a Service that has ports on nodes, if one is there.
func (g *generator) nodePortName() *antreav1beta1.NamespacedName {
	for _, svc := range g.balanced() {
		if svc.Spec.Ports[0].NodePort != 0 && !g.chance(20) {
			return &antreav1beta1.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
		}
	}
	return g.serviceName()
}

// nodePortRule is of a policy that applies to a Service.
func (g *generator) nodePortRule(i int, tier string) antreav1beta1.Rule {
	r := antreav1beta1.Rule{Name: fmt.Sprintf("r%d-node", i), Action: ptr(one(g, ruleActions(tier)...)), EnableLogging: g.chance(30)}
	for range g.IntN(3) {
		b := one(g, g.antreaBlock(), &antreav1beta1.IPBlock{CIDR: "0.0.0.0/0"}, &antreav1beta1.IPBlock{CIDR: "::/0"})
		r.From = append(r.From, antreav1beta1.Peer{IPBlock: b})
	}
	return r
}

// serviceRule names Services.
func (g *generator) serviceRule(i int, tier string) antreav1beta1.Rule {
	r := antreav1beta1.Rule{Name: fmt.Sprintf("r%d-services", i), Action: ptr(one(g, ruleActions(tier)...)), EnableLogging: g.chance(30)}
	for range 1 + g.IntN(2) {
		name := g.serviceName()
		r.ToServices = append(r.ToServices, antreav1beta1.PeerService{Namespace: name.Namespace, Name: name.Name})
	}
	return r
}

func ruleActions(tier string) []string {
	if tier == "baseline" {
		return []string{"Allow", "Drop", "Reject"}
	}
	return []string{"Allow", "Drop", "Reject", "Pass", "Allow", "Drop", "Deny"}
}

func (g *generator) antreaRule(namespaced, egress, perRule bool, i int, tier string) antreav1beta1.Rule {
	r := antreav1beta1.Rule{Name: fmt.Sprintf("r%d-%t", i, egress), Action: ptr(one(g, ruleActions(tier)...)), EnableLogging: g.chance(30)}
	if perRule {
		r.AppliedTo = g.appliedTo(namespaced)
	}
	if egress && g.chance(12) {
		r.ToServices = g.serviceRule(i, tier).ToServices
		return r
	}
	for range g.IntN(3) {
		r.Ports = append(r.Ports, g.antreaPort())
	}
	if g.chance(15) {
		icmp := &antreav1beta1.ICMP{}
		if g.chance(60) {
			icmp.Type = ptr(one[int32](g, 0, 8, 128))
		}
		if icmp.Type != nil && g.chance(50) {
			icmp.Code = ptr(one[int32](g, 0, 1))
		}
		r.Protocols = append(r.Protocols, antreav1beta1.Protocol{ICMP: icmp})
	}
	if *r.Action == "Allow" && len(r.Protocols) == 0 && g.chance(4) {
		r.L7Protocols = []antreav1beta1.L7Protocol{{TLS: &antreav1beta1.TLS{SNI: "example.com"}}}
		r.Ports = slices.DeleteFunc(r.Ports, func(p antreav1beta1.Port) bool { return p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP })
	}
	for range g.IntN(4) {
		peers := &r.From
		if egress {
			peers = &r.To
		}
		*peers = append(*peers, g.antreaPeer(namespaced, egress))
	}
	return r
}

func (g *generator) antreaPort() (p antreav1beta1.Port) {
	if protocol := one(g, append(protocols, "")...); protocol != "" {
		p.Protocol = &protocol
	}
	switch g.IntN(8) {
	case 0, 1, 2:
		p.Port = ptr(intstr.FromInt32(one(g, portNumbers...)))
	case 3, 4:
		p.Port = ptr(intstr.FromString(one(g, portNames...)))
	case 5:
		first := one(g, portNumbers...)
		p.Port, p.EndPort = ptr(intstr.FromInt32(first)), ptr(min(first+int32(g.IntN(9)*g.IntN(200)), 65535))
	case 6:
		first := int32(firstPort + g.IntN(40))
		p.SourcePort = &first
		if g.chance(70) {
			p.SourceEndPort = ptr(first + int32(g.IntN(30)))
		}
	}
	return p
}

func (g *generator) antreaPeer(namespaced, egress bool) (p antreav1beta1.Peer) {
	switch n := g.IntN(14); {
	case n == 0:
		p.Group = one(g, groupNames...)
	case n == 1:
		p.ServiceAccount = g.account()
	case n == 2:
		p.NodeSelector = g.optional(false)
	case n < 5:
		p.IPBlock = g.antreaBlock()
	case n == 5 && egress:
		p.FQDN = "*.example.com"
	case n < 9 && !namespaced:
		p.Namespaces = one(g, &antreav1beta1.PeerNamespaces{Match: "Self"}, &antreav1beta1.PeerNamespaces{SameLabels: []string{labelKeys[0]}},
			&antreav1beta1.PeerNamespaces{SameLabels: []string{labelKeys[1], labelKeys[0]}})
		if g.chance(40) {
			p.PodSelector = g.optional(false)
		}
	case n < 11:
		p.PodSelector = g.optional(false)
	case n == 11:
		p.NamespaceSelector = g.optional(true)
	default:
		p.NamespaceSelector, p.PodSelector = g.optional(true), g.optional(false)
	}
	return p
}

func (g *generator) antreaBlock() *antreav1beta1.IPBlock {
	return (*antreav1beta1.IPBlock)(g.ipBlock())
}

func (g *generator) adminPolicy(name string) Object {
	o := &anpv1alpha1.AdminNetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "policy.networking.k8s.io/v1alpha1", Kind: "AdminNetworkPolicy"}}
	g.policyMeta(o, name)
	o.Spec.Priority = int32(g.IntN(3))
	o.Spec.Subject = g.subject()
	for range g.IntN(4) {
		o.Spec.Ingress = append(o.Spec.Ingress, anpv1alpha1.AdminNetworkPolicyIngressRule{Action: anpv1alpha1.AdminNetworkPolicyRuleAction(one(g, "Allow", "Deny", "Pass")),
			From: g.adminIngressPeers(), Ports: g.adminPorts(true)})
	}
	for range g.IntN(4) {
		peers, named := g.adminEgressPeers()
		o.Spec.Egress = append(o.Spec.Egress, anpv1alpha1.AdminNetworkPolicyEgressRule{Action: anpv1alpha1.AdminNetworkPolicyRuleAction(one(g, "Allow", "Deny", "Pass")),
			To: peers, Ports: g.adminPorts(named)})
	}
	return o
}

func (g *generator) baseline() Object {
	o := &anpv1alpha1.BaselineAdminNetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "policy.networking.k8s.io/v1alpha1", Kind: "BaselineAdminNetworkPolicy"}}
	g.policyMeta(o, "default")
	o.Spec.Subject = g.subject()
	for range g.IntN(4) {
		o.Spec.Ingress = append(o.Spec.Ingress, anpv1alpha1.BaselineAdminNetworkPolicyIngressRule{
			Action: anpv1alpha1.BaselineAdminNetworkPolicyRuleAction(one(g, "Allow", "Deny")), From: g.adminIngressPeers(), Ports: g.adminPorts(true)})
	}
	return o
}

func (g *generator) subject() anpv1alpha1.AdminNetworkPolicySubject {
	if g.chance(50) {
		return anpv1alpha1.AdminNetworkPolicySubject{Namespaces: g.optional(true)}
	}
	return anpv1alpha1.AdminNetworkPolicySubject{Pods: g.namespacedPod()}
}

func (g *generator) namespacedPod() *anpv1alpha1.NamespacedPod {
	return &anpv1alpha1.NamespacedPod{NamespaceSelector: g.selector(true), PodSelector: g.selector(false)}
}

func (g *generator) adminIngressPeers() (peers []anpv1alpha1.AdminNetworkPolicyIngressPeer) {
	for range 1 + g.IntN(2) {
		peers = append(peers, anpv1alpha1.AdminNetworkPolicyIngressPeer(g.subject()))
	}
	return peers
}

// adminEgressPeers are peers, of which all may have names for their ports.
func (g *generator) adminEgressPeers() (peers []anpv1alpha1.AdminNetworkPolicyEgressPeer, named bool) {
	named = true
	for range 1 + g.IntN(2) {
		var p anpv1alpha1.AdminNetworkPolicyEgressPeer
		switch g.IntN(6) {
		case 0:
			p.Nodes, named = g.optional(false), false
		case 1:
			p.Networks, named = []anpv1alpha1.CIDR{anpv1alpha1.CIDR(g.ipBlock().CIDR)}, false
		default:
			s := g.subject()
			p.Namespaces, p.Pods = s.Namespaces, s.Pods
		}
		peers = append(peers, p)
	}
	return peers, named
}

func (g *generator) adminPorts(named bool) *[]anpv1alpha1.AdminNetworkPolicyPort {
	if g.chance(40) {
		return nil
	}
	var list []anpv1alpha1.AdminNetworkPolicyPort
	for range 1 + g.IntN(2) {
		var p anpv1alpha1.AdminNetworkPolicyPort
		first := one(g, portNumbers...)
		switch n := g.IntN(4); {
		case n == 0 && named:
			p.NamedPort = ptr(one(g, portNames...))
		case n == 1 && first < 65000:
			p.PortRange = &anpv1alpha1.PortRange{Protocol: one(g, protocols...), Start: first, End: first + 1 + int32(g.IntN(200))}
		default:
			p.PortNumber = &anpv1alpha1.Port{Protocol: one(g, protocols...), Port: first}
		}
		list = append(list, p)
	}
	return &list
}

func (g *generator) clusterPolicy(name string) Object {
	o := &adminv1alpha2.ClusterNetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: adminv1alpha2.APIVersion, Kind: "ClusterNetworkPolicy"}}
	g.policyMeta(o, name)
	o.Spec.Tier, o.Spec.Priority = one(g, "Admin", "Baseline"), ptr(int32(g.IntN(3)))
	peer := func() adminv1alpha2.Peer {
		s := g.subject()
		return adminv1alpha2.Peer{Namespaces: s.Namespaces, Pods: (*adminv1alpha2.NamespacedPod)(s.Pods)}
	}
	s := peer()
	o.Spec.Subject = adminv1alpha2.Subject{Namespaces: s.Namespaces, Pods: s.Pods}
	for range g.IntN(3) {
		o.Spec.Ingress = append(o.Spec.Ingress, adminv1alpha2.IngressRule{Action: one(g, "Accept", "Deny", "Pass"), From: []adminv1alpha2.Peer{peer()}, Protocols: g.clusterProtocols(true)})
	}
	for range g.IntN(3) {
		r := adminv1alpha2.EgressRule{Action: one(g, "Accept", "Deny", "Pass"), To: []adminv1alpha2.Peer{peer()}}
		plain := g.chance(60)
		if !plain {
			r.To = append(r.To, one(g, adminv1alpha2.Peer{Nodes: g.optional(false)}, adminv1alpha2.Peer{Networks: []string{g.ipBlock().CIDR}}))
		}
		r.Protocols = g.clusterProtocols(plain)
		o.Spec.Egress = append(o.Spec.Egress, r)
	}
	return o
}

func (g *generator) clusterProtocols(named bool) (list []adminv1alpha2.Protocol) {
	for range g.IntN(3) {
		if named && g.chance(25) {
			list = append(list, adminv1alpha2.Protocol{DestinationNamedPort: one(g, portNames...)})
			continue
		}
		t := &adminv1alpha2.Transport{}
		if g.chance(80) {
			t.DestinationPort = &adminv1alpha2.Port{Number: one(g, portNumbers...)}
		}
		list = append(list, one(g, adminv1alpha2.Protocol{TCP: t}, adminv1alpha2.Protocol{UDP: t}, adminv1alpha2.Protocol{SCTP: t}))
	}
	return list
}
