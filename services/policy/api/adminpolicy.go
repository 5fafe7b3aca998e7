package api

import (
	"fmt"
	"strings"

	anpv1alpha1 "sigs.k8s.io/network-policy-api/apis/v1alpha1"
)

// AnnotationEnableLogging on an upstream admin policy is "true" where it is
// recorded: its API has no field for that.
const AnnotationEnableLogging = "weir.dev/enable-logging"

// Action is what a rule does with what it matches.
type Action uint8

// The actions. What upstream admin policies call Deny is ActionDrop.
const (
	ActionAllow Action = iota + 1
	ActionDrop
	ActionPass
)

// AdminPolicy mirrors AdminNetworkPolicy and BaselineAdminNetworkPolicy of
// policy.networking.k8s.io/v1alpha1.
type AdminPolicy struct {
	Kind       Kind // KindAdminNetworkPolicy or KindBaselineAdminNetworkPolicy.
	Name       string
	UID        string
	Generation int64
	Created    int64 // Unix seconds; zero where unknown.
	Staged     bool
	Log        bool

	Priority int32 // Of an AdminNetworkPolicy, 0 to 1000; the lower is judged first.
	Subject  NamespacedPods
	Ingress  []AdminRule
	Egress   []AdminRule
}

// Ref implements Object.
func (p *AdminPolicy) Ref() Ref { return Ref{Kind: p.Kind, Name: p.Name} }

// NamespacedPods are the Pods that a selector chooses in the Namespaces that
// another chooses. Pods nil means all of them.
type NamespacedPods struct {
	Namespaces Selector
	Pods       *Selector
}

// AdminRule is one rule of an AdminPolicy. No ports means any traffic; it has
// at least one peer.
type AdminRule struct {
	Name   string
	Action Action
	Ports  []NetworkPolicyPort // A name without protocol stands here once for each protocol.
	Peers  []AdminPeer
}

// AdminPeer is one peer: Pods, or a block of addresses.
type AdminPeer struct {
	Pods    *NamespacedPods
	IPBlock *IPBlock
}

// FromAdminNetworkPolicy converts an AdminNetworkPolicy. It fails on what
// cannot be represented; such a policy cannot be enforced.
func FromAdminNetworkPolicy(o *anpv1alpha1.AdminNetworkPolicy) (*AdminPolicy, error) {
	p := &AdminPolicy{Kind: KindAdminNetworkPolicy, Name: o.Name, UID: string(o.UID), Generation: o.Generation, Priority: o.Spec.Priority}
	if !o.CreationTimestamp.IsZero() {
		p.Created = o.CreationTimestamp.Unix()
	}
	ingress, egress := adminRulesOf(o)
	return p, p.complete(o.Annotations, o.Spec.Subject, ingress, egress)
}

// FromBaselineAdminNetworkPolicy is FromAdminNetworkPolicy for the baseline.
func FromBaselineAdminNetworkPolicy(o *anpv1alpha1.BaselineAdminNetworkPolicy) (*AdminPolicy, error) {
	p := &AdminPolicy{Kind: KindBaselineAdminNetworkPolicy, Name: o.Name, UID: string(o.UID), Generation: o.Generation}
	if !o.CreationTimestamp.IsZero() {
		p.Created = o.CreationTimestamp.Unix()
	}
	ingress, egress := baselineRulesOf(o)
	return p, p.complete(o.Annotations, o.Spec.Subject, ingress, egress)
}

// adminRule is what the rules of both kinds and directions have in common.
type adminRule struct {
	name, action string
	ports        *[]anpv1alpha1.AdminNetworkPolicyPort
	peers        []anpv1alpha1.AdminNetworkPolicyEgressPeer
}

func adminRulesOf(o *anpv1alpha1.AdminNetworkPolicy) (ingress, egress []adminRule) {
	for _, r := range o.Spec.Ingress {
		ingress = append(ingress, adminRule{r.Name, string(r.Action), r.Ports, ingressPeers(r.From)})
	}
	for _, r := range o.Spec.Egress {
		egress = append(egress, adminRule{r.Name, string(r.Action), r.Ports, r.To})
	}
	return ingress, egress
}

func baselineRulesOf(o *anpv1alpha1.BaselineAdminNetworkPolicy) (ingress, egress []adminRule) {
	for _, r := range o.Spec.Ingress {
		ingress = append(ingress, adminRule{r.Name, string(r.Action), r.Ports, ingressPeers(r.From)})
	}
	for _, r := range o.Spec.Egress {
		peers := make([]anpv1alpha1.AdminNetworkPolicyEgressPeer, len(r.To))
		for i, p := range r.To {
			peers[i] = anpv1alpha1.AdminNetworkPolicyEgressPeer{Namespaces: p.Namespaces, Pods: p.Pods, Nodes: p.Nodes, Networks: p.Networks}
		}
		egress = append(egress, adminRule{r.Name, string(r.Action), r.Ports, peers})
	}
	return ingress, egress
}

