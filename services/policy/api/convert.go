package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	netutils "k8s.io/utils/net"
)

// Annotations and labels that are read.
const (
	// AnnotationEnforcement is "staged" or "enforced", on any policy.
	AnnotationEnforcement = "weir.dev/enforcement"
	// AnnotationAllowLockout is "true" on a policy of Nodes that may cut them off
	// from what steers them.
	AnnotationAllowLockout = "weir.dev/allow-lockout"
	// AnnotationGateways lists a Node's addresses on the bridge, comma-separated.
	AnnotationGateways = "weir.dev/gateway-addresses"
	// AnnotationTransport lists a Node's transport addresses, comma-separated.
	AnnotationTransport = "weir.dev/transport-addresses"
	// AnnotationAntreaTransport is read where AnnotationTransport is absent.
	AnnotationAntreaTransport = "node.antrea.io/transport-addresses"
	// AnnotationChangedBy names the user who changed an object last. Whatever admits
	// objects writes it; without that, anybody who may change the object may.
	AnnotationChangedBy = "weir.dev/changed-by"
	// annotationMirror is on the API server's picture of a static Pod, and bears the
	// UID that the Pod has on its node.
	annotationMirror = "kubernetes.io/config.mirror"
	// AnnotationLogPolicies on a Namespace is "true" where its NetworkPolicies log.
	AnnotationLogPolicies = "networkpolicy.antrea.io/enable-logging"
	// LabelPartOf is PartOf on what Weir is installed with, its
	// CustomResourceDefinitions included.
	LabelPartOf = "app.kubernetes.io/part-of"
	PartOf      = "weir"
	// LabelNamespaceName holds a Namespace's own name.
	LabelNamespaceName = "kubernetes.io/metadata.name"
	// LabelAntreaNamespaceName holds a Namespace's own name too.
	LabelAntreaNamespaceName = "antrea.io/metadata.name"
)

// The conversions below keep what the policy service reads of a Kubernetes
// object. Of an object that passed validation they lose nothing; of one that
// an API server let through nevertheless, they leave out addresses that cannot
// be parsed.

// intern shares the strings that recur in many objects.
func intern(s string) string { return unique.Make(s).Value() }

func labels(m map[string]string) Labels {
	if len(m) == 0 {
		return nil
	}
	l := make(Labels, 0, len(m))
	for k, v := range m {
		l = append(l, Label{intern(k), intern(v)})
	}
	slices.SortFunc(l, func(a, b Label) int { return strings.Compare(a.Key, b.Key) })
	return l
}

// FromNamespace converts a Namespace.
func FromNamespace(o *corev1.Namespace) *Namespace {
	own := map[string]string{}
	for k, v := range o.Labels {
		own[k] = v
	}
	own[LabelNamespaceName] = o.Name
	own[LabelAntreaNamespaceName] = o.Name
	return &Namespace{
		Name:        intern(o.Name),
		Labels:      labels(own),
		LogPolicies: strings.EqualFold(o.Annotations[AnnotationLogPolicies], "true"),
	}
}

// FromNode converts a Node.
func FromNode(o *corev1.Node) *Node {
	n := &Node{Name: intern(o.Name), UID: string(o.UID), Labels: labels(o.Labels), Zone: intern(o.Labels[corev1.LabelTopologyZone])}
	var internal []netip.Addr
	for _, a := range o.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			n.Addresses = append(n.Addresses, ip.Unmap())
			if a.Type == corev1.NodeInternalIP {
				internal = append(internal, ip.Unmap())
			}
		}
	}
	for _, cidr := range podCIDRs(o) {
		if p, err := parsePrefix(cidr); err == nil {
			n.PodCIDRs = append(n.PodCIDRs, p)
		}
	}
	if list, ok := o.Annotations[AnnotationGateways]; ok {
		n.Gateways = addresses(list)
	} else {
		for _, p := range n.PodCIDRs {
			n.Gateways = append(n.Gateways, p.Addr().Next())
		}
	}
	if list, ok := o.Annotations[AnnotationTransport]; ok {
		n.Transport = addresses(list)
	} else {
		n.Transport = addresses(o.Annotations[AnnotationAntreaTransport])
	}
	for _, list := range [][]netip.Addr{n.Transport, internal} {
		for _, ip := range list {
			if !slices.ContainsFunc(n.Reached, func(r netip.Addr) bool { return r.Is4() == ip.Is4() }) {
				n.Reached = append(n.Reached, ip)
			}
		}
	}
	return n
}

