package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err
}

// node checks what is read of a Node.
func (f *findings) node(o *corev1.Node) {
	for i, a := range o.Status.Addresses {
		at := fmt.Sprintf("status.addresses[%d]", i)
		switch a.Type {
		case corev1.NodeInternalIP, corev1.NodeExternalIP:
			f.address(at+".address", a.Address)
		case corev1.NodeHostName, corev1.NodeInternalDNS, corev1.NodeExternalDNS:
		case "":
			f.refuse(at+".type", "missing; write InternalIP, ExternalIP or Hostname")
		default:
			f.refuse(at+".type", "%q is unknown; write InternalIP, ExternalIP, Hostname, InternalDNS or ExternalDNS", a.Type)
		}
	}
	for i, c := range o.Spec.PodCIDRs {
		f.cidr(fmt.Sprintf("spec.podCIDRs[%d]", i), c)
	}
	if o.Spec.PodCIDR != "" {
		if f.cidr("spec.podCIDR", o.Spec.PodCIDR) && len(o.Spec.PodCIDRs) > 0 && o.Spec.PodCIDRs[0] != o.Spec.PodCIDR {
			f.refuse("spec.podCIDR", "%q is not the first of spec.podCIDRs; write %q", o.Spec.PodCIDR, o.Spec.PodCIDRs[0])
		}
	}
	for _, key := range []string{AnnotationGateways, AnnotationTransport, AnnotationAntreaTransport} {
		list, ok := o.Annotations[key]
		if !ok {
			continue
		}
		for s := range strings.SplitSeq(list, ",") {
			if _, err := netip.ParseAddr(strings.TrimSpace(s)); err != nil {
				f.refuse("metadata.annotations."+key, "%q is no IP address; write addresses separated by commas", strings.TrimSpace(s))
			}
		}
	}
}

// pod checks what is read of a Pod.
func (f *findings) pod(o *corev1.Pod) {
	if o.Spec.NodeName != "" {
		for _, m := range validation.IsDNS1123Subdomain(o.Spec.NodeName) {
			f.refuse("spec.nodeName", "%q: %s", o.Spec.NodeName, m)
		}
	}
	if o.Spec.ServiceAccountName != "" {
		for _, m := range validation.IsDNS1123Subdomain(o.Spec.ServiceAccountName) {
			f.refuse("spec.serviceAccountName", "%q: %s", o.Spec.ServiceAccountName, m)
		}
	}
	names := map[string]bool{}
	f.containers("spec.containers", o.Spec.Containers, names)
	f.containers("spec.initContainers", o.Spec.InitContainers, names)

	switch o.Status.Phase {
	case "", corev1.PodPending, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed, corev1.PodUnknown:
	default:
		f.refuse("status.phase", "%q is unknown; write Pending, Running, Succeeded, Failed or Unknown", o.Status.Phase)
	}
	if o.Status.PodIP != "" {
		f.address("status.podIP", o.Status.PodIP)
		if len(o.Status.PodIPs) > 0 && o.Status.PodIPs[0].IP != o.Status.PodIP {
			f.refuse("status.podIP", "%q is not the first of status.podIPs; write %q", o.Status.PodIP, o.Status.PodIPs[0].IP)
		}
	}
	families := map[bool]int{}
	for i, ip := range o.Status.PodIPs {
		at := fmt.Sprintf("status.podIPs[%d].ip", i)
		f.address(at, ip.IP)
		if a, err := parseAddr(ip.IP); err == nil {
			families[a.Is4()]++
			if families[a.Is4()] == 2 {
				f.refuse(at, "%s is a second address of its family; write one IPv4 and one IPv6 address at most", a)
			}
		}
	}
}

func (f *findings) containers(list string, containers []corev1.Container, names map[string]bool) {
	for i, c := range containers {
		at := fmt.Sprintf("%s[%d]", list, i)
		if c.Name == "" {
			f.refuse(at+".name", "missing; write the container's name")
		} else {
			for _, m := range validation.IsDNS1123Label(c.Name) {
				f.refuse(at+".name", "%q: %s", c.Name, m)
			}
			if names[c.Name] {
				f.refuse(at+".name", "%q names two containers; write another name", c.Name)
			}
			names[c.Name] = true
		}
		ports := map[string]bool{}
		for j, p := range c.Ports {
			field := fmt.Sprintf("%s.ports[%d]", at, j)
			f.protocol(field+".protocol", p.Protocol)
			f.port(field+".containerPort", p.ContainerPort)
			if p.HostPort < 0 || p.HostPort > 65535 {
				f.refuse(field+".hostPort", "%d is no port; write a number from 1 to 65535", p.HostPort)
			}
			if p.Name == "" {
				continue
			}
			f.portName(field+".name", p.Name)
			if ports[p.Name] {
				f.refuse(field+".name", "%q names two ports of the container; write another name", p.Name)
			}
			ports[p.Name] = true
		}
	}
}

