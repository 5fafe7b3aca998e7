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

// Ports are the ports that some rule of the plan is about, whatever it says of
// the source: disjoint, and in order.
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

// Connection is the first packet of one.
type Connection struct {
	Source     netip.Addr
	Protocol   uint8
	Port       uint16
	SourcePort uint16
}

// covers says whether a rule is about a connection.
func (r *Rule) covers(c Connection) bool {
	within := func(p Ports) bool {
		return p.Protocol == c.Protocol && p.First <= c.Port && c.Port <= p.Last &&
			(p.SourceFirst == 0 || p.SourceFirst <= c.SourcePort && c.SourcePort <= p.SourceLast)
	}
	if !slices.ContainsFunc(r.Ports, within) {
		return false
	}
	return r.AnyPeer || slices.ContainsFunc(r.Peers, func(p netip.Prefix) bool { return p.Contains(c.Source) })
}

// Verdict is what becomes of a connection.
type Verdict struct {
	Action   policyv1.Action // Allow, Drop or Reject.
	Rule     int             // That decides, among the plan's; -1: none does, and it is allowed.
	PassedBy int             // The rule that passed it on to the baseline; -1: none did.
}

// Judge says what becomes of a connection to a port of the node, with the staged
// policies or without.
func (p *Plan) Judge(c Connection, staged bool) Verdict {
	v := Verdict{Action: policyv1.Action_ACTION_ALLOW, Rule: -1, PassedBy: -1}
	for i := range p.NodePorts {
		r := &p.NodePorts[i]
		switch {
		case r.Staged && !staged, v.PassedBy >= 0 && !r.Baseline, !r.covers(c):
		case r.Action == policyv1.Action_ACTION_PASS:
			v.PassedBy = i
		default:
			v.Action, v.Rule = r.Action, i
			return v
		}
	}
	return v
}