func podCIDRs(o *corev1.Node) []string {
	if len(o.Spec.PodCIDRs) == 0 && o.Spec.PodCIDR != "" {
		return []string{o.Spec.PodCIDR}
	}
	return o.Spec.PodCIDRs
}

// addresses reads a comma-separated list.
func addresses(list string) []netip.Addr {
	var out []netip.Addr
	for s := range strings.SplitSeq(list, ",") {
		if ip, err := netip.ParseAddr(strings.TrimSpace(s)); err == nil {
			out = append(out, ip.Unmap())
		}
	}
	return out
}

// FromPod converts a Pod.
func FromPod(o *corev1.Pod) *Pod {
	p := &Pod{
		Namespace:      intern(o.Namespace),
		Name:           o.Name,
		UID:            string(o.UID),
		Labels:         labels(o.Labels),
		Node:           intern(o.Spec.NodeName),
		ServiceAccount: intern(o.Spec.ServiceAccountName),
		HostNetwork:    o.Spec.HostNetwork,
		Finished:       o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed,
	}
	p.Workload = workload(o)
	if p.ServiceAccount == "" {
		p.ServiceAccount = "default"
	}
	if own := o.Annotations[annotationMirror]; own != "" {
		p.UID = own // Of a static Pod, as its kubelet and so the CNI plugin knows it.
	}
	for _, s := range podIPs(o) {
		if ip, err := netip.ParseAddr(s); err == nil {
			p.IPs = append(p.IPs, ip.Unmap())
		}
	}
	// Containers first, as the API server resolves named ports of Services.
	for _, list := range [][]corev1.Container{o.Spec.Containers, o.Spec.InitContainers} {
		for _, c := range list {
			for _, port := range c.Ports {
				if port.Name != "" {
					p.Ports = append(p.Ports, ContainerPort{intern(port.Name), protocol(port.Protocol), uint16(port.ContainerPort)})
				}
			}
		}
	}
	return p
}

// workload is "KIND/NAME" of what controls a Pod. A ReplicaSet that a Deployment
// made is named after it and the hash of its template. Which CronJob made a Job
// its name does not surely say, so a Job stays one.
func workload(o *corev1.Pod) string {
	owner := metav1.GetControllerOfNoCopy(o)
	if owner == nil {
		return ""
	}
	if hash := o.Labels["pod-template-hash"]; owner.Kind == "ReplicaSet" && hash != "" {
		if deployment, is := strings.CutSuffix(owner.Name, "-"+hash); is && deployment != "" {
			return intern("Deployment/" + deployment)
		}
	}
	return intern(owner.Kind + "/" + owner.Name)
}

func podIPs(o *corev1.Pod) []string {
	if len(o.Status.PodIPs) == 0 && o.Status.PodIP != "" {
		return []string{o.Status.PodIP}
	}
	list := make([]string, len(o.Status.PodIPs))
	for i, ip := range o.Status.PodIPs {
		list[i] = ip.IP
	}
	return list
}

// protocol reads a protocol; absent means TCP.
func protocol(p corev1.Protocol) Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return ProtocolUDP
	case corev1.ProtocolSCTP:
		return ProtocolSCTP
	}
	return ProtocolTCP
}

// FromService converts a Service.
func FromService(o *corev1.Service) *Service {
	s := &Service{
		Namespace: intern(o.Namespace),
		Name:      o.Name,
		Type:      string(o.Spec.Type),
		Selector:  labels(o.Spec.Selector),
		Headless:  slices.Contains(clusterIPs(o), corev1.ClusterIPNone),

		AffinitySeconds: affinitySeconds(o),
		InternalLocal:   orElse(o.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster) == corev1.ServiceInternalTrafficPolicyLocal,
	}
	if s.Type == "" {
		s.Type = string(corev1.ServiceTypeClusterIP)
	}
	for _, ip := range clusterIPs(o) {
		if ip, err := netip.ParseAddr(ip); err == nil {
			s.ClusterIPs = append(s.ClusterIPs, ip.Unmap())
		}
	}
	s.ExternalIPs = externalIPs(o)
	for _, p := range o.Spec.Ports {
		s.Ports = append(s.Ports, ServicePort{
			Name:       intern(p.Name),
			Protocol:   protocol(p.Protocol),
			Port:       uint16(p.Port),
			TargetPort: uint16(p.TargetPort.IntVal),
			TargetName: intern(p.TargetPort.StrVal),
			NodePort:   uint16(p.NodePort),
		})
	}
	return s
}

