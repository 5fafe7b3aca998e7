package validate

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
)

// number is an unsigned number of 128 bits: addresses, ports and the like.
type number struct{ high, low uint64 }

func small(n uint64) number { return number{low: n} }

var largest = number{^uint64(0), ^uint64(0)}

func (n number) compare(o number) int {
	return cmp.Or(cmp.Compare(n.high, o.high), cmp.Compare(n.low, o.low))
}

// next is n+1. It must not be called on the largest.
func (n number) next() number {
	if n.low++; n.low == 0 {
		n.high++
	}
	return n
}

// previous is n-1. It must not be called on zero.
func (n number) previous() number {
	if n.low == 0 {
		n.high--
	}
	n.low--
	return n
}

// span is the numbers from first to last, both included.
type span struct{ first, last number }

// ranges is a set of numbers: spans in order, of which no two touch.
type ranges []span

func between(first, last uint64) ranges { return ranges{{small(first), small(last)}} }

func only(n uint64) ranges { return between(n, n) }

func (r ranges) empty() bool { return len(r) == 0 }

// or unites sets of numbers.
func (r ranges) or(o ranges) ranges {
	all := append(slices.Clone(r), o...)
	slices.SortFunc(all, func(a, b span) int { return a.first.compare(b.first) })
	var out ranges
	for _, s := range all {
		if len(out) == 0 {
			out = append(out, s)
			continue
		}
		end := &out[len(out)-1]
		if *end == s || end.last == largest || s.first.compare(end.last.next()) <= 0 {
			if s.last.compare(end.last) > 0 {
				end.last = s.last
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

func (r ranges) and(other set) set {
	o := other.(ranges)
	var out ranges
	for i, j := 0, 0; i < len(r) && j < len(o); {
		first, last := r[i].first, r[i].last
		if o[j].first.compare(first) > 0 {
			first = o[j].first
		}
		if o[j].last.compare(last) < 0 {
			last = o[j].last
		}
		if first.compare(last) <= 0 {
			out = append(out, span{first, last})
		}
		if r[i].last.compare(o[j].last) < 0 {
			i++
		} else {
			j++
		}
	}
	return out
}

// not is what a dimension has beside the set.
func (r ranges) not(d dimension) set {
	var out ranges
	all := d.all()
	from := all.first
	for _, s := range r {
		if s.first.compare(from) > 0 {
			out = append(out, span{from, s.first.previous()})
		}
		if s.last.compare(all.last) >= 0 {
			return out
		}
		from = s.last.next()
	}
	return append(out, span{from, all.last})
}

func (r ranges) within(other set) bool {
	o := other.(ranges)
	j := 0
	for _, s := range r {
		for j < len(o) && o[j].last.compare(s.first) < 0 {
			j++
		}
		if j == len(o) || o[j].first.compare(s.first) > 0 || o[j].last.compare(s.last) < 0 {
			return false
		}
	}
	return true
}

func (r ranges) meets(other set) bool {
	o := other.(ranges)
	for i, j := 0, 0; i < len(r) && j < len(o); {
		switch {
		case r[i].last.compare(o[j].first) < 0:
			i++
		case o[j].last.compare(r[i].first) < 0:
			j++
		default:
			return true
		}
	}
	return false
}

// numberOf is an address as a number: IPv4 is where IPv6 maps it, which no
// packet of IPv6 uses.
func numberOf(a netip.Addr) number {
	b := a.As16()
	return number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

var mapped = span{number{0, 0xffff << 32}, number{0, 0xffff<<32 | 0xffffffff}}

// addresses are those of a prefix.
func addresses(p netip.Prefix) ranges {
	first := numberOf(p.Masked().Addr())
	host := 128 - p.Bits()
	if p.Addr().Is4() {
		host = 32 - p.Bits()
	}
	last := first
	switch {
	case host >= 128:
		last = largest
	case host > 64:
		last.high |= 1<<(host-64) - 1
		last.low = ^uint64(0)
	case host == 64:
		last.low = ^uint64(0)
	default:
		last.low |= 1<<host - 1
	}
	r := ranges{{first, last}}
	if p.Addr().Is6() {
		r = r.and(ranges{mapped}.not(dimension{aspect: peerAddress})).(ranges)
	}
	return r
}
