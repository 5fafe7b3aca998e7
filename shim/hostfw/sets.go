package hostfw

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"
	"sigs.k8s.io/knftables"
)

// set is what a set of the table is to hold. One of fixed content bears its hash;
// one of members bears what they are members of, and changes with them.
type set struct {
	kind  string
	fixed string       // Elements, of intervals.
	hosts []netip.Addr // Ascending.
}

// fixed makes a set be there, by its content.
func (w *writer) fixed(kind, typ string, elements []string) string {
	content := strings.Join(elements, " ")
	name := fmt.Sprintf("%s%s-%016x", setPrefix, kind, xxh3.HashString(content))
	if w.sets[name] == nil {
		w.sets[name] = &set{kind: typ, fixed: strings.Join(elements, ", ")}
	}
	return name
}

// groupKey is addresses of a family that are made of groups.
type groupKey struct {
	from   uint64 // And of ports, where they are those that have a name.
	family string
}

// ends are how addresses are named in rules: as blocks, and as members.
type ends []string

// members are the ends of what is made of groups. Members are in a set of their
// own, without intervals, to which the kernel adds at one place alone.
func (w *writer) members(f family, from uint64, prefixes []netip.Prefix) ends {
	key := groupKey{from, f.name}
	if found, is := w.groups[key]; is {
		return found
	}
	var blocks []netip.Prefix
	hosts := make([]netip.Addr, 0, len(prefixes))
	for _, p := range prefixes {
		switch {
		case p.Addr().Is6() != (f == ipv6):
		case p.IsSingleIP():
			hosts = append(hosts, p.Addr())
		default:
			blocks = append(blocks, p)
		}
	}
	var list ends
	if len(blocks) > 0 && blocks[0].Bits() == 0 {
		list = ends{"meta nfproto " + f.proto}
	} else if len(blocks) > 0 {
		list = ends{w.addresses(f, blocks)}
	}
	if len(hosts) > 0 {
		name := fmt.Sprintf("%s%s-of-%016x", setPrefix, f.name, from)
		w.sets[name] = &set{kind: f.kind, hosts: slices.Clone(hosts)} // Of a family, no larger than it need be.
		list = append(list, "@"+name)
	}
	w.groups[key] = list
	return list
}

// write makes a set hold what it is to, whatever it holds. Its elements are one
// statement: nft looks through an interval set anew for each.
func (s *set) write(tx *knftables.Transaction, name string) {
	to := &knftables.Set{Name: name, Type: s.kind}
	content := s.fixed
	if s.hosts == nil {
		to.Flags = []knftables.SetFlag{knftables.IntervalFlag}
	} else {
		content = joined(s.hosts)
	}
	tx.Add(to)
	tx.Flush(&knftables.Set{Name: name})
	tx.Add(&knftables.Element{Set: name, Key: []string{content}})
}

// change makes a set of hosts hold what it is to, given what it holds. Sum is what
// that adds to the sum of its elements, modulo 2⁶⁴.
func (s *set) change(tx *knftables.Transaction, name string, held *set) (sum uint64) {
	var more, less []netip.Addr
	for a, b := held.hosts, s.hosts; len(a)+len(b) > 0; {
		switch {
		case len(a) > 0 && len(b) > 0 && a[0] == b[0]:
			a, b = a[1:], b[1:]
		case len(b) == 0 || len(a) > 0 && a[0].Less(b[0]):
			less, a = append(less, a[0]), a[1:]
		default:
			more, b = append(more, b[0]), b[1:]
		}
	}
	if len(less) > 0 {
		tx.Delete(&knftables.Element{Set: name, Key: []string{joined(less)}})
	}
	if len(more) > 0 {
		tx.Add(&knftables.Element{Set: name, Key: []string{joined(more)}})
	}
	for _, a := range more {
		sum += sumOfKey(a.String())
	}
	for _, a := range less {
		sum -= sumOfKey(a.String())
	}
	return sum
}

func joined(hosts []netip.Addr) string {
	var b []byte
	for i, a := range hosts {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = a.AppendTo(b)
	}
	return string(b)
}

// sumOf is a hash of elements in any order.
func sumOf(elements []*knftables.Element) (sum uint64) {
	for _, e := range elements {
		sum += sumOfKey(strings.Join(e.Key, " . "))
	}
	return sum
}

// sumOfKey is that of one element. An address may be written in two ways.
func sumOfKey(key string) uint64 {
	if a, err := netip.ParseAddr(key); err == nil {
		key = a.String()
	}
	return xxh3.HashString(key)
}
