package churn

import (
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// setPolicy gives a policy any content that stays within its tenant.
func (c *cluster) setPolicy(t *tenant, slot *policySlot) {
	slot.there = true
	o := c.objects.NetworkPolicy(slot.namespace, slot.name)
	for i := range o.Spec.Ingress {
		confine(t, o.Spec.Ingress[i].From)
	}
	for i := range o.Spec.Egress {
		confine(t, o.Spec.Egress[i].To)
		number(&o.Spec.Egress[i])
	}
	if c.chance(30) {
		o.Spec.Ingress = append(o.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{sharedLabel: "true"}}}}})
	}
	c.set(o)
}

// confine makes selectors of Namespaces choose among a tenant's.
func confine(t *tenant, peers []networkingv1.NetworkPolicyPeer) {
	for i := range peers {
		s := peers[i].NamespaceSelector
		if s == nil {
			continue
		}
		for key, value := range s.MatchLabels {
			s.MatchLabels[key] = t.rename(value)
		}
		for j := range s.MatchExpressions {
			values := s.MatchExpressions[j].Values
			for k := range values {
				values[k] = t.rename(values[k])
			}
		}
		if s.MatchLabels == nil {
			s.MatchLabels = map[string]string{}
		}
		s.MatchLabels[tenantLabel] = t.name
	}
}

// rename is the tenant's Namespace for a name that the generator draws.
func (t *tenant) rename(value string) string {
	for _, space := range t.spaces {
		if space == t.name+"-"+value {
			return space
		}
	}
	return value
}

// number replaces the names of ports where they would be resolved on all Pods
// of the cluster: in egress rules without peers, or with blocks of addresses.
func number(r *networkingv1.NetworkPolicyEgressRule) {
	wide := len(r.To) == 0
	for _, peer := range r.To {
		wide = wide || peer.IPBlock != nil
	}
	for i := range r.Ports {
		if p := r.Ports[i].Port; wide && p != nil && p.Type == intstr.String {
			eighty := intstr.FromInt32(80)
			r.Ports[i].Port = &eighty
		}
	}
}

// widePolicy names all Pods of the cluster.
func widePolicy(namespace string) *networkingv1.NetworkPolicy {
	o := &networkingv1.NetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}}
	o.Namespace, o.Name = namespace, widePolicyName
	port := intstr.FromInt32(8080)
	o.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		From:  []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}}},
		Ports: []networkingv1.NetworkPolicyPort{{Port: &port}}}}
	return o
}
