package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	netutils "k8s.io/utils/net"
	anpv1alpha1 "sigs.k8s.io/network-policy-api/apis/v1alpha1"

	"github.com/weirnet/weir/services/policy/api/adminv1alpha2"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// Validate checks one typed Kubernetes object of a kind that is read (a
// *corev1.Pod, say) as the API server would, and returns everything that is
// wrong, and what its author should know. Fields that Weir does not read, such
// as a container's image, are not judged.
func Validate(object any) (violations, warnings []Violation) {
	f := &findings{}
	switch o := object.(type) {
	case *corev1.Namespace:
		f.object = Ref{Kind: KindNamespace, Name: o.Name}
		f.meta(o, validation.IsDNS1123Label, false)
		for _, key := range []string{LabelNamespaceName, LabelAntreaNamespaceName} {
			if v, ok := o.Labels[key]; ok && v != o.Name {
				f.warn("metadata.labels."+key, "%q is replaced by the Namespace's name; write %q or leave it out", v, o.Name)
			}
		}
	case *corev1.Node:
		f.object = Ref{Kind: KindNode, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, false)
		f.node(o)
	case *corev1.Pod:
		f.object = Ref{Kind: KindPod, Namespace: o.Namespace, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, true)
		f.pod(o)
	case *corev1.Service:
		f.object = Ref{Kind: KindService, Namespace: o.Namespace, Name: o.Name}
		f.meta(o, validation.IsDNS1123Label, true)
		f.service(o)
	case *corev1.ServiceAccount:
		f.object = Ref{Kind: KindServiceAccount, Namespace: o.Namespace, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, true)
	case *discoveryv1.EndpointSlice:
		f.object = Ref{Kind: KindEndpointSlice, Namespace: o.Namespace, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, true)
		f.endpointSlice(o)
	case *networkingv1.NetworkPolicy:
		f.object = Ref{Kind: KindNetworkPolicy, Namespace: o.Namespace, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, true)
		f.networkPolicy(o)
	case *anpv1alpha1.AdminNetworkPolicy:
		f.object = Ref{Kind: KindAdminNetworkPolicy, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, false)
		f.adminNetworkPolicy(o)
	case *anpv1alpha1.BaselineAdminNetworkPolicy:
		f.object = Ref{Kind: KindBaselineAdminNetworkPolicy, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, false)
		f.baselineAdminNetworkPolicy(o)
	case *adminv1alpha2.ClusterNetworkPolicy:
		f.object = Ref{Kind: KindClusterNetworkPolicy, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, false)
		f.clusterNetworkPolicy(o)
	case *antreav1beta1.Tier:
		f.object = Ref{Kind: KindTier, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, false)
		f.tier(o)
	case *antreav1beta1.ClusterNetworkPolicy:
		f.object = Ref{Kind: KindAntreaClusterNetworkPolicy, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, false)
		f.antreaPolicy(o.Annotations, &o.Spec)
	case *antreav1beta1.NetworkPolicy:
		f.object = Ref{Kind: KindAntreaNetworkPolicy, Namespace: o.Namespace, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, true)
		f.antreaPolicy(o.Annotations, &o.Spec)
	case *antreav1beta1.ClusterGroup:
		f.object = Ref{Kind: KindClusterGroup, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, false)
		f.antreaGroup(&o.Spec)
	case *antreav1beta1.Group:
		f.object = Ref{Kind: KindGroup, Namespace: o.Namespace, Name: o.Name}
		f.meta(o, validation.IsDNS1123Subdomain, true)
		f.antreaGroup(&o.Spec)
	default:
		panic(fmt.Sprintf("api: validation of %T, which is not read", object))
	}
	return f.violations, f.warnings
}

// meta checks the metadata that every object has.
func (f *findings) meta(o metav1.Object, name func(string) []string, namespaced bool) {
	switch {
	case o.GetName() == "" && o.GetGenerateName() != "":
		f.refuse("metadata.name", "missing; generateName needs an API server, write a name")
	case o.GetName() == "":
		f.refuse("metadata.name", "missing; write the object's name")
	default:
		for _, m := range name(o.GetName()) {
			f.refuse("metadata.name", "%q: %s", o.GetName(), m)
		}
	}
	if !namespaced && o.GetNamespace() != "" {
		f.refuse("metadata.namespace", "%s has no Namespace; remove it", f.object.Kind)
	}
	if namespaced {
		for _, m := range validation.IsDNS1123Label(o.GetNamespace()) {
			f.refuse("metadata.namespace", "%q: %s", o.GetNamespace(), m)
		}
	}
	f.labels("metadata.labels", o.GetLabels())
	for _, key := range slices.Sorted(maps.Keys(o.GetAnnotations())) {
		for _, m := range validation.IsQualifiedName(strings.ToLower(key)) {
			f.refuse("metadata.annotations", "key %q: %s", key, m)
		}
	}
}

