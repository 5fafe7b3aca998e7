package churn

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// Policies of the cluster that keep to one tenant, what they name, and two
// tiers that all share.
const orderedSlots = 2 // Of a tenant.

var ownTiers = []string{"early", "late"}

func meta(kind, name string) (metav1.TypeMeta, metav1.ObjectMeta) {
	return metav1.TypeMeta{APIVersion: antreav1beta1.APIVersion, Kind: kind}, metav1.ObjectMeta{Name: name}
}

// changeOrdered changes an ordered policy of a tenant, its group, or a tier.
func (c *cluster) changeOrdered(t *tenant) {
	switch n := c.rand.IntN(20); {
	case n < 12:
		c.setOrdered(t, c.rand.IntN(orderedSlots))
	case n < 14:
		c.remove(api.Ref{Kind: api.KindAntreaClusterNetworkPolicy, Name: fmt.Sprint(t.name, "-", c.rand.IntN(orderedSlots))})
	case n < 18:
		c.setGroup(t)
	case n < 19:
		c.remove(api.Ref{Kind: api.KindClusterGroup, Name: t.name})
	default:
		c.setTier()
	}
}

func (c *cluster) setTier() {
	o := &antreav1beta1.Tier{Spec: antreav1beta1.TierSpec{Priority: int32(1 + c.rand.IntN(40))}}
	o.TypeMeta, o.ObjectMeta = meta("Tier", pick(c, ownTiers))
	c.set(o)
}

func (c *cluster) setGroup(t *tenant) {
	o := &antreav1beta1.ClusterGroup{Spec: antreav1beta1.GroupSpec{NamespaceSelector: within(t), PodSelector: c.pods()}}
	if c.chance(20) {
		o.Spec = antreav1beta1.GroupSpec{IPBlocks: []antreav1beta1.IPBlock{{CIDR: fmt.Sprintf("10.64.%d.0/24", c.rand.IntN(200))}}}
	}
	o.TypeMeta, o.ObjectMeta = meta("ClusterGroup", t.name)
	c.set(o)
}

// within selects a tenant's Namespaces.
func within(t *tenant) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{tenantLabel: t.name}}
}

func (c *cluster) pods() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: c.objects.Labels()}
}

// setOrdered gives an ordered policy any content that stays within its tenant.
func (c *cluster) setOrdered(t *tenant, slot int) {
	o := &antreav1beta1.ClusterNetworkPolicy{}
	o.TypeMeta, o.ObjectMeta = meta("ClusterNetworkPolicy", fmt.Sprint(t.name, "-", slot))
	priority := float64(1+c.rand.IntN(10)) / 2
	o.Spec.Tier, o.Spec.Priority = pick(c, append([]string{"", "emergency", "baseline"}, ownTiers...)), new(float64)
	*o.Spec.Priority = max(priority, 1)
	o.Spec.AppliedTo = []antreav1beta1.AppliedTo{{NamespaceSelector: within(t), PodSelector: c.pods()}}
	if c.chance(15) {
		o.Annotations = map[string]string{api.AnnotationEnforcement: "staged"}
	}
	for i := range 1 + c.rand.IntN(3) {
		action := pick(c, []string{"Allow", "Drop", "Reject"})
		if o.Spec.Tier != "baseline" && c.chance(20) {
			action = "Pass"
		}
		r := antreav1beta1.Rule{Name: fmt.Sprint("r", i), Action: &action, EnableLogging: c.chance(20)}
		if c.chance(50) {
			port := intstr.FromInt32(int32(80 + c.rand.IntN(3)))
			r.Ports = []antreav1beta1.Port{{Port: &port}}
		}
		for range 1 + c.rand.IntN(2) {
			r.From = append(r.From, c.peer(t))
		}
		o.Spec.Ingress = append(o.Spec.Ingress, r)
	}
	c.set(o)
}

func (c *cluster) peer(t *tenant) antreav1beta1.Peer {
	switch c.rand.IntN(6) {
	case 0:
		return antreav1beta1.Peer{Namespaces: &antreav1beta1.PeerNamespaces{Match: "Self"}}
	case 1:
		return antreav1beta1.Peer{Namespaces: &antreav1beta1.PeerNamespaces{SameLabels: []string{tenantLabel}}, PodSelector: c.pods()}
	case 2:
		return antreav1beta1.Peer{Group: t.name}
	case 3:
		return antreav1beta1.Peer{IPBlock: &antreav1beta1.IPBlock{CIDR: "10.64.0.0/16", Except: []string{"10.64.1.0/24"}}}
	}
	return antreav1beta1.Peer{NamespaceSelector: within(t), PodSelector: c.pods()}
}