func clusterIPs(o *corev1.Service) []string {
	if len(o.Spec.ClusterIPs) == 0 && o.Spec.ClusterIP != "" {
		return []string{o.Spec.ClusterIP}
	}
	return o.Spec.ClusterIPs
}

// externalIPs are the addresses by which a Service is reached from outside.
func externalIPs(o *corev1.Service) (out []netip.Addr) {
	texts := slices.Clone(o.Spec.ExternalIPs)
	for _, i := range o.Status.LoadBalancer.Ingress {
		texts = append(texts, i.IP)
	}
	for _, text := range texts {
		if ip, err := netip.ParseAddr(text); err == nil && !slices.Contains(out, ip.Unmap()) {
			out = append(out, ip.Unmap())
		}
	}
	return out
}

// affinitySeconds is for how long clients keep their endpoints: three hours,
// where it is not written, as the API server writes it.
func affinitySeconds(o *corev1.Service) uint32 {
	if o.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	if c := o.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		return uint32(max(*c.ClientIP.TimeoutSeconds, 1))
	}
	return uint32(corev1.DefaultClientIPServiceAffinitySeconds)
}

// FromServiceAccount converts a ServiceAccount.
func FromServiceAccount(o *corev1.ServiceAccount) *ServiceAccount {
	return &ServiceAccount{Namespace: intern(o.Namespace), Name: intern(o.Name)}
}

// FromEndpointSlice converts an EndpointSlice.
func FromEndpointSlice(o *discoveryv1.EndpointSlice) *EndpointSlice {
	s := &EndpointSlice{Namespace: intern(o.Namespace), Name: o.Name}
	if o.AddressType == discoveryv1.AddressTypeFQDN {
		return s
	}
	s.Service = intern(o.Labels[discoveryv1.LabelServiceName])
	for _, p := range o.Ports {
		port := ServicePort{Protocol: ProtocolTCP}
		if p.Name != nil {
			port.Name = intern(*p.Name)
		}
		if p.Protocol != nil {
			port.Protocol = protocol(*p.Protocol)
		}
		if p.Port != nil {
			port.Port = uint16(*p.Port)
		}
		s.Ports = append(s.Ports, port)
	}
	for _, e := range o.Endpoints {
		// What the API says of absent conditions: ready unless told, serving
		// as ready, not terminating.
		ready := orElse(e.Conditions.Ready, true)
		out := SliceEndpoint{
			Ready:       ready,
			Serving:     orElse(e.Conditions.Serving, ready),
			Terminating: orElse(e.Conditions.Terminating, false),
			Node:        intern(orElse(e.NodeName, "")),
		}
		if e.Hints != nil {
			for _, z := range e.Hints.ForZones {
				out.Zones = append(out.Zones, intern(z.Name))
			}
			for _, n := range e.Hints.ForNodes {
				out.Nodes = append(out.Nodes, intern(n.Name))
			}
		}
		for _, a := range e.Addresses {
			if ip, err := netip.ParseAddr(a); err == nil {
				out.Addresses = append(out.Addresses, ip.Unmap())
			}
		}
		s.Endpoints = append(s.Endpoints, out)
	}
	return s
}

func orElse[T any](p *T, absent T) T {
	if p == nil {
		return absent
	}
	return *p
}

// FromNetworkPolicy converts a NetworkPolicy. It fails on what cannot be
// represented, which validation refuses too; such a policy cannot be enforced.
func FromNetworkPolicy(o *networkingv1.NetworkPolicy) (*NetworkPolicy, error) {
	p := &NetworkPolicy{
		Namespace:   intern(o.Namespace),
		Name:        o.Name,
		UID:         string(o.UID),
		Generation:  o.Generation,
		Staged:      o.Annotations[AnnotationEnforcement] == "staged",
		PodSelector: selector(o.Spec.PodSelector),
	}
	if !o.CreationTimestamp.IsZero() {
		p.Created = o.CreationTimestamp.Unix()
	}
	for _, t := range o.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			p.PolicyTypes = append(p.PolicyTypes, PolicyTypeIngress)
		case networkingv1.PolicyTypeEgress:
			p.PolicyTypes = append(p.PolicyTypes, PolicyTypeEgress)
		default:
			return nil, fmt.Errorf("%s: spec.policyTypes: unknown type %q", p.Ref(), t)
		}
	}
	for i, r := range o.Spec.Ingress {
		rule, err := policyRule(r.Ports, r.From)
		if err != nil {
			return nil, fmt.Errorf("%s: spec.ingress[%d]: %w", p.Ref(), i, err)
		}
		p.Ingress = append(p.Ingress, rule)
	}
	for i, r := range o.Spec.Egress {
		rule, err := policyRule(r.Ports, r.To)
		if err != nil {
			return nil, fmt.Errorf("%s: spec.egress[%d]: %w", p.Ref(), i, err)
		}
		p.Egress = append(p.Egress, rule)
	}
	return p, nil
}

