package api

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	anpv1alpha1 "sigs.k8s.io/network-policy-api/apis/v1alpha1"

	"github.com/weirnet/weir/services/policy/api/adminv1alpha2"
)

// AnnotationEnableLogging on an upstream admin policy is "true" where it is
// recorded: its API has no field for that.
const AnnotationEnableLogging = "weir.dev/enable-logging"

// The three upstream kinds say the same in somewhat different words. An
// adminPolicy is what they have in common, in the words of v1alpha1.
type adminPolicy struct {
	meta            metav1.Object
	subject         anpv1alpha1.AdminNetworkPolicySubject
	ingress, egress []adminRule
}

// adminRule is what the rules of all kinds and directions have in common.
type adminRule struct {
	name, action string
	ports        *[]anpv1alpha1.AdminNetworkPolicyPort // Of v1alpha1.
	protocols    []adminv1alpha2.Protocol              // Of v1alpha2.
	peers        []adminPeer
}

type adminPeer = anpv1alpha1.AdminNetworkPolicyEgressPeer

// FromAdminNetworkPolicy converts an AdminNetworkPolicy. It fails on what
// cannot be represented; such a policy cannot be enforced.
func FromAdminNetworkPolicy(o *anpv1alpha1.AdminNetworkPolicy) (*OrderedPolicy, error) {
	p := newOrderedPolicy(KindAdminNetworkPolicy, o)
	p.Priority = float64(o.Spec.Priority)
	return p, p.complete(adminPolicyOf(o))
}

// FromBaselineAdminNetworkPolicy is FromAdminNetworkPolicy for the baseline.
func FromBaselineAdminNetworkPolicy(o *anpv1alpha1.BaselineAdminNetworkPolicy) (*OrderedPolicy, error) {
	p := newOrderedPolicy(KindBaselineAdminNetworkPolicy, o)
	p.Baseline = true
	return p, p.complete(baselineOf(o))
}

// FromClusterNetworkPolicy is FromAdminNetworkPolicy for the upstream
// ClusterNetworkPolicy.
func FromClusterNetworkPolicy(o *adminv1alpha2.ClusterNetworkPolicy) (*OrderedPolicy, error) {
	p := newOrderedPolicy(KindClusterNetworkPolicy, o)
	p.Priority = float64(orElse(o.Spec.Priority, 0))
	p.Baseline = o.Spec.Tier == "Baseline"
	err := p.complete(clusterPolicyOf(o))
	for _, rules := range [][]OrderedRule{p.Ingress, p.Egress} {
		for i := range rules {
			// After the baseline comes the default, which is to allow.
			if p.Baseline && rules[i].Action == ActionPass {
				rules[i].Action = ActionAllow
			}
		}
	}
	return p, err
}

func adminPolicyOf(o *anpv1alpha1.AdminNetworkPolicy) adminPolicy {
	a := adminPolicy{meta: o, subject: o.Spec.Subject}
	for _, r := range o.Spec.Ingress {
		a.ingress = append(a.ingress, adminRule{r.Name, string(r.Action), r.Ports, nil, ingressPeers(r.From)})
	}
	for _, r := range o.Spec.Egress {
		a.egress = append(a.egress, adminRule{r.Name, string(r.Action), r.Ports, nil, r.To})
	}
	return a
}

func baselineOf(o *anpv1alpha1.BaselineAdminNetworkPolicy) adminPolicy {
	a := adminPolicy{meta: o, subject: o.Spec.Subject}
	for _, r := range o.Spec.Ingress {
		a.ingress = append(a.ingress, adminRule{r.Name, string(r.Action), r.Ports, nil, ingressPeers(r.From)})
	}
	for _, r := range o.Spec.Egress {
		peers := make([]adminPeer, len(r.To))
		for i, p := range r.To {
			peers[i] = adminPeer{Namespaces: p.Namespaces, Pods: p.Pods, Nodes: p.Nodes, Networks: p.Networks}
		}
		a.egress = append(a.egress, adminRule{r.Name, string(r.Action), r.Ports, nil, peers})
	}
	return a
}

func ingressPeers(from []anpv1alpha1.AdminNetworkPolicyIngressPeer) []adminPeer {
	peers := make([]adminPeer, len(from))
	for i, p := range from {
		peers[i] = adminPeer{Namespaces: p.Namespaces, Pods: p.Pods}
	}
	return peers
}

func clusterPolicyOf(o *adminv1alpha2.ClusterNetworkPolicy) adminPolicy {
	pods := func(p *adminv1alpha2.NamespacedPod) *anpv1alpha1.NamespacedPod {
		return (*anpv1alpha1.NamespacedPod)(p)
	}
	peers := func(list []adminv1alpha2.Peer) []adminPeer {
		out := make([]adminPeer, len(list))
		for i, p := range list {
			out[i] = adminPeer{Namespaces: p.Namespaces, Pods: pods(p.Pods), Nodes: p.Nodes}
			for _, n := range p.Networks {
				out[i].Networks = append(out[i].Networks, anpv1alpha1.CIDR(n))
			}
			for _, n := range p.DomainNames {
				out[i].DomainNames = append(out[i].DomainNames, anpv1alpha1.DomainName(n))
			}
		}
		return out
	}
	a := adminPolicy{meta: o, subject: anpv1alpha1.AdminNetworkPolicySubject{Namespaces: o.Spec.Subject.Namespaces, Pods: pods(o.Spec.Subject.Pods)}}
	for _, r := range o.Spec.Ingress {
		a.ingress = append(a.ingress, adminRule{r.Name, r.Action, nil, r.Protocols, peers(r.From)})
	}
	for _, r := range o.Spec.Egress {
		a.egress = append(a.egress, adminRule{r.Name, r.Action, nil, r.Protocols, peers(r.To)})
	}
	return a
}

