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
		switch {
		case entry.IPBlock != nil:
			if inBlock(entry.IPBlock, peer) {
				return true
			}
		case peer.pod != nil && s.peerSelects(p.Namespace, entry, peer.pod):
			return true
		}
	}
	return false
}

// each is the party as each of the Pods that it may be, or as it is.
func (p party) each() []party {
	if len(p.at) < 2 {
		return []party{p}
	}
	list := make([]party, len(p.at))
	for i, pod := range p.at {
		list[i] = p
		list[i].pod, list[i].at = pod, nil
	}
	return list
}

// fits says whether a rule matches by its peers, and by its ports too. A peer that
// may be one of several Pods is one at a time: the port names are those of the Pod
// that the rule's peers select.
func (q *question) fits(isPeer func(party) bool, isPort func(at *api.Pod) bool) (peer, all bool) {
	for _, p := range q.peer.each() {
		if !isPeer(p) {
			continue
		}
		at := p.pod // Where the port is.
		if q.direction == Ingress {
			at = q.subject.pod
		}
		if peer = true; isPort(at) {
			return true, true
		}
	}
	return peer, false
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

// portsMatch reports whether one of a rule's ports is the flow's, which is at a
// Pod; nil for what is none. A rule without ports means any traffic.
func portsMatch(ports []api.NetworkPolicyPort, f *flow, at *api.Pod) bool {
	if len(ports) == 0 {
		return true
	}
	for _, p := range ports {
		if isTraffic(api.Traffic{Protocol: p.Protocol, Port: p.Port, EndPort: p.EndPort, PortName: p.PortName}, f, at) {
			return true
		}
	}
	return false
}

// namesPort reports whether a port name stands for the flow's port at a Pod, its
// destination; nil for what is none.
func namesPort(f *flow, at *api.Pod, name string, protocol api.Protocol) bool {
	return at != nil && slices.ContainsFunc(at.Ports, func(c api.ContainerPort) bool {
		return c.Name == name && c.Protocol == protocol && c.Port == f.port
	})
}