// service checks what is read of a Service.
func (f *findings) service(o *corev1.Service) {
	switch o.Spec.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
	case corev1.ServiceTypeExternalName:
		if o.Spec.ExternalName == "" {
			f.refuse("spec.externalName", "missing; an ExternalName Service needs the name to point at")
		}
	default:
		f.refuse("spec.type", "%q is unknown; write ClusterIP, NodePort, LoadBalancer or ExternalName", o.Spec.Type)
	}
	f.labels("spec.selector", o.Spec.Selector)

	if o.Spec.ClusterIP != "" && o.Spec.ClusterIP != corev1.ClusterIPNone {
		f.address("spec.clusterIP", o.Spec.ClusterIP)
	}
	if len(o.Spec.ClusterIPs) > 0 && o.Spec.ClusterIP != "" && o.Spec.ClusterIPs[0] != o.Spec.ClusterIP {
		f.refuse("spec.clusterIP", "%q is not the first of spec.clusterIPs; write %q", o.Spec.ClusterIP, o.Spec.ClusterIPs[0])
	}
	for i, ip := range o.Spec.ClusterIPs {
		if ip != corev1.ClusterIPNone {
			f.address(fmt.Sprintf("spec.clusterIPs[%d]", i), ip)
		}
	}
	f.serviceTraffic(o)
	if len(o.Spec.Ports) == 0 && !slices.Contains(clusterIPs(o), corev1.ClusterIPNone) && o.Spec.Type != corev1.ServiceTypeExternalName {
		f.refuse("spec.ports", "missing; a Service with a ClusterIP needs at least one port")
	}
	names := map[string]bool{}
	type number struct {
		corev1.Protocol
		int32
	}
	numbers := map[number]bool{}
	for i, p := range o.Spec.Ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		switch {
		case p.Name == "" && len(o.Spec.Ports) > 1:
			f.refuse(at+".name", "missing; a Service with several ports needs a name for each")
		case p.Name != "":
			for _, m := range validation.IsDNS1123Label(p.Name) {
				f.refuse(at+".name", "%q: %s", p.Name, m)
			}
			if names[p.Name] {
				f.refuse(at+".name", "%q names two ports; write another name", p.Name)
			}
			names[p.Name] = true
		}
		f.protocol(at+".protocol", p.Protocol)
		if f.port(at+".port", p.Port) {
			n := number{p.Protocol, p.Port}
			if n.Protocol == "" {
				n.Protocol = corev1.ProtocolTCP
			}
			if numbers[n] {
				f.refuse(at, "%s port %d is there twice; remove one of the two", n.Protocol, p.Port)
			}
			numbers[n] = true
		}
		if p.TargetPort.Type == intstr.String {
			f.portName(at+".targetPort", p.TargetPort.StrVal)
		} else if p.TargetPort.IntVal != 0 {
			f.port(at+".targetPort", p.TargetPort.IntVal)
		}
		if p.NodePort != 0 {
			f.port(at+".nodePort", p.NodePort)
			if o.Spec.Type == "" || o.Spec.Type == corev1.ServiceTypeClusterIP {
				f.refuse(at+".nodePort", "stands in a ClusterIP Service; write type: NodePort, or remove it")
			}
		}
	}
}

// serviceTraffic checks what says which endpoint a client gets.
func (f *findings) serviceTraffic(o *corev1.Service) {
	switch o.Spec.SessionAffinity {
	case "", corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP:
	default:
		f.refuse("spec.sessionAffinity", "%q is unknown; write ClientIP or None", o.Spec.SessionAffinity)
	}
	if c := o.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		if n := *c.ClientIP.TimeoutSeconds; n < 1 || n > maxAffinitySeconds {
			f.refuse("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d; write 1 to %d seconds", n, maxAffinitySeconds)
		}
	}
	switch p := orElse(o.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster); p {
	case corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal:
	default:
		f.refuse("spec.internalTrafficPolicy", "%q is unknown; write Cluster or Local", p)
	}
}

// hints checks for whose clients an endpoint is meant.
func (f *findings) hints(at string, h *discoveryv1.EndpointHints) {
	if h == nil {
		return
	}
	for i, z := range h.ForZones {
		if z.Name == "" {
			f.refuse(fmt.Sprintf("%s.forZones[%d].name", at, i), "missing; write the zone's name")
		}
	}
	for i, n := range h.ForNodes {
		if n.Name == "" {
			f.refuse(fmt.Sprintf("%s.forNodes[%d].name", at, i), "missing; write the node's name")
		}
	}
}

// maxAffinitySeconds is the longest session affinity of a Service: a day.
const maxAffinitySeconds = 86400

// endpointSlice checks what is read of an EndpointSlice.
func (f *findings) endpointSlice(o *discoveryv1.EndpointSlice) {
	types := []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN}
	if o.AddressType == "" {
		f.refuse("addressType", "missing; write IPv4, IPv6 or FQDN")
	} else if !slices.Contains(types, o.AddressType) {
		f.refuse("addressType", "%q is unknown; write IPv4, IPv6 or FQDN", o.AddressType)
	}
	for i, e := range o.Endpoints {
		f.hints(fmt.Sprintf("endpoints[%d].hints", i), e.Hints)
		at := fmt.Sprintf("endpoints[%d].addresses", i)
		if len(e.Addresses) == 0 {
			f.refuse(at, "missing; write the endpoint's address")
		}
		if o.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for j, s := range e.Addresses {
			field := fmt.Sprintf("%s[%d]", at, j)
			f.address(field, s)
			a, err := parseAddr(s)
			if err == nil && slices.Contains(types[:2], o.AddressType) && a.Is4() != (o.AddressType == discoveryv1.AddressTypeIPv4) {
				f.refuse(field, "%s is not of the slice's addressType %s; write it in a slice of its own", a, o.AddressType)
			}
		}
	}
	names := map[string]bool{}
	for i, p := range o.Ports {
		at := fmt.Sprintf("ports[%d]", i)
		if p.Protocol != nil {
			f.protocol(at+".protocol", *p.Protocol)
		}
		if p.Port != nil {
			f.port(at+".port", *p.Port)
		}
		name := orElse(p.Name, "")
		if name != "" {
			for _, m := range validation.IsDNS1123Label(name) {
				f.refuse(at+".name", "%q: %s", name, m)
			}
		}
		if names[name] {
			f.refuse(at+".name", "%q names two ports; write another name", name)
		}
		names[name] = true
	}
}
