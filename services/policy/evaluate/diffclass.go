package evaluate

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// endClass is ends that nothing tells apart.
type endClass struct {
	members []Endpoint
	names   []string
}

// classes are those of all ends, by name of their first member.
func (d *differ) classes() []*endClass {
	by := map[string]*endClass{}
	add := func(signature string, e Endpoint, name string) {
		if by[signature] == nil {
			by[signature] = &endClass{}
		}
		by[signature].members, by[signature].names = append(by[signature].members, e), append(by[signature].names, name)
	}
	for _, ref := range slices.SortedFunc(maps.Keys(d.new.pods), compareRefs) {
		a, b := d.old.pods[ref], d.new.pods[ref]
		if a != nil && networked(a) && networked(b) {
			e := Endpoint{Namespace: ref.Namespace, Pod: ref.Name}
			add("pod "+d.old.signature(a)+"|"+d.new.signature(b)+"|"+d.within(a.IPs)+"|"+d.within(b.IPs), e, describe(e))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.new.nodes)) {
		if n := d.old.nodes[name]; n != nil && len(hostAddresses(n)) > 0 && len(hostAddresses(d.new.nodes[name])) > 0 {
			e := Endpoint{Node: name}
			add("node "+name, e, describe(e))
		}
	}
	for _, a := range d.outside() {
		add("outside "+d.within([]netip.Addr{a}), Endpoint{Addr: a}, a.String())
	}
	list := slices.Collect(maps.Values(by))
	slices.SortFunc(list, func(a, b *endClass) int { return strings.Compare(a.names[0], b.names[0]) })
	return list
}

func compareRefs(a, b api.Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// signature is what selectors see of a Pod.
func (s *State) signature(p *api.Pod) string {
	return fmt.Sprint(p.Namespace, s.namespaceLabels(p.Namespace), p.ServiceAccount, p.Labels, p.Ports, len(p.IPs) > 0 && p.IPs[0].Is4())
}

// within is which blocks hold each of some addresses.
func (d *differ) within(addrs []netip.Addr) string {
	var b strings.Builder
	for _, a := range addrs {
		b.WriteString(map[bool]string{true: " 4", false: " 6"}[a.Is4()])
		for i, p := range d.blocks {
			if p.Contains(a) {
				fmt.Fprintf(&b, ",%d", i)
			}
		}
	}
	return b.String()
}

// outside are addresses that are nobody's: one that no block holds, and for
// each block one that no smaller block holds.
func (d *differ) outside() []netip.Addr {
	var out []netip.Addr
	free := func(p netip.Prefix) (netip.Addr, bool) {
		candidates := []netip.Addr{p.Addr()}
		for _, inner := range d.blocks {
			if inner != p && p.Contains(inner.Addr()) && inner.Bits() > p.Bits() {
				candidates = append(candidates, last(inner).Next())
			}
		}
		for _, a := range candidates {
			for range 4096 {
				if !a.IsValid() || !p.Contains(a) {
					break
				}
				if !d.owned(a) && !slices.ContainsFunc(d.blocks, func(b netip.Prefix) bool { return b.Bits() > p.Bits() && b.Contains(a) }) {
					return a, true
				}
				a = a.Next()
			}
		}
		return netip.Addr{}, false
	}
	for _, p := range append(slices.Clone(d.blocks), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")) {
		if a, ok := free(p); ok {
			out = append(out, a)
		}
	}
	return out
}

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (d *differ) owned(a netip.Addr) bool {
	for _, s := range []*State{d.old, d.new} {
		if len(s.podsAt(a)) > 0 || s.nodeAt(a) != "" {
			return true
		}
	}
	return false
}
