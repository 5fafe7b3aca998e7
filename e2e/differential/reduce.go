package differential

import (
	"iter"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// reduce yields copies of an object, each with one thing less. Some of them
// may be invalid.
func reduce(o Object) iter.Seq[Object] {
	return func(yield func(Object) bool) {
		switch o := o.(type) {
		case *corev1.Namespace:
			each(yield, o, (*corev1.Namespace).DeepCopy, fewerKeys(o.Labels, func(o *corev1.Namespace) *map[string]string { return &o.Labels }),
				fewerKeys(o.Annotations, func(o *corev1.Namespace) *map[string]string { return &o.Annotations }))
		case *corev1.Node:
			each(yield, o, (*corev1.Node).DeepCopy,
				fewer(o.Status.Addresses, func(o *corev1.Node) *[]corev1.NodeAddress { return &o.Status.Addresses }),
				fewer(o.Spec.PodCIDRs, func(o *corev1.Node) *[]string { return &o.Spec.PodCIDRs }),
				fewerKeys(o.Annotations, func(o *corev1.Node) *map[string]string { return &o.Annotations }))
		case *corev1.Pod:
			each(yield, o, (*corev1.Pod).DeepCopy,
				fewerKeys(o.Labels, func(o *corev1.Pod) *map[string]string { return &o.Labels }),
				fewer(o.Status.PodIPs, func(o *corev1.Pod) *[]corev1.PodIP { return &o.Status.PodIPs }),
				fewer(o.Spec.Containers, func(o *corev1.Pod) *[]corev1.Container { return &o.Spec.Containers }),
				fewer(o.Spec.InitContainers, func(o *corev1.Pod) *[]corev1.Container { return &o.Spec.InitContainers }))
		case *networkingv1.NetworkPolicy:
			each(yield, o, (*networkingv1.NetworkPolicy).DeepCopy, policyParts(o)...)
		}
	}
}

// edits change a copy of an object, each in one way.
type edits[T any] []func(T)

// each yields a copy for every edit.
func each[T Object](yield func(Object) bool, o T, copy func(T) T, parts ...edits[T]) {
	for _, edit := range slices.Concat(parts...) {
		c := copy(o)
		edit(c)
		if !yield(c) {
			return
		}
	}
}

// fewer are the edits that take one entry out of a list; at finds the list in
// a copy.
func fewer[T, E any](list []E, at func(T) *[]E) edits[T] {
	var out edits[T]
	for i := range list {
		out = append(out, func(o T) { *at(o) = slices.Delete(*at(o), i, i+1) })
	}
	return out
}

func fewerKeys[T any](m map[string]string, at func(T) *map[string]string) edits[T] {
	var out edits[T]
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out = append(out, func(o T) { delete(*at(o), key) })
	}
	return out
}

type policyEdits = edits[*networkingv1.NetworkPolicy]

func policyParts(o *networkingv1.NetworkPolicy) []policyEdits {
	type np = *networkingv1.NetworkPolicy
	parts := []policyEdits{
		fewer(o.Spec.Ingress, func(o np) *[]networkingv1.NetworkPolicyIngressRule { return &o.Spec.Ingress }),
		fewer(o.Spec.Egress, func(o np) *[]networkingv1.NetworkPolicyEgressRule { return &o.Spec.Egress }),
		fewer(o.Spec.PolicyTypes, func(o np) *[]networkingv1.PolicyType { return &o.Spec.PolicyTypes }),
		fewerKeys(o.Annotations, func(o np) *map[string]string { return &o.Annotations }),
		selectorParts(&o.Spec.PodSelector, func(o np) *metav1.LabelSelector { return &o.Spec.PodSelector }),
	}
	for i, r := range o.Spec.Ingress {
		parts = append(parts, ruleParts(r.Ports, r.From, func(o np) (*[]networkingv1.NetworkPolicyPort, *[]networkingv1.NetworkPolicyPeer) {
			return &o.Spec.Ingress[i].Ports, &o.Spec.Ingress[i].From
		})...)
	}
	for i, r := range o.Spec.Egress {
		parts = append(parts, ruleParts(r.Ports, r.To, func(o np) (*[]networkingv1.NetworkPolicyPort, *[]networkingv1.NetworkPolicyPeer) {
			return &o.Spec.Egress[i].Ports, &o.Spec.Egress[i].To
		})...)
	}
	return parts
}

func ruleParts(ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer,
	at func(*networkingv1.NetworkPolicy) (*[]networkingv1.NetworkPolicyPort, *[]networkingv1.NetworkPolicyPeer)) []policyEdits {
	type np = *networkingv1.NetworkPolicy
	portsAt := func(o np) *[]networkingv1.NetworkPolicyPort { list, _ := at(o); return list }
	peersAt := func(o np) *[]networkingv1.NetworkPolicyPeer { _, list := at(o); return list }
	parts := []policyEdits{fewer(ports, portsAt), fewer(peers, peersAt)}
	for i, p := range ports {
		if p.EndPort != nil {
			parts = append(parts, policyEdits{func(o np) { (*portsAt(o))[i].EndPort = nil }})
		}
		if p.Protocol != nil {
			parts = append(parts, policyEdits{func(o np) { (*portsAt(o))[i].Protocol = nil }})
		}
	}
	for i, p := range peers {
		peer := func(o np) *networkingv1.NetworkPolicyPeer { return &(*peersAt(o))[i] }
		if p.PodSelector != nil {
			parts = append(parts, selectorParts(p.PodSelector, func(o np) *metav1.LabelSelector { return peer(o).PodSelector }))
		}
		if p.NamespaceSelector != nil {
			parts = append(parts, selectorParts(p.NamespaceSelector, func(o np) *metav1.LabelSelector { return peer(o).NamespaceSelector }))
		}
		if p.PodSelector != nil && p.NamespaceSelector != nil {
			parts = append(parts, policyEdits{func(o np) { peer(o).PodSelector = nil }, func(o np) { peer(o).NamespaceSelector = nil }})
		}
		if p.IPBlock != nil {
			parts = append(parts, fewer(p.IPBlock.Except, func(o np) *[]string { return &peer(o).IPBlock.Except }))
		}
	}
	return parts
}

func selectorParts(s *metav1.LabelSelector, at func(*networkingv1.NetworkPolicy) *metav1.LabelSelector) policyEdits {
	type np = *networkingv1.NetworkPolicy
	out := slices.Concat(
		fewerKeys(s.MatchLabels, func(o np) *map[string]string { return &at(o).MatchLabels }),
		fewer(s.MatchExpressions, func(o np) *[]metav1.LabelSelectorRequirement { return &at(o).MatchExpressions }))
	for i, r := range s.MatchExpressions {
		if len(r.Values) > 1 {
			out = append(out, fewer(r.Values, func(o np) *[]string { return &at(o).MatchExpressions[i].Values })...)
		}
	}
	return out
}
