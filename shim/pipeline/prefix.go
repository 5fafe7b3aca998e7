package pipeline

import (
	"net/netip"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// blockPrefixes are the fewest prefixes that cover a block and nothing of its
// exceptions.
func blockPrefixes(b *policyv1.IPBlock) ([]netip.Prefix, error) {
	cidr, err := storage.PrefixFromWire(b.GetCidr())
	if err != nil {
		return nil, err
	}
	var except []netip.Prefix
	for _, x := range b.GetExcept() {
		p, err := storage.PrefixFromWire(x)
		if err != nil {
			return nil, err
		}
		except = append(except, p)
	}
	return subtract(nil, cidr, except), nil
}

// subtract appends to out what is left of p without the exceptions, by halving
// p until a half is untouched or gone.
func subtract(out []netip.Prefix, p netip.Prefix, except []netip.Prefix) []netip.Prefix {
	var inside []netip.Prefix
	for _, x := range except {
		if x.Bits() <= p.Bits() && x.Contains(p.Addr()) {
			return out
		}
		if p.Overlaps(x) {
			inside = append(inside, x)
		}
	}
	if len(inside) == 0 {
		return append(out, p)
	}
	low, high := halves(p)
	return subtract(subtract(out, low, inside), high, inside)
}

func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits()
	b := p.Addr().AsSlice()
	b[bits/8] |= 0x80 >> (bits % 8)
	upper, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(p.Addr(), bits+1), netip.PrefixFrom(upper, bits+1)
}

// portMask is a set of ports by value and mask.
type portMask struct{ value, mask uint16 }

// portMasks are the fewest masked values that cover a range of ports.
func portMasks(first, last uint16) []portMask {
	var out []portMask
	for next := uint32(first); next <= uint32(last); {
		size := uint32(1)
		for next&size == 0 && size <= 0x8000 && next+size*2-1 <= uint32(last) {
			size *= 2
		}
		out = append(out, portMask{uint16(next), uint16(^(size - 1))})
		next += size
	}
	return out
}
