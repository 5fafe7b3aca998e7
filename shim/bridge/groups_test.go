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

// Whatever the datapath, connections are told apart by their ports where that is
// asked for.
func TestGroupsHashPorts(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		s.put(flow(8, 1, of.NewMatch(), of.Controller{ControllerID: logID}))
		for _, c := range []struct {
			hash     of.GroupHash
			n, least int
		}{{of.HashDefault, 3, 1}, {of.HashDatapath, 3, 3}, {of.HashDatapath, 256, 20}, {of.HashFields, 3, 3}, {of.HashFields, 1000, 20}} {
			g := balancer(1, false, c.n)
			g.Hash = c.hash
			s.must(s.Apply(s.ctx, bridge.Change{PutGroups: []of.Group{g}, Upsert: []of.Flow{flow(0, 1, of.NewMatch(of.IPv4()), of.ToGroup(1))}}))
			if got := s.read().Groups[1]; !got.Same(g) {
				t.Fatalf("%s reads back as %s", g.Hash, got.Hash)
			}
			seen := map[uint32]bool{}
			for i := range uint16(40) {
				s.send(udp(1, "10.0.0.1", "10.96.0.1", 4000+i, 53))
				seen[s.next(logID).Metadata.Reg(8)] = true
			}
			if len(seen) < c.least {
				t.Errorf("%s over %d: %d endpoints for 40 connections", c.hash, c.n, len(seen))
			}
		}
	})
}

// What a bucket changes, its own resubmit sees, and nothing after the group does.
func TestBucketsChangeACopy(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		g := balancer(1, true, 2)
		g.Hash = of.HashFields // a hash of the datapath, the switch's account does not follow
		v6 := of.NewMatch(of.IPv6())
		s.must(s.Apply(s.ctx, bridge.Change{PutGroups: []of.Group{g}, Upsert: []of.Flow{
			flow(0, 1, v6, of.SetReg(8, 1, 0xffffffff), of.ToGroup(1), of.Resubmit(9)),
			flow(8, 1, of.NewMatch(of.Exactly(of.FieldXXReg(2), of.Addr(endpoint(true, 0)))), of.SetReg(1, 2, 0xffffffff), of.OutputPort(2)),
			flow(8, 1, of.NewMatch(of.Exactly(of.FieldXXReg(2), of.Addr(endpoint(true, 1)))), of.SetReg(1, 2, 0xffffffff), of.OutputPort(2)),
			flow(9, 1, of.NewMatch(of.Reg(8, 1, 0xffffffff), of.Reg(11, 0, 0xffffffff), of.Reg(1, 0, 0xffffffff)), of.OutputPort(3)),
		}}))
		if got, want := s.outputs(udp(1, "fd00::1", "fd00::2", 1, 2)), []string{"2", "3"}; !slices.Equal(got, want) {
			t.Errorf("leaves by %v, want %v", got, want)
		}
	})
}
