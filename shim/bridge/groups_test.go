package bridge_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	of "github.com/weirnet/weir/shim/bridge/openflow"
)

// endpoint is the n-th address of a family.
func endpoint(v6 bool, n int) netip.Addr {
	var b [16]byte
	if v6 {
		b[0] = 0xfd
		binary.BigEndian.PutUint32(b[12:], uint32(n+1))
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom4([4]byte{10, 1, byte((n + 1) >> 8), byte(n + 1)})
}

// balancer is a group that chooses one of n endpoints and has table 8 do with it
// what a Service does.
func balancer(id uint32, v6 bool, n int) of.Group {
	g := of.Group{ID: id, Type: of.GroupSelect, Buckets: make([]of.Bucket, n)}
	field := of.FieldReg(8)
	if v6 {
		field = of.FieldXXReg(2)
	}
	for i := range g.Buckets {
		g.Buckets[i] = of.Bucket{Weight: 100, Actions: of.NewActions(of.Set(field, of.Addr(endpoint(v6, i))), of.Resubmit(8))}
	}
	return g
}

// A Service of 1,000 endpoints is one group; it comes with the flow that refers to
// it, is replaced under it, and takes it along when it goes.
func TestLargeGroups(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		for _, v6 := range []bool{false, true} {
			g := balancer(10, v6, 1000)
			family := of.IPv4()
			if v6 {
				family = of.IPv6()
			}
			user := flow(7, 1, of.NewMatch(family), of.ToGroup(10))
			other := flow(7, 2, of.NewMatch(family))
			s.must(s.Apply(s.ctx, bridge.Change{PutGroups: []of.Group{g}, Upsert: []of.Flow{user, other}}))
			if state := s.read(); !state.Groups[10].Same(g) || len(state.Flows) != 2 {
				t.Fatalf("reads back %d buckets and %d flows", len(state.Groups[10].Buckets), len(state.Flows))
			}
			less := of.Group{ID: 10, Type: of.GroupSelect, Buckets: slices.Clone(g.Buckets[300:])}
			slices.Reverse(less.Buckets)
			less.Buckets[0].Weight = 7
			s.must(s.Apply(s.ctx, bridge.Change{PutGroups: []of.Group{less}}))
			if state := s.read(); !state.Groups[10].Same(less) || len(state.Flows) != 2 {
				t.Errorf("replaced, it reads back with %d buckets and %d flows", len(state.Groups[10].Buckets), len(state.Flows))
			}
			empty := of.Group{ID: 10, Type: of.GroupSelect}
			s.must(s.Apply(s.ctx, bridge.Change{PutGroups: []of.Group{empty}}))
			if state := s.read(); !state.Groups[10].Same(empty) || len(state.Flows) != 2 {
				t.Errorf("emptied, it reads back with %d buckets and %d flows", len(state.Groups[10].Buckets), len(state.Flows))
			}
			s.must(s.Apply(s.ctx, bridge.Change{DeleteGroups: []uint32{10}}))
			if state := s.read(); len(state.Groups) != 0 || len(state.Flows) != 1 {
				t.Errorf("without it there are %d groups and %d flows", len(state.Groups), len(state.Flows))
			}
			s.must(s.Apply(s.ctx, bridge.Change{Delete: []of.FlowKey{other.Key()}}))
		}
	})
}

// A node may have thousands of Services.
func TestManyGroups(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		const n = 5000
		want := bridge.NewContent()
		for id := range uint32(n) {
			want.Groups[id] = balancer(id, id%2 == 1, 5)
			f := flow(8, 1, of.NewMatch(of.Masked(of.FieldMetadata, of.Uint(uint64(id)), of.Ones(0, 32))), of.ToGroup(id))
			want.Flows[f.Key()] = f
		}
		began := time.Now()
		s.must(s.Apply(s.ctx, bridge.Diff(want, s.read())))
		put := time.Since(began)
		c := bridge.Diff(want, s.read())
		t.Logf("put in %v, read in %v", put, time.Since(began)-put)
		if !c.IsEmpty() {
			t.Fatalf("reading back, %d groups and %d flows differ", len(c.PutGroups), len(c.Upsert))
		}
		s.must(s.Apply(s.ctx, bridge.Diff(bridge.NewContent(), s.read())))
		if state := s.read(); len(state.Groups)+len(state.Flows) != 0 {
			t.Errorf("%d groups and %d flows are left", len(state.Groups), len(state.Flows))
		}
	})
}
