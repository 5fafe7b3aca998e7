package validate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// A region is what a rule matches: the union of its boxes.
type region []box

// mostBoxes bounds the boxes of one rule. One that has more (a hundred peers,
// times a hundred entries of appliedTo, say) is not compared with others.
const mostBoxes = 4096

// times is what is in both. It is nil where there would be too many boxes.
func (r region) times(o region) region {
	if len(r)*len(o) > mostBoxes {
		return nil
	}
	var out region
	for _, a := range r {
		for _, b := range o {
			if c, some := a.and(b); some {
				out = append(out, c)
			}
		}
	}
	return out
}

// everything is the region of a rule that says nothing.
var everything = region{nil}

// side has the aspects of the subject or of the peer.
type side struct {
	kind, namespace, namespaceLabel, podLabel, account, nodeLabel aspect
}

var (
	subjectSide = side{subjectKind, subjectNamespace, subjectNamespaceLabel, subjectPodLabel, subjectAccount, subjectNodeLabel}
	peerSide    = side{peerKind, peerNamespace, peerNamespaceLabel, peerPodLabel, peerAccount, peerNodeLabel}
)

// selection builds the box of what one entry selects.
type selection struct {
	box
	none bool // Nothing can be selected.
}

func (s *selection) hold(a aspect, key string, to set) {
	if s.none {
		return
	}
	b, some := s.with(dimension{a, key}, to)
	s.box, s.none = b, !some
}

// labels holds labels of one aspect to a selector. A Namespace's name is a
// label of it, of which none is without.
func (s *selection) labels(a aspect, sel *api.Selector, name aspect) {
	if sel == nil {
		return
	}
	hold := func(key string, to values) {
		if a != name && isName(key) {
			to.list = slices.DeleteFunc(slices.Clone(to.list), func(v string) bool { return v == absent })
			s.hold(name, "", to)
			return
		}
		s.hold(a, key, to)
	}
	for _, l := range sel.MatchLabels {
		hold(l.Key, oneOf(l.Value))
	}
	for i := range sel.MatchExpressions {
		if to, is := allowed(&sel.MatchExpressions[i]); is {
			hold(sel.MatchExpressions[i].Key, to)
		}
	}
}

// allowed are the values of a label, or absent, with which a requirement holds.
func allowed(r *api.Requirement) (values, bool) {
	switch r.Operator {
	case api.OpIn:
		return oneOf(r.Values...), true
	case api.OpNotIn:
		return noneOf(r.Values...), true
	case api.OpExists:
		return noneOf(absent), true
	case api.OpDoesNotExist:
		return oneOf(absent), true
	}
	return values{}, false
}

func isName(key string) bool {
	return key == api.LabelNamespaceName || key == api.LabelAntreaNamespaceName
}

// region is the region of a selection.
func (s *selection) region() region {
	if s.none {
		return nil
	}
	b, some := s.settle()
	if !some {
		return nil
	}
	return region{b}
}

// pods selects Pods. No Namespace: any, or what the selector says.
func (s side) pods(namespace string, namespaces, pods *api.Selector) region {
	sel := selection{}
	sel.hold(s.kind, "", only(kindPod))
	if namespace != "" {
		sel.hold(s.namespace, "", oneOf(namespace))
	}
	sel.labels(s.namespaceLabel, namespaces, s.namespace)
	sel.labels(s.podLabel, pods, s.podLabel)
	return sel.region()
}

func (s side) accountOf(n api.NamespacedName) region {
	sel := selection{}
	sel.hold(s.kind, "", only(kindPod))
	sel.hold(s.namespace, "", oneOf(n.Namespace))
	sel.hold(s.account, "", oneOf(n.Name))
	return sel.region()
}

func (s side) nodes(of *api.Selector) region {
	sel := selection{}
	sel.hold(s.kind, "", only(kindNode))
	sel.labels(s.nodeLabel, of, s.nodeLabel)
	return sel.region()
}

// blocks are addresses, in one box. No address: nothing.
func blocks(list []*api.IPBlock) region {
	var all ranges
	for _, b := range list {
		own := addresses(b.CIDR)
		for _, e := range b.Except {
			own = own.and(addresses(e).not(dimension{aspect: peerAddress})).(ranges)
		}
		all = all.or(own)
	}
	if all.empty() {
		return nil
	}
	return region{{{dimension{aspect: peerAddress}, all}}}
}

