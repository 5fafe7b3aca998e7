package api

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"crypto/sha1" // Of generated rule names, which the API fixes.

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// FromTier converts a Tier.
func FromTier(o *antreav1beta1.Tier) (*Tier, error) {
	if o.Spec.Priority < 0 || o.Spec.Priority > 255 {
		return nil, fmt.Errorf("Tier %s: spec.priority: %d", o.Name, o.Spec.Priority)
	}
	t := &Tier{Name: intern(o.Name), Priority: uint8(o.Spec.Priority)}
	if !o.CreationTimestamp.IsZero() {
		t.Created = o.CreationTimestamp.Unix()
	}
	return t, nil
}

// TierName is the name of the tier that a policy refers to: empty means
// application, and static tiers may bear their former capitalised names.
func TierName(written string) string {
	if written == "" {
		return TierApplication
	}
	if lower := strings.ToLower(written); lower != written {
		if _, static := StaticTier(lower); static {
			return lower
		}
	}
	return intern(written)
}

// GenerateRuleName is the name of a rule that has none: direction, action as
// written, and the first seven digits of the SHA-1 of the rule's JSON without a
// name (reference: "[ingress/egress]-[action]-[uid]").
func GenerateRuleName(direction string, r antreav1beta1.Rule) string {
	r.Name = ""
	text, err := json.Marshal(r)
	if err != nil {
		panic("api: a rule cannot be written as JSON: " + err.Error())
	}
	sum := sha1.Sum(text)
	return strings.ToLower(direction + "-" + orElse(r.Action, "") + "-" + hex.EncodeToString(sum[:])[:7])
}

// FromAntreaClusterNetworkPolicy converts a ClusterNetworkPolicy of
// crd.antrea.io. It fails on what cannot be represented, which validation
// refuses too; such a policy cannot be enforced.
func FromAntreaClusterNetworkPolicy(o *antreav1beta1.ClusterNetworkPolicy) (*OrderedPolicy, error) {
	return antreaPolicy(KindAntreaClusterNetworkPolicy, o, &o.Spec)
}

// FromAntreaNetworkPolicy is FromAntreaClusterNetworkPolicy for a NetworkPolicy.
func FromAntreaNetworkPolicy(o *antreav1beta1.NetworkPolicy) (*OrderedPolicy, error) {
	return antreaPolicy(KindAntreaNetworkPolicy, o, &o.Spec)
}

// newOrderedPolicy has what metadata says.
func newOrderedPolicy(kind Kind, o metav1.Object) *OrderedPolicy {
	p := &OrderedPolicy{Kind: kind, Namespace: intern(o.GetNamespace()), Name: o.GetName(), UID: string(o.GetUID()),
		Generation: o.GetGeneration(), Staged: o.GetAnnotations()[AnnotationEnforcement] == "staged",
		AllowLockout: o.GetAnnotations()[AnnotationAllowLockout] == "true"}
	if created := o.GetCreationTimestamp(); !created.IsZero() {
		p.Created = created.Unix()
	}
	return p
}

func antreaPolicy(kind Kind, o metav1.Object, spec *antreav1beta1.PolicySpec) (*OrderedPolicy, error) {
	p := newOrderedPolicy(kind, o)
	p.Tier, p.Priority = TierName(spec.Tier), orElse(spec.Priority, 0)
	p.AppliedTo = targets(spec.AppliedTo)
	var err error
	if p.Ingress, err = antreaRules("ingress", spec.Ingress); err != nil {
		return nil, fmt.Errorf("%s: spec.ingress%w", p.Ref(), err)
	}
	if p.Egress, err = antreaRules("egress", spec.Egress); err != nil {
		return nil, fmt.Errorf("%s: spec.egress%w", p.Ref(), err)
	}
	return p, nil
}

var antreaActions = map[string]Action{"Allow": ActionAllow, "Drop": ActionDrop, "Deny": ActionDrop, "Pass": ActionPass, "Reject": ActionReject}

func antreaRules(direction string, rules []antreav1beta1.Rule) ([]OrderedRule, error) {
	var out []OrderedRule
	for i := range rules {
		from := &rules[i]
		r := OrderedRule{Name: from.Name, Action: antreaActions[orElse(from.Action, "")], Log: from.EnableLogging, LogLabel: from.LogLabel,
			Layer7: len(from.L7Protocols) > 0, AppliedTo: targets(from.AppliedTo)}
		if r.Action == 0 {
			return nil, fmt.Errorf("[%d].action: unknown action %q", i, orElse(from.Action, ""))
		}
		if r.Name == "" {
			r.Name = GenerateRuleName(direction, *from)
		}
		r.Name = intern(r.Name)
		for j, p := range from.Ports {
			t, err := antreaPort(p)
			if err != nil {
				return nil, fmt.Errorf("[%d].ports[%d].%w", i, j, err)
			}
			r.Traffic = append(r.Traffic, t)
		}
		for j, p := range from.Protocols {
			t, err := antreaProtocol(p)
			if err != nil {
				return nil, fmt.Errorf("[%d].protocols[%d]: %w", i, j, err)
			}
			r.Traffic = append(r.Traffic, t)
		}
		peers := from.From
		if direction == "egress" {
			peers = from.To
		}
		for j, p := range peers {
			peer, err := antreaPeer(p)
			if err != nil {
				return nil, fmt.Errorf("[%d]: peer %d: %w", i, j, err)
			}
			r.Peers = append(r.Peers, peer)
		}
		for _, s := range from.ToServices {
			r.ToServices = append(r.ToServices, NamespacedName{intern(s.Namespace), intern(s.Name)})
		}
		out = append(out, r)
	}
	return out, nil
}

