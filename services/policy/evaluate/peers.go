package evaluate

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// targets says whether an entry of a policy's appliedTo is a Pod.
func (s *State) targets(policy api.Ref, t api.Target, pod *api.Pod) bool {
	switch {
	case t.Group != "":
		ref := api.GroupRef(policy, t.Group)
		for _, g := range s.members(ref) {
			if ownPods(g) && s.groupHas(g, pod) {
				return true
			}
		}
		return false
	case t.ServiceAccount != nil:
		return has(pod, *t.ServiceAccount)
	case policy.Kind == api.KindAntreaNetworkPolicy:
		return t.PodSelector != nil && t.NamespaceSelector == nil && pod.Namespace == policy.Namespace && selects(*t.PodSelector, labelsOf(pod.Labels))
	}
	return s.selectsPod("", t.NamespaceSelector, t.PodSelector, pod)
}

// ownPods says whether a group may be guarded by policies that refer to it: one
// of a Namespace must keep to its Pods.
func ownPods(g *api.Group) bool {
	return g.Kind != api.KindGroup || g.NamespaceSelector == nil && (g.Service == nil || g.Service.Namespace == g.Namespace)
}

func has(pod *api.Pod, account api.NamespacedName) bool {
	return pod.Namespace == account.Namespace && pod.ServiceAccount == account.Name
}

// selectsPod is a pair of selectors as peers, targets and groups have them.
// Without one on Namespaces, the Pods of a given Namespace are meant, or of
// every one where none is given; without any it selects nothing.
func (s *State) selectsPod(namespace string, spaces, pods *api.Selector, pod *api.Pod) bool {
	switch {
	case spaces == nil && pods == nil:
		return false
	case spaces != nil && !selects(*spaces, s.namespaceLabels(pod.Namespace)):
		return false
	case spaces == nil && namespace != "" && pod.Namespace != namespace:
		return false
	}
	return pods == nil || selects(*pods, labelsOf(pod.Labels))
}

// members are the groups that a group is the union of: itself, or its
// children. A group that is not there has none; neither has a child's child.
func (s *State) members(ref api.Ref) []*api.Group {
	g := s.groups[ref]
	if g == nil {
		return nil
	}
	if len(g.Children) == 0 {
		return []*api.Group{g}
	}
	var list []*api.Group
	for _, name := range g.Children {
		if child := s.groups[api.Ref{Kind: ref.Kind, Namespace: ref.Namespace, Name: name}]; child != nil && len(child.Children) == 0 {
			list = append(list, child)
		}
	}
	return list
}

// groupHas says whether a group without children has a Pod as a member.
func (s *State) groupHas(g *api.Group, pod *api.Pod) bool {
	if g.Service != nil {
		svc := s.services[api.Ref{Kind: api.KindService, Namespace: g.Service.Namespace, Name: g.Service.Name}]
		return svc != nil && backs(pod, svc)
	}
	return s.selectsPod(g.Namespace, g.NamespaceSelector, g.PodSelector, pod)
}

// backs says whether a Service's selector selects a Pod.
func backs(pod *api.Pod, svc *api.Service) bool {
	return pod.Namespace == svc.Namespace && len(svc.Selector) > 0 && selects(api.Selector{MatchLabels: svc.Selector}, labelsOf(pod.Labels))
}

// matches says whether an entry of from or to is a peer.
func (q *question) matches(policy *api.OrderedPolicy, p api.Peer, peer party) bool {
	switch {
	case p.IPBlock != nil:
		return inBlock(p.IPBlock, peer)
	case p.FQDN != "":
		return peer.name != "" && matchesName(p.FQDN, peer.name)
	case p.NodeSelector != nil:
		return q.hostOf(peer.addr, *p.NodeSelector)
	case p.Group != "":
		for _, g := range q.members(api.GroupRef(policy.Ref(), p.Group)) {
			if slices.ContainsFunc(g.IPBlocks, func(b api.IPBlock) bool { return inBlock(&b, peer) }) ||
				peer.pod != nil && q.groupHas(g, peer.pod) {
				return true
			}
		}
		return false
	}
	return peer.pod != nil && q.peerIs(policy, p, peer.pod)
}

func (q *question) peerIs(policy *api.OrderedPolicy, p api.Peer, pod *api.Pod) bool {
	switch {
	case p.ServiceAccount != nil:
		return has(pod, *p.ServiceAccount)
	case len(p.SameLabels) > 0:
		// A policy with such a peer guards Pods alone.
		if q.subject.pod == nil || !sameValues(p.SameLabels, q.namespaceLabels(q.subject.pod.Namespace), q.namespaceLabels(pod.Namespace)) {
			return false
		}
		return p.PodSelector == nil || selects(*p.PodSelector, labelsOf(pod.Labels))
	}
	return q.selectsPod(policy.Namespace, p.NamespaceSelector, p.PodSelector, pod)
}

// sameValues says whether two sets of labels have all of some keys, with the
// same values.
func sameValues(keys []string, a, b map[string]string) bool {
	for _, key := range keys {
		x, inA := a[key]
		y, inB := b[key]
		if !inA || !inB || x != y {
			return false
		}
	}
	return true
}

func (s *State) nodeSelects(selector api.Selector, name string) bool {
	node := s.nodes[name]
	return node != nil && selects(selector, labelsOf(node.Labels))
}

// hostOf says whether an address is one that a selected Node's host has. What
// else its host may speak from is not the Node's for a policy.
func (s *State) hostOf(a netip.Addr, selector api.Selector) bool {
	for name, node := range s.nodes {
		if slices.Contains(hostAddresses(node), a) && s.nodeSelects(selector, name) {
			return true
		}
	}
	return false
}

// matchesName says whether a pattern, in which * stands for any run of
// characters, is a domain name. Case does not count (RFC 4343), nor a full stop
// at the end.
func matchesName(pattern, name string) bool {
	clean := func(s string) string { return strings.TrimSuffix(strings.ToLower(s), ".") }
	pattern, name = clean(pattern), clean(name)
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == name
	}
	rest, found := strings.CutPrefix(name, parts[0])
	if !found {
		return false
	}
	for _, part := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}

// allHosts is the group that a query of IGMP is for, whichever Pod gets it.
var allHosts = netip.AddrFrom4([4]byte{224, 0, 0, 1})

// isTraffic says whether an entry of ports or protocols is the flow's, which is at
// a Pod; nil for what is none. IGMP is matched by what names it, and by nothing else.
func isTraffic(t api.Traffic, f *flow, at *api.Pod) bool {
	if t.Protocol != f.protocol && (t.Protocol != api.ProtocolAny || f.protocol == api.ProtocolIGMP) {
		return false
	}
	switch t.Protocol {
	case api.ProtocolICMP:
		return (t.ICMPType == nil || *t.ICMPType == f.icmpType) && (t.ICMPCode == nil || *t.ICMPCode == f.icmpCode)
	case api.ProtocolIGMP:
		return (t.IGMPType == nil || *t.IGMPType == f.icmpType) && (!t.Multicast.IsValid() || t.Multicast == f.to.addr || t.Multicast == allHosts && f.to.pod != nil)
	}
	if t.SourcePort != 0 && !inRange(t.SourcePort, t.SourceEndPort, f.sourcePort) {
		return false
	}
	switch {
	case t.PortName != "":
		return namesPort(f, at, t.PortName, t.Protocol)
	case t.Port == 0:
		return true
	}
	return inRange(t.Port, t.EndPort, f.port)
}

// inRange says whether a port is in a range, of which the end may be left out.
func inRange(first, last, port uint16) bool { return first <= port && port <= max(first, last) }