// group expands a group for one side. What is not there selects nothing.
func (x *Index) group(ref api.Ref, s side, children bool) region {
	g := x.groups[ref]
	if g == nil {
		return nil
	}
	switch {
	case len(g.IPBlocks) > 0:
		if s == subjectSide {
			return nil // No policy applies to addresses.
		}
		list := make([]*api.IPBlock, len(g.IPBlocks))
		for i := range g.IPBlocks {
			list[i] = &g.IPBlocks[i]
		}
		return blocks(list)
	case g.Service != nil:
		svc := x.services[*g.Service]
		if svc == nil || len(svc.Selector) == 0 {
			return nil
		}
		return s.pods(svc.Namespace, nil, &api.Selector{MatchLabels: svc.Selector})
	case len(g.Children) > 0:
		var all region
		for _, name := range g.Children {
			if children { // A child has none of its own.
				all = append(all, x.group(api.Ref{Kind: ref.Kind, Namespace: ref.Namespace, Name: name}, s, false)...)
			}
		}
		return all
	case g.PodSelector == nil && g.NamespaceSelector == nil:
		return nil
	case g.Kind == api.KindGroup && g.NamespaceSelector != nil && s == subjectSide:
		return nil // No policy of a Namespace applies to it.
	case g.NamespaceSelector == nil:
		return s.pods(g.Namespace, nil, g.PodSelector)
	}
	return s.pods("", g.NamespaceSelector, g.PodSelector)
}

// target is the region of one entry of appliedTo.
func (x *Index) target(p *api.OrderedPolicy, t *api.Target) region {
	switch {
	case t.Group != "":
		all := x.group(api.GroupRef(p.Ref(), t.Group), subjectSide, true)
		if p.Namespace != "" { // Whatever a Group selects, a policy stays in its Namespace.
			all = all.times(region{{{dimension{aspect: subjectNamespace}, oneOf(p.Namespace)}}})
		}
		return all
	case t.ServiceAccount != nil:
		return subjectSide.accountOf(*t.ServiceAccount)
	case t.Service != nil:
		sel := selection{}
		sel.hold(subjectKind, "", only(kindOther))
		sel.hold(subjectService, "", oneOf(t.Service.String()))
		return sel.region()
	case t.NodeSelector != nil:
		return subjectSide.nodes(t.NodeSelector)
	}
	return subjectSide.pods(p.Namespace, t.NamespaceSelector, t.PodSelector)
}

// peer is the region of one entry of from or to. Blocks are told together.
func (x *Index) peer(p *api.OrderedPolicy, e *api.Peer) region {
	switch {
	case e.Group != "":
		return x.group(api.GroupRef(p.Ref(), e.Group), peerSide, true)
	case e.ServiceAccount != nil:
		return peerSide.accountOf(*e.ServiceAccount)
	case e.NodeSelector != nil:
		return peerSide.nodes(e.NodeSelector)
	case e.FQDN != "":
		return region{{{dimension{peerName, strings.TrimSuffix(e.FQDN, ".")}, yes}}}
	case len(e.SameLabels) > 0:
		sel := selection{}
		sel.hold(subjectKind, "", only(kindPod))
		for _, key := range e.SameLabels {
			if isName(key) {
				key = ""
			}
			sel.hold(sameLabel, key, yes)
		}
		return peerSide.pods("", nil, e.PodSelector).times(sel.region())
	case e.NamespaceSelector == nil:
		return peerSide.pods(p.Namespace, nil, e.PodSelector)
	}
	return peerSide.pods("", e.NamespaceSelector, e.PodSelector)
}

// region is what a rule of a policy matches.
func (x *Index) region(p *api.OrderedPolicy, r *api.OrderedRule, egress bool) region {
	targets := p.AppliedTo
	if len(targets) == 0 {
		targets = r.AppliedTo
	}
	var subjects region
	for i := range targets {
		subjects = append(subjects, x.target(p, &targets[i])...)
	}
	return subjects.times(concerned(p.SameLabelKeys(), r.AnyPeer())).times(x.peers(p, r)).times(traffic(r.Traffic, egress))
}