func ingressPeers(from []anpv1alpha1.AdminNetworkPolicyIngressPeer) []anpv1alpha1.AdminNetworkPolicyEgressPeer {
	peers := make([]anpv1alpha1.AdminNetworkPolicyEgressPeer, len(from))
	for i, p := range from {
		peers[i] = anpv1alpha1.AdminNetworkPolicyEgressPeer{Namespaces: p.Namespaces, Pods: p.Pods}
	}
	return peers
}

func (p *AdminPolicy) complete(annotations map[string]string, s anpv1alpha1.AdminNetworkPolicySubject, ingress, egress []adminRule) error {
	p.Staged = annotations[AnnotationEnforcement] == "staged"
	p.Log = strings.EqualFold(annotations[AnnotationEnableLogging], "true")
	switch {
	case s.Namespaces != nil:
		p.Subject = NamespacedPods{Namespaces: selector(*s.Namespaces)}
	case s.Pods != nil:
		p.Subject = *namespacedPods(s.Pods)
	default:
		return fmt.Errorf("%s: spec.subject is empty", p.Ref())
	}
	var err error
	if p.Ingress, err = adminRules(ingress); err != nil {
		return fmt.Errorf("%s: spec.ingress%w", p.Ref(), err)
	}
	if p.Egress, err = adminRules(egress); err != nil {
		return fmt.Errorf("%s: spec.egress%w", p.Ref(), err)
	}
	return nil
}

func namespacedPods(p *anpv1alpha1.NamespacedPod) *NamespacedPods {
	pods := selector(p.PodSelector)
	return &NamespacedPods{Namespaces: selector(p.NamespaceSelector), Pods: &pods}
}

func adminRules(rules []adminRule) ([]AdminRule, error) {
	var out []AdminRule
	for i, r := range rules {
		action, ok := adminActions[r.action]
		if !ok {
			return nil, fmt.Errorf("[%d].action: unknown action %q", i, r.action)
		}
		rule := AdminRule{Name: r.name, Action: action}
		if r.ports != nil {
			for _, port := range *r.ports {
				rule.Ports = append(rule.Ports, adminPorts(port)...)
			}
		}
		for j, peer := range r.peers {
			peers, err := adminPeers(peer)
			if err != nil {
				return nil, fmt.Errorf("[%d]: peer %d: %w", i, j, err)
			}
			rule.Peers = append(rule.Peers, peers...)
		}
		out = append(out, rule)
	}
	return out, nil
}

var adminActions = map[string]Action{"Allow": ActionAllow, "Deny": ActionDrop, "Pass": ActionPass}

func adminPorts(p anpv1alpha1.AdminNetworkPolicyPort) []NetworkPolicyPort {
	switch {
	case p.PortNumber != nil:
		return []NetworkPolicyPort{{Protocol: protocol(p.PortNumber.Protocol), Port: uint16(p.PortNumber.Port)}}
	case p.PortRange != nil:
		return []NetworkPolicyPort{{Protocol: protocol(p.PortRange.Protocol), Port: uint16(p.PortRange.Start), EndPort: uint16(p.PortRange.End)}}
	}
	var named []NetworkPolicyPort
	for _, protocol := range []Protocol{ProtocolTCP, ProtocolUDP, ProtocolSCTP} {
		named = append(named, NetworkPolicyPort{Protocol: protocol, PortName: intern(orElse(p.NamedPort, ""))})
	}
	return named
}

func adminPeers(p anpv1alpha1.AdminNetworkPolicyEgressPeer) (peers []AdminPeer, err error) {
	switch {
	case p.Namespaces != nil:
		return []AdminPeer{{Pods: &NamespacedPods{Namespaces: selector(*p.Namespaces)}}}, nil
	case p.Pods != nil:
		return []AdminPeer{{Pods: namespacedPods(p.Pods)}}, nil
	case len(p.Networks) > 0:
		for i, n := range p.Networks {
			prefix, err := parsePrefix(string(n))
			if err != nil {
				return nil, fmt.Errorf("networks[%d]: %w", i, err)
			}
			peers = append(peers, AdminPeer{IPBlock: &IPBlock{CIDR: prefix}})
		}
		return peers, nil
	}
	return nil, fmt.Errorf("names no peer that is supported")
}