func antreaPort(p antreav1beta1.Port) (Traffic, error) {
	t := Traffic{Protocol: protocol(orElse(p.Protocol, corev1.ProtocolTCP))}
	number := func(field string, n *int32, into *uint16) error {
		if n != nil && (*n < 1 || *n > 65535) {
			return fmt.Errorf("%s: %d is no port", field, *n)
		}
		*into = uint16(orElse(n, 0))
		return nil
	}
	if p.Port != nil && p.Port.Type == intstr.String {
		t.PortName = intern(p.Port.StrVal)
	} else if p.Port != nil {
		if err := number("port", &p.Port.IntVal, &t.Port); err != nil {
			return t, err
		}
	}
	if err := number("endPort", p.EndPort, &t.EndPort); err != nil {
		return t, err
	}
	if err := number("sourcePort", p.SourcePort, &t.SourcePort); err != nil {
		return t, err
	}
	return t, number("sourceEndPort", p.SourceEndPort, &t.SourceEndPort)
}

func antreaProtocol(p antreav1beta1.Protocol) (Traffic, error) {
	octet := func(n *int32) *uint8 {
		if n == nil {
			return nil
		}
		b := uint8(*n)
		return &b
	}
	switch {
	case p.ICMP != nil:
		return Traffic{Protocol: ProtocolICMP, ICMPType: octet(p.ICMP.Type), ICMPCode: octet(p.ICMP.Code)}, nil
	case p.IGMP != nil:
		t := Traffic{Protocol: ProtocolIGMP, IGMPType: octet(p.IGMP.Type)}
		if p.IGMP.GroupAddress != "" {
			var err error
			if t.Multicast, err = netip.ParseAddr(p.IGMP.GroupAddress); err != nil {
				return t, fmt.Errorf("igmp.groupAddress: %w", err)
			}
		}
		return t, nil
	}
	return Traffic{}, fmt.Errorf("names no protocol")
}

func antreaPeer(p antreav1beta1.Peer) (Peer, error) {
	out := Peer{PodSelector: optional(p.PodSelector), NamespaceSelector: optional(p.NamespaceSelector), Group: intern(p.Group),
		ServiceAccount: namespacedName(p.ServiceAccount), NodeSelector: optional(p.NodeSelector), FQDN: intern(strings.ToLower(p.FQDN))}
	switch {
	case p.ExternalEntitySelector != nil || p.Scope != "" && p.Scope != "Cluster":
		return out, fmt.Errorf("reaches beyond the cluster")
	case p.Namespaces != nil && p.Namespaces.Match == "Self":
		out.SameLabels = []string{LabelNamespaceName}
	case p.Namespaces != nil && len(p.Namespaces.SameLabels) > 0:
		for _, key := range p.Namespaces.SameLabels {
			out.SameLabels = append(out.SameLabels, intern(key))
		}
		out.SameLabels = sortedUnique(out.SameLabels)
	case p.Namespaces != nil:
		return out, fmt.Errorf("namespaces: names no relation")
	case p.IPBlock != nil:
		block, err := ipBlock((*networkingv1.IPBlock)(p.IPBlock))
		if err != nil {
			return out, fmt.Errorf("ipBlock: %w", err)
		}
		out.IPBlock = block
	}
	return out, nil
}

func targets(list []antreav1beta1.AppliedTo) []Target {
	var out []Target
	for _, a := range list {
		out = append(out, Target{PodSelector: optional(a.PodSelector), NamespaceSelector: optional(a.NamespaceSelector), Group: intern(a.Group),
			ServiceAccount: namespacedName(a.ServiceAccount), Service: namespacedName(a.Service), NodeSelector: optional(a.NodeSelector)})
	}
	return out
}

func optional(s *metav1.LabelSelector) *Selector {
	if s == nil {
		return nil
	}
	out := selector(*s)
	return &out
}

func namespacedName(n *antreav1beta1.NamespacedName) *NamespacedName {
	if n == nil {
		return nil
	}
	return &NamespacedName{intern(n.Namespace), intern(n.Name)}
}

// FromClusterGroup converts a ClusterGroup. It fails on what cannot be represented.
func FromClusterGroup(o *antreav1beta1.ClusterGroup) (*Group, error) {
	return antreaGroup(KindClusterGroup, o, &o.Spec)
}

// FromGroup converts a Group. It fails on what cannot be represented.
func FromGroup(o *antreav1beta1.Group) (*Group, error) { return antreaGroup(KindGroup, o, &o.Spec) }

func antreaGroup(kind Kind, o metav1.Object, spec *antreav1beta1.GroupSpec) (*Group, error) {
	g := &Group{Kind: kind, Namespace: intern(o.GetNamespace()), Name: intern(o.GetName()), UID: string(o.GetUID()), Generation: o.GetGeneration(),
		PodSelector: optional(spec.PodSelector), NamespaceSelector: optional(spec.NamespaceSelector), Service: namespacedName(spec.ServiceReference)}
	blocks := spec.IPBlocks
	if spec.IPBlock != nil {
		blocks = append([]antreav1beta1.IPBlock{*spec.IPBlock}, blocks...)
	}
	for i := range blocks {
		block, err := ipBlock((*networkingv1.IPBlock)(&blocks[i]))
		if err != nil {
			return nil, fmt.Errorf("%s: spec.ipBlocks[%d].%w", g.Ref(), i, err)
		}
		g.IPBlocks = append(g.IPBlocks, *block)
	}
	for _, name := range spec.ChildGroups {
		g.Children = append(g.Children, intern(name))
	}
	if spec.ExternalEntitySelector != nil || spec.NodeSelector != nil {
		return nil, fmt.Errorf("%s: spec selects what a group cannot hold", g.Ref())
	}
	return g, nil
}
