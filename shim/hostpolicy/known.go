package hostpolicy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"
)

// Known keeps the addresses of groups' members from plan to plan, so that only
// those of groups that changed are read again. The zero value has none. It
// belongs to one goroutine at a time.
type Known struct {
	kept    map[string]*addresses // By what they are made of.
	changed map[string]bool       // Groups, since the last plan.
}

// addresses are what became of some groups and blocks. They do not change.
type addresses struct {
	peers []netip.Prefix
	named []Named
	sum   uint64 // Of the content.
	used  bool   // By the plan in the making.
}

// Forget has the members of a group read anew for the next plan.
func (k *Known) Forget(group []byte) {
	if k.changed == nil {
		k.changed = make(map[string]bool)
	}
	k.changed[string(group)] = true
}

// of are the addresses that a key stands for, which read fills in where they are
// not known.
func (k *Known) of(key string, groups [][]byte, read func(*addresses)) *addresses {
	a := k.kept[key]
	if a == nil || !a.used && slices.ContainsFunc(groups, func(g []byte) bool { return k.changed[string(g)] }) {
		former := a
		a = &addresses{}
		if former != nil {
			a.peers = make([]netip.Prefix, 0, len(former.peers)+1) // There will be about as many.
		}
		read(a)
		a.sum = sumOf(a.peers, a.named)
		if k.kept == nil {
			k.kept = make(map[string]*addresses)
		}
		k.kept[key] = a
	}
	a.used = true
	return a
}

// done drops what the plan did not ask for.
func (k *Known) done() {
	for key, a := range k.kept {
		if !a.used {
			delete(k.kept, key)
		}
		a.used = false
	}
	k.changed = nil
}

// keyOf stands for groups and blocks.
func keyOf(groups [][]byte, blocks []netip.Prefix) string {
	var b strings.Builder
	for _, g := range slices.SortedFunc(slices.Values(groups), slices.Compare) {
		fmt.Fprintf(&b, "%x ", g)
	}
	for _, p := range blocks {
		fmt.Fprintf(&b, "%s ", p)
	}
	return b.String()
}

// sumOf is a hash of addresses.
func sumOf(peers []netip.Prefix, named []Named) uint64 {
	h := xxh3.New()
	put := func(list []netip.Prefix) {
		b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+18*len(list)), uint32(len(list)))
		for _, p := range list {
			a := p.Addr().As16()
			b = append(append(b, a[:]...), byte(p.Addr().BitLen()), byte(p.Bits()))
		}
		_, _ = h.Write(b)
	}
	put(peers)
	for _, n := range named {
		fmt.Fprintf(h, "%v ", n.Ports)
		put(n.At)
	}
	return h.Sum64()
}