func (p *OrderedPolicy) complete(from adminPolicy) error {
	switch s := from.subject; {
	case s.Namespaces != nil:
		p.AppliedTo = []Target{{NamespaceSelector: optional(s.Namespaces)}}
	case s.Pods != nil:
		p.AppliedTo = []Target{{NamespaceSelector: optional(&s.Pods.NamespaceSelector), PodSelector: optional(&s.Pods.PodSelector)}}
	default:
		return fmt.Errorf("%s: spec.subject is empty", p.Ref())
	}
	log := strings.EqualFold(from.meta.GetAnnotations()[AnnotationEnableLogging], "true")
	var err error
	if p.Ingress, err = adminRules(from.ingress, log); err != nil {
		return fmt.Errorf("%s: spec.ingress%w", p.Ref(), err)
	}
	if p.Egress, err = adminRules(from.egress, log); err != nil {
		return fmt.Errorf("%s: spec.egress%w", p.Ref(), err)
	}
	return nil
}

var adminActions = map[string]Action{"Allow": ActionAllow, "Accept": ActionAllow, "Deny": ActionDrop, "Pass": ActionPass}

func adminRules(rules []adminRule, log bool) ([]OrderedRule, error) {
	var out []OrderedRule
	for i, r := range rules {
		rule := OrderedRule{Name: intern(r.name), Action: adminActions[r.action], Log: log}
		if rule.Action == 0 {
			return nil, fmt.Errorf("[%d].action: unknown action %q", i, r.action)
		}
		if r.ports != nil {
			for _, port := range *r.ports {
				rule.Traffic = append(rule.Traffic, adminPort(port)...)
			}
		}
		for j, protocol := range r.protocols {
			traffic, err := adminProtocol(protocol)
			if err != nil {
				return nil, fmt.Errorf("[%d].protocols[%d]: %w", i, j, err)
			}
			rule.Traffic = append(rule.Traffic, traffic...)
		}
		for j, peer := range r.peers {
			peers, err := adminPeers(peer)
			if err != nil {
				return nil, fmt.Errorf("[%d]: peer %d: %w", i, j, err)
			}
			rule.Peers = append(rule.Peers, peers...)
		}
		if rule.AnyPeer() {
			return nil, fmt.Errorf("[%d]: names no peer", i)
		}
		out = append(out, rule)
	}
	return out, nil
}

func adminPort(p anpv1alpha1.AdminNetworkPolicyPort) []Traffic {
	switch {
	case p.PortNumber != nil:
		return []Traffic{{Protocol: protocol(p.PortNumber.Protocol), Port: uint16(p.PortNumber.Port)}}
	case p.PortRange != nil:
		return []Traffic{{Protocol: protocol(p.PortRange.Protocol), Port: uint16(p.PortRange.Start), EndPort: uint16(p.PortRange.End)}}
	}
	return portOfAnyProtocol(orElse(p.NamedPort, ""))
}

// portOfAnyProtocol is a name without protocol: it stands once for each.
func portOfAnyProtocol(name string) []Traffic {
	var named []Traffic
	for _, protocol := range []Protocol{ProtocolTCP, ProtocolUDP, ProtocolSCTP} {
		named = append(named, Traffic{Protocol: protocol, PortName: intern(name)})
	}
	return named
}

func adminProtocol(p adminv1alpha2.Protocol) ([]Traffic, error) {
	if p.DestinationNamedPort != "" {
		return portOfAnyProtocol(p.DestinationNamedPort), nil
	}
	for _, of := range []struct {
		protocol  Protocol
		transport *adminv1alpha2.Transport
	}{{ProtocolTCP, p.TCP}, {ProtocolUDP, p.UDP}, {ProtocolSCTP, p.SCTP}} {
		if of.transport == nil {
			continue
		}
		t := Traffic{Protocol: of.protocol}
		switch port := of.transport.DestinationPort; {
		case port == nil:
		case port.Range != nil:
			t.Port, t.EndPort = uint16(port.Range.Start), uint16(port.Range.End)
		default:
			t.Port = uint16(port.Number)
		}
		return []Traffic{t}, nil
	}
	return nil, fmt.Errorf("names no protocol")
}

func adminPeers(p adminPeer) (peers []Peer, err error) {
	switch {
	case p.Namespaces != nil:
		return []Peer{{NamespaceSelector: optional(p.Namespaces)}}, nil
	case p.Pods != nil:
		return []Peer{{NamespaceSelector: optional(&p.Pods.NamespaceSelector), PodSelector: optional(&p.Pods.PodSelector)}}, nil
	case p.Nodes != nil:
		return []Peer{{NodeSelector: optional(p.Nodes)}}, nil
	}
	for i, n := range p.Networks {
		prefix, err := parsePrefix(string(n))
		if err != nil {
			return nil, fmt.Errorf("networks[%d]: %w", i, err)
		}
		peers = append(peers, Peer{IPBlock: &IPBlock{CIDR: prefix}})
	}
	for _, n := range p.DomainNames {
		peers = append(peers, Peer{FQDN: intern(strings.TrimSuffix(strings.ToLower(string(n)), "."))})
	}
	if len(peers) == 0 {
		return nil, fmt.Errorf("names no peer")
	}
	return peers, nil
}
