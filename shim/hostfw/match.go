package hostfw

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostpolicy"
)

// match is one nftables match of a rule.
type match struct {
	text     string
	traffic  traffic
	protocol uint8 // Of traffic that is of a transport protocol.
	family   family
}

// traffic says what kinds of packets a match is about.
type traffic uint8

const (
	ofTransport traffic = iota
	ofICMP
	ofAnything
	ofOthers // All but what another match of the rule is about.
)

// each calls fn for each match of a rule: by protocol, as the verdict needs it,
// and by family.
func (w *writer) each(l hostpolicy.List, r hostpolicy.Rule, fn func(match)) {
	for _, n := range r.Named {
		w.families(l, r, false, n.At, traffics{{text: portMatch([]hostpolicy.Ports{n.Ports}), protocol: n.Ports.Protocol}}, fn)
	}
	if r.AnyPeer || len(r.Peers) > 0 {
		w.families(l, r, r.AnyPeer, r.Peers, trafficOf(l, r), fn)
	}
}

type traffics []match

// trafficOf are the matches of a rule but for addresses.
func trafficOf(l hostpolicy.List, r hostpolicy.Rule) (list traffics) {
	if r.AnyTraffic {
		if r.Action != policyv1.Action_ACTION_REJECT {
			return traffics{{traffic: ofAnything}}
		}
		list = traffics{{text: "meta l4proto tcp", protocol: hostpolicy.TCP}}
		if l == hostpolicy.Egress {
			return append(list, match{text: "meta l4proto { udp, sctp }", protocol: hostpolicy.UDP}, match{text: "meta l4proto != { tcp, udp, sctp }", traffic: ofOthers})
		}
		return append(list, match{text: "meta l4proto != tcp", traffic: ofOthers})
	}
	for _, group := range grouped(r.Ports) {
		list = append(list, match{text: portMatch(group), protocol: group[0].Protocol})
	}
	for _, m := range r.ICMP {
		list = append(list, icmpMatches(m)...)
	}
	return list
}

// icmpMatches are messages of each family.
func icmpMatches(m hostpolicy.ICMP) (list traffics) {
	for _, f := range []family{ipv4, ipv6} {
		var parts []string
		if m.Type >= 0 {
			parts = append(parts, fmt.Sprintf("%s type %d", f.icmp, m.Type))
		}
		if m.Code >= 0 {
			parts = append(parts, fmt.Sprintf("%s code %d", f.icmp, m.Code))
		}
		if len(parts) == 0 {
			parts = []string{"meta l4proto " + f.icmpProto}
		}
		list = append(list, match{text: strings.Join(parts, " "), traffic: ofICMP, family: f})
	}
	return list
}

// families calls fn for each of some matches and each family that the peers, or
// what is to be done, tell apart.
func (w *writer) families(l hostpolicy.List, r hostpolicy.Rule, any bool, peers []netip.Prefix, list traffics, fn func(match)) {
	side := " saddr "
	if l == hostpolicy.Egress {
		side = " daddr "
	}
	for _, m := range list {
		families := []family{ipv4, ipv6}
		switch {
		case m.family != both:
			families = []family{m.family}
		case any && !answersByFamily(r.Action, l, m):
			families = []family{both}
		}
		for _, f := range families {
			peer := ""
			switch prefixes := f.of(peers); {
			case any && f != both, len(prefixes) > 0 && prefixes[0].Bits() == 0:
				peer = "meta nfproto " + f.proto
			case any:
			case len(prefixes) == 0:
				continue
			default:
				peer = f.name + side + w.addresses(f, prefixes)
			}
			found := m
			found.family, found.text = f, strings.TrimSpace(peer+" "+m.text)
			fn(found)
		}
	}
}

// answersByFamily says whether what is done is to answer by ICMP, of which each
// family has its own.
func answersByFamily(a policyv1.Action, l hostpolicy.List, m match) bool {
	if a != policyv1.Action_ACTION_REJECT || m.traffic == ofTransport && m.protocol == hostpolicy.TCP {
		return false
	}
	return l != hostpolicy.Egress || m.traffic != ofTransport
}

// verdict is the nftables statement of an action.
func (m match) verdict(a policyv1.Action, l hostpolicy.List, to ladder) string {
	switch {
	case a == policyv1.Action_ACTION_ALLOW:
		return "accept"
	case a == policyv1.Action_ACTION_PASS:
		return "goto " + to.baseline
	case a == policyv1.Action_ACTION_DROP:
		return "drop"
	case m.traffic == ofTransport && m.protocol == hostpolicy.TCP:
		return "reject with tcp reset"
	case m.traffic == ofTransport && l == hostpolicy.Egress:
		return "drop" // As the API has it: nobody tells a host's own sockets.
	case m.family == ipv6:
		return "reject with icmpv6 type admin-prohibited"
	}
	return "reject with icmp type host-prohibited" // As rejected packets to Pods are answered.
}

// family is one of addresses.
type family struct {
	name      string // As nftables has it in ip saddr. Empty: both.
	proto     string
	kind      string
	icmp      string
	icmpProto string
}

var (
	both family
	ipv4 = family{"ip", "ipv4", "ipv4_addr", "icmp", "icmp"}
	ipv6 = family{"ip6", "ipv6", "ipv6_addr", "icmpv6", "ipv6-icmp"}
)

func (f family) of(list []netip.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		if p.Addr().Is6() == (f == ipv6) {
			out = append(out, p)
		}
	}
	return out
}

// sockets are those of the family.
func (f family) sockets(list []netip.AddrPort) (out []netip.AddrPort) {
	for _, s := range list {
		if s.Addr().Is6() == (f == ipv6) {
			out = append(out, s)
		}
	}
	return out
}

// single are addresses as prefixes.
func single(list []netip.Addr) (out []netip.Prefix) {
	for _, a := range list {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// grouped are ports that one match covers, together.
func grouped(list []hostpolicy.Ports) (groups [][]hostpolicy.Ports) {
	for _, p := range list {
		if n := len(groups); n > 0 {
			q := groups[n-1][0]
			if cmp.Or(cmp.Compare(p.Protocol, q.Protocol), cmp.Compare(p.SourceFirst, q.SourceFirst), cmp.Compare(p.SourceLast, q.SourceLast)) == 0 {
				groups[n-1] = append(groups[n-1], p)
				continue
			}
		}
		groups = append(groups, []hostpolicy.Ports{p})
	}
	return groups
}

func portMatch(group []hostpolicy.Ports) string {
	var ranges []string
	for _, p := range group {
		ranges = append(ranges, portRange(p.First, p.Last))
	}
	text := ranges[0]
	if len(ranges) > 1 {
		text = "{ " + strings.Join(ranges, ", ") + " }"
	}
	name := protocolName(group[0].Protocol)
	p, parts := group[0], []string{name + " dport " + text}
	if p.First == 0 && p.Last == math.MaxUint16 {
		parts = nil
	}
	if p.SourceFirst != 0 {
		parts = append(parts, name+" sport "+portRange(p.SourceFirst, p.SourceLast))
	}
	if len(parts) == 0 {
		return "meta l4proto " + name
	}
	return strings.Join(parts, " ")
}

func portRange(first, last uint16) string {
	if first == last {
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}

func protocolName(p uint8) string {
	switch p {
	case hostpolicy.TCP:
		return "tcp"
	case hostpolicy.UDP:
		return "udp"
	}
	return "sctp"
}