// labels checks keys and values of a mapping of labels.
func (f *findings) labels(field string, m map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		for _, msg := range validation.IsQualifiedName(key) {
			f.refuse(field, "key %q: %s", key, msg)
		}
		for _, msg := range validation.IsValidLabelValue(m[key]) {
			f.refuse(field+"."+key, "value %q: %s", m[key], msg)
		}
	}
}

// selector checks a label selector.
func (f *findings) selector(field string, s *metav1.LabelSelector) {
	f.labels(field+".matchLabels", s.MatchLabels)
	for i, r := range s.MatchExpressions {
		at := fmt.Sprintf("%s.matchExpressions[%d]", field, i)
		if r.Key == "" {
			f.refuse(at+".key", "missing; write the label key to look at")
		} else {
			for _, msg := range validation.IsQualifiedName(r.Key) {
				f.refuse(at+".key", "%q: %s", r.Key, msg)
			}
		}
		switch r.Operator {
		case metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn:
			if len(r.Values) == 0 {
				f.refuse(at+".values", "missing; %s needs at least one value, or write Exists or DoesNotExist", r.Operator)
			}
		case metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist:
			if len(r.Values) > 0 {
				f.refuse(at+".values", "%s takes no values; remove them, or write In or NotIn", r.Operator)
			}
		case "":
			f.refuse(at+".operator", "missing; write In, NotIn, Exists or DoesNotExist")
		default:
			f.refuse(at+".operator", "%q is unknown; write In, NotIn, Exists or DoesNotExist", r.Operator)
		}
		for j, v := range r.Values {
			for _, msg := range validation.IsValidLabelValue(v) {
				f.refuse(fmt.Sprintf("%s.values[%d]", at, j), "%q: %s", v, msg)
			}
		}
	}
}

// address checks an IP address as the API server does.
func (f *findings) address(field, s string) {
	if s == "" {
		f.refuse(field, "missing; write an address such as 10.9.8.7 or 2001:db8::1")
		return
	}
	if netutils.ParseIPSloppy(s) == nil {
		f.refuse(field, "%q is no IP address; write one such as 10.9.8.7 or 2001:db8::1", s)
		return
	}
	if _, err := parseAddr(s); err != nil {
		f.refuse(field, "%q has leading zeros; write %q", s, netutils.ParseIPSloppy(s).String())
	}
}

// cidr checks a prefix and reports whether it can be used.
func (f *findings) cidr(field, s string) bool {
	if s == "" {
		f.refuse(field, "missing; write a prefix such as 10.9.8.0/24 or 2001:db8::/64")
		return false
	}
	p, err := parsePrefix(s)
	if err != nil {
		hint := "write a prefix such as 10.9.8.0/24 or 2001:db8::/64"
		if ip := netutils.ParseIPSloppy(s); ip != nil {
			hint = fmt.Sprintf("write %s/%d for this one address", ip, 8*addrLen(s))
		}
		f.refuse(field, "%q is no CIDR; %s", s, hint)
		return false
	}
	if given, _, found := strings.Cut(s, "/"); found {
		if ip := netutils.ParseIPSloppy(given); ip != nil && !ip.Equal(p.Addr().AsSlice()) {
			f.warn(field, "%q has bits behind the prefix length and is read as %s; write that, or %s/%d for the one address", s, p, ip, p.Addr().BitLen())
		} else if p.String() != strings.ToLower(s) && p.Addr().Is4() {
			f.warn(field, "%q is read as %s; write that", s, p)
		}
	}
	return true
}

func addrLen(s string) int {
	if strings.Contains(s, ":") {
		return 16
	}
	return 4
}

// protocol checks a protocol that may be absent.
func (f *findings) protocol(field string, p corev1.Protocol) {
	switch p {
	case "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
	default:
		f.refuse(field, "%q is unknown; write TCP, UDP or SCTP", p)
	}
}

// port checks a port number.
func (f *findings) port(field string, n int32) bool {
	if n < 1 || n > 65535 {
		f.refuse(field, "%d is no port; write a number from 1 to 65535", n)
		return false
	}
	return true
}

// portName checks the name of a container port.
func (f *findings) portName(field, name string) {
	msgs := validation.IsValidPortName(name)
	if len(msgs) == 0 {
		return
	}
	if isDigits(name) {
		f.refuse(field, "%q is a string; write the number %s without quotes, or a port name", name, name)
		return
	}
	f.refuse(field, "%q is no port name: %s", name, strings.Join(msgs, "; "))
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