// concerned are the subjects on which a rule has an effect as far as the
// sameLabels of its policy go: a rule for any peer where their Namespace has one
// of the labels, another where it has all.
func concerned(keys []string, anyPeer bool) region {
	if len(keys) == 0 || anyPeer && slices.ContainsFunc(keys, isName) {
		return everything // Every Namespace has its name.
	}
	var one region
	all := everything
	for _, key := range keys {
		if !isName(key) {
			has := region{{{dimension{subjectNamespaceLabel, key}, noneOf(absent)}}}
			one, all = append(one, has...), all.times(has)
		}
	}
	if anyPeer {
		return one
	}
	return all
}

func (x *Index) peers(p *api.OrderedPolicy, r *api.OrderedRule) region {
	if r.AnyPeer() {
		return everything
	}
	var all region
	var list []*api.IPBlock
	for i := range r.Peers {
		if b := r.Peers[i].IPBlock; b != nil {
			list = append(list, b)
		} else {
			all = append(all, x.peer(p, &r.Peers[i])...)
		}
	}
	all = append(all, blocks(list)...)
	if len(r.ToServices) > 0 {
		names := make([]string, len(r.ToServices))
		for i, s := range r.ToServices {
			names[i] = s.String()
		}
		all = append(all, box{{dimension{aspect: peerService}, oneOf(names...)}})
	}
	return all
}

// traffic is the region of what headers say. Ports of one protocol are told together.
func traffic(list []api.Traffic, egress bool) region {
	if len(list) == 0 {
		return everything
	}
	var out region
	ports := map[api.Protocol]ranges{}
	for i := range list {
		t := &list[i]
		if t.Protocol != api.ProtocolICMP && t.Protocol != api.ProtocolIGMP && t.PortName == "" && t.SourcePort == 0 {
			ports[t.Protocol] = ports[t.Protocol].or(portsOf(t.Port, t.EndPort))
			continue
		}
		sel := selection{}
		sel.hold(protocol, "", only(uint64(t.Protocol)))
		switch {
		case t.Protocol == api.ProtocolICMP:
			sel.octet(icmpType, t.ICMPType)
			sel.octet(icmpCode, t.ICMPCode)
		case t.Protocol == api.ProtocolIGMP:
			sel.igmp(t, egress)
		case t.PortName != "":
			kind := subjectKind
			if egress {
				kind = peerKind
			}
			sel.hold(kind, "", only(kindPod)) // Nothing else has names for its ports.
			sel.hold(portName, fmt.Sprintf("%d/%s", t.Protocol, t.PortName), yes)
		case t.Port != 0:
			sel.hold(port, "", portsOf(t.Port, t.EndPort))
		}
		if t.SourcePort != 0 {
			sel.hold(sourcePort, "", portsOf(t.SourcePort, t.SourceEndPort))
		}
		out = append(out, sel.region()...)
	}
	for _, p := range []api.Protocol{api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP} {
		if r := ports[p]; r != nil {
			out = append(out, box{{dimension{aspect: protocol}, only(uint64(p))}, {dimension{aspect: port}, r}})
		}
	}
	return out
}

// portsOf is a range of ports: all for zero.
func portsOf(first, last uint16) ranges {
	switch {
	case first == 0:
		return between(0, 65535)
	case last == 0:
		return only(uint64(first))
	}
	return between(uint64(first), uint64(last))
}

func (s *selection) octet(a aspect, n *uint8) {
	if n != nil {
		s.hold(a, "", only(uint64(*n)))
	}
}

// igmp: the group is where the packet goes.
func (s *selection) igmp(t *api.Traffic, egress bool) {
	s.octet(igmpType, t.IGMPType)
	switch {
	case !t.Multicast.IsValid():
	case egress:
		s.hold(peerAddress, "", addresses(netip.PrefixFrom(t.Multicast, t.Multicast.BitLen())))
	default:
		s.hold(igmpGroup, "", only(groupNumber(t.Multicast)))
	}
}

// groupNumber is a multicast group of IPv4.
func groupNumber(a netip.Addr) uint64 { return numberOf(a).low & 0xffffffff }