func policyRule(ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer) (NetworkPolicyRule, error) {
	var r NetworkPolicyRule
	for i, p := range ports {
		out := NetworkPolicyPort{Protocol: ProtocolTCP}
		if p.Protocol != nil {
			switch *p.Protocol {
			case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
				out.Protocol = protocol(*p.Protocol)
			default:
				return r, fmt.Errorf("ports[%d].protocol: unknown protocol %q", i, *p.Protocol)
			}
		}
		if p.Port != nil {
			if p.Port.Type == intstr.String {
				out.PortName = intern(p.Port.StrVal)
			} else {
				out.Port = uint16(p.Port.IntVal)
			}
			if out.PortName == "" && (p.Port.IntVal < 1 || p.Port.IntVal > 65535) {
				return r, fmt.Errorf("ports[%d].port: %s is no port", i, p.Port.String())
			}
		}
		if p.EndPort != nil {
			if *p.EndPort < int32(out.Port) || *p.EndPort > 65535 || out.Port == 0 {
				return r, fmt.Errorf("ports[%d].endPort: %d ends no range", i, *p.EndPort)
			}
			out.EndPort = uint16(*p.EndPort)
		}
		r.Ports = append(r.Ports, out)
	}
	for i, p := range peers {
		out := NetworkPolicyPeer{}
		if p.PodSelector != nil {
			s := selector(*p.PodSelector)
			out.PodSelector = &s
		}
		if p.NamespaceSelector != nil {
			s := selector(*p.NamespaceSelector)
			out.NamespaceSelector = &s
		}
		if p.IPBlock != nil {
			b, err := ipBlock(p.IPBlock)
			if err != nil {
				return r, fmt.Errorf("peers[%d].ipBlock: %w", i, err)
			}
			out.IPBlock = b
		}
		r.Peers = append(r.Peers, out)
	}
	return r, nil
}

func ipBlock(b *networkingv1.IPBlock) (*IPBlock, error) {
	cidr, err := parsePrefix(b.CIDR)
	if err != nil {
		return nil, fmt.Errorf("cidr: %w", err)
	}
	out := &IPBlock{CIDR: cidr}
	for i, e := range b.Except {
		p, err := parsePrefix(e)
		if err != nil {
			return nil, fmt.Errorf("except[%d]: %w", i, err)
		}
		out.Except = append(out.Except, p)
	}
	return out, nil
}

// parsePrefix reads a CIDR as the API server does, which takes leading zeros
// for decimal and IPv4-mapped IPv6 for IPv4, and clears the host bits.
func parsePrefix(s string) (netip.Prefix, error) {
	_, n, err := netutils.ParseCIDRSloppy(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no CIDR", s)
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if addr.Is4In6() {
		if ones < 96 {
			return netip.Prefix{}, fmt.Errorf("%q mixes IPv4 and IPv6", s)
		}
		addr, ones = addr.Unmap(), ones-96
	}
	return netip.PrefixFrom(addr, ones).Masked(), nil
}

func selector(s metav1.LabelSelector) Selector {
	out := Selector{MatchLabels: labels(s.MatchLabels)}
	for _, r := range s.MatchExpressions {
		req := Requirement{Key: intern(r.Key), Operator: operators[r.Operator]}
		for _, v := range r.Values {
			req.Values = append(req.Values, intern(v))
		}
		out.MatchExpressions = append(out.MatchExpressions, req)
	}
	return out
}

var operators = map[metav1.LabelSelectorOperator]Operator{
	metav1.LabelSelectorOpIn:           OpIn,
	metav1.LabelSelectorOpNotIn:        OpNotIn,
	metav1.LabelSelectorOpExists:       OpExists,
	metav1.LabelSelectorOpDoesNotExist: OpDoesNotExist,
}
