package hostpolicy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// tidy sorts ports and makes ranges that touch one.
func tidy(list []Ports) []Ports {
	slices.SortFunc(list, func(a, b Ports) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.SourceFirst, b.SourceFirst), cmp.Compare(a.SourceLast, b.SourceLast),
			cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	var out []Ports
	for _, p := range list {
		if n := len(out); n > 0 {
			last := &out[n-1]
			same := last.Protocol == p.Protocol && last.SourceFirst == p.SourceFirst && last.SourceLast == p.SourceLast
			if same && int(p.First) <= int(last.Last)+1 {
				last.Last = max(last.Last, p.Last)
				continue
			}
		}
		out = append(out, p)
	}
	return out
}

// Ports are the ports of nodes that some rule of the plan is about, whatever it
// says of the source: disjoint, and in order.
func (p *Plan) Ports() []Ports {
	var all []Ports
	for _, r := range p.NodePorts {
		for _, ports := range r.Ports {
			all = append(all, Ports{Protocol: ports.Protocol, First: ports.First, Last: ports.Last})
		}
	}
	return tidy(all)
}

// blockOf are the prefixes of a block, less what it excepts.
func blockOf(b *policyv1.IPBlock) ([]netip.Prefix, error) {
	whole, err := storage.PrefixFromWire(b.GetCidr())
	if err != nil {
		return nil, fmt.Errorf("block: %w", err)
	}
	left := []netip.Prefix{whole.Masked()}
	for _, w := range b.GetExcept() {
		except, err := storage.PrefixFromWire(w)
		if err != nil {
			return nil, fmt.Errorf("block: except: %w", err)
		}
		var next []netip.Prefix
		for _, p := range left {
			next = append(next, without(p, except.Masked())...)
		}
		left = next
	}
	return left, nil
}

// without is a prefix less another.
func without(p, except netip.Prefix) (out []netip.Prefix) {
	if !p.Overlaps(except) {
		return []netip.Prefix{p}
	}
	for p.Bits() < except.Bits() {
		low, high := halves(p)
		if high.Contains(except.Addr()) {
			low, high = high, low
		}
		out, p = append(out, high), low
	}
	return out
}

// halves splits a prefix that is longer than an address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	upper, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(upper, p.Bits()+1)
}

// disjoint leaves out what another prefix holds. Prefixes that overlap are one
// inside the other.
func disjoint(list []netip.Prefix) (out []netip.Prefix) {
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range list {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// contains says whether an address is in one of some prefixes, which are disjoint
// and ascending.
func contains(list []netip.Prefix, a netip.Addr) bool {
	i, found := slices.BinarySearchFunc(list, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	return found || i > 0 && list[i-1].Contains(a)
}

// sortNamed leaves nothing open: a plan does not depend on the order of members.
func sortNamed(list []Named) {
	slices.SortFunc(list, func(a, b Named) int {
		p, q := a.Ports, b.Ports
		return cmp.Or(cmp.Compare(p.Protocol, q.Protocol), cmp.Compare(p.First, q.First), cmp.Compare(p.Last, q.Last), cmp.Compare(p.SourceFirst, q.SourceFirst), cmp.Compare(p.SourceLast, q.SourceLast),
			slices.CompareFunc(a.At, b.At, func(x, y netip.Prefix) int {
				return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Bits(), y.Bits()))
			}))
	})
}

// Connection is the first packet of one.
type Connection struct {
	Own, Peer          netip.Addr // Of the node, and of the other end.
	Protocol           uint8
	Port               uint16
	SourcePort         uint16
	ICMPType, ICMPCode uint8 // Of ICMP.
}

// covers says whether a rule is about a connection.
func (r *Rule) covers(c Connection) bool {
	for _, n := range r.Named {
		if n.Ports.has(c) && contains(n.At, c.Peer) {
			return true
		}
	}
	return (r.AnyPeer || contains(r.Peers, c.Peer)) && (r.AnyTraffic || slices.ContainsFunc(r.Ports, func(p Ports) bool { return p.has(c) }) ||
		slices.ContainsFunc(r.ICMP, func(m ICMP) bool { return m.has(c) }))
}

func (p Ports) has(c Connection) bool {
	return p.Protocol == c.Protocol && p.First <= c.Port && c.Port <= p.Last &&
		(p.SourceFirst == 0 || p.SourceFirst <= c.SourcePort && c.SourcePort <= p.SourceLast)
}

func (m ICMP) has(c Connection) bool {
	return (c.Protocol == icmp4 || c.Protocol == icmp6) && (m.Type < 0 || m.Type == int(c.ICMPType)) && (m.Code < 0 || m.Code == int(c.ICMPCode))
}

// Verdict is what becomes of a connection.
type Verdict struct {
	Action   policyv1.Action // Allow, Drop or Reject.
	Rule     int             // That decides, among those of the list; -1: none does, and it is allowed.
	PassedBy int             // The rule that passed it on to the baseline; -1: none did.
}

// Judge says what becomes of a connection by the rules of a list, with the staged
// policies or without.
func (p *Plan) Judge(l List, c Connection, staged bool) Verdict {
	v := Verdict{Action: policyv1.Action_ACTION_ALLOW, Rule: -1, PassedBy: -1}
	steers, rules := p.Control.steers(l, c), p.Rules(l)
	for i := range rules {
		r := &rules[i]
		switch {
		case r.Staged && !staged, v.PassedBy >= 0 && !r.Baseline, !r.covers(c), steers && r.Overruled():
		case r.Action == policyv1.Action_ACTION_PASS:
			v.PassedBy = i
		default:
			v.Action, v.Rule = r.Action, i
			return v
		}
	}
	return v
}

// Overruled says whether the rule does not count for what steers the node.
func (r *Rule) Overruled() bool { return denies(r.Action) && !r.Lockout }
