package evaluate

import (
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// isolates reports whether a policy speaks of a direction. Where policyTypes
// is absent, it speaks of ingress, and of egress if it has egress rules.
func isolates(p *api.NetworkPolicy, d Direction) bool {
	if len(p.PolicyTypes) == 0 {
		return d == Ingress || len(p.Egress) > 0
	}
	if d == Ingress {
		return slices.Contains(p.PolicyTypes, api.PolicyTypeIngress)
	}
	return slices.Contains(p.PolicyTypes, api.PolicyTypeEgress)
}

func rulesOf(p *api.NetworkPolicy, d Direction) []api.NetworkPolicyRule {
	if d == Ingress {
		return p.Ingress
	}
	return p.Egress
}

// selects reports whether a selector matches labels: every label and every
// expression must hold.
func selects(s api.Selector, labels map[string]string) bool {
	for _, want := range s.MatchLabels {
		if value, there := labels[want.Key]; !there || value != want.Value {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		value, there := labels[r.Key]
		holds := false
		switch r.Operator {
		case api.OpIn:
			holds = there && slices.Contains(r.Values, value)
		case api.OpNotIn:
			holds = !there || !slices.Contains(r.Values, value)
		case api.OpExists:
			holds = there
		case api.OpDoesNotExist:
			holds = !there
		}
		if !holds {
			return false
		}
	}
	return true
}

// peersMatch reports whether one of a rule's peers is the given one. A rule
// without peers means anyone.
func (s *State) peersMatch(p *api.NetworkPolicy, peers []api.NetworkPolicyPeer, peer party) bool {
	if len(peers) == 0 {
		return true
	}
	for _, entry := range peers {
		if entry.IPBlock != nil {
			if inBlock(entry.IPBlock, peer) {
				return true
			}
			continue
		}
		for _, pod := range peer.pods() {
			if s.peerSelects(p.Namespace, entry, pod) {
				return true
			}
		}
	}
	return false
}

// pods are the Pods that a party may be.
func (p party) pods() []*api.Pod {
	if len(p.at) == 0 && p.pod != nil {
		return []*api.Pod{p.pod}
	}
	return p.at
}

// peerSelects reports whether a peer's selectors, given in a policy of a
// Namespace, match a Pod. An absent namespaceSelector means the policy's own
// Namespace; an absent podSelector means every Pod.
func (s *State) peerSelects(namespace string, entry api.NetworkPolicyPeer, pod *api.Pod) bool {
	if entry.PodSelector == nil && entry.NamespaceSelector == nil {
		return false // Validation refuses it. An empty peer must not mean anyone.
	}
	if entry.NamespaceSelector == nil {
		if pod.Namespace != namespace {
			return false
		}
	} else if !selects(*entry.NamespaceSelector, s.namespaceLabels(pod.Namespace)) {
		return false
	}
	return entry.PodSelector == nil || selects(*entry.PodSelector, labelsOf(pod.Labels))
}

// inBlock reports whether an address is in a block. Addresses of Pods count as
// any other.
func inBlock(b *api.IPBlock, peer party) bool {
	if !peer.addr.IsValid() { // A name whose address is not given: it may be any.
		return b.CIDR.Bits() == 0
	}
	if !b.CIDR.Contains(peer.addr) {
		return false
	}
	for _, except := range b.Except {
		if except.Contains(peer.addr) {
			return false
		}
	}
	return true
}

// portsMatch reports whether one of a rule's ports is the flow's. A rule
// without ports means any traffic.
func portsMatch(ports []api.NetworkPolicyPort, f *flow, d Direction) bool {
	if len(ports) == 0 {
		return true
	}
	for _, p := range ports {
		if isTraffic(api.Traffic{Protocol: p.Protocol, Port: p.Port, EndPort: p.EndPort, PortName: p.PortName}, f, d) {
			return true
		}
	}
	return false
}

// namesPort reports whether a port name stands for the flow's port at its
// destination, which in both directions is where the port is. The Pod that a
// policy guards is known; for a peer, any Pod will do that the address may be.
func namesPort(f *flow, d Direction, name string, protocol api.Protocol) bool {
	pods := f.to.pods()
	if d == Ingress && f.to.pod != nil {
		pods = []*api.Pod{f.to.pod}
	}
	for _, pod := range pods {
		for _, c := range pod.Ports {
			if c.Name == name && c.Protocol == protocol && c.Port == f.port {
				return true
			}
		}
	}
	return false
}
