package bridge_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	of "github.com/weirnet/weir/shim/bridge/openflow"
)

// sampleFlows are all samples, one flow each.
func sampleFlows() []of.Flow {
	var out []of.Flow
	for i, name := range slices.Sorted(maps.Keys(everyMatch)) {
		out = append(out, of.Flow{Table: 1, Priority: uint16(100 + i), Match: everyMatch[name], Cookie: ours | uint64(i), Actions: of.NewActions(of.OutputPort(3))})
	}
	for i, name := range slices.Sorted(maps.Keys(everyAction)) {
		out = append(out, of.Flow{Table: 2, Priority: uint16(100 + i), Match: everyAction[name].match, Cookie: ours | uint64(i), Actions: everyAction[name].actions})
	}
	out = append(out, of.Flow{Table: 3, Priority: 1, Cookie: ours, IdleTimeout: 600, HardTimeout: 900, Actions: of.NewActions(of.GotoTable(4))})
	return out
}

func TestWhatIsInstalledReadsBackEqual(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		flows := sampleFlows()
		s.must(s.Apply(s.ctx, bridge.Change{PutMeters: []of.Meter{meter6}, PutGroups: []of.Group{group5}, Upsert: flows}))
		state := s.read()
		for _, want := range flows {
			if got, ok := state.Flows[want.Key()]; !ok || !got.Same(want) {
				t.Errorf("read back %v\n   instead of %v", got, want)
			}
		}
		if len(state.Flows) != len(flows) || len(state.Foreign) != 0 {
			t.Errorf("%d flows and %d foreign ones, want %d and none", len(state.Flows), len(state.Foreign), len(flows))
		}
		if !state.Groups[5].Same(group5) || state.Meters[6] != meter6 {
			t.Errorf("group %v and meter %v, want %v and %v", state.Groups[5], state.Meters[6], group5, meter6)
		}
	})
}

func TestReconcileTouchesOnlyWhatDiffers(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		want := bridge.NewContent()
		for _, f := range sampleFlows() {
			want.Flows[f.Key()] = f
		}
		want.Groups[5], want.Meters[6] = group5, meter6
		s.must(s.Apply(s.ctx, bridge.Diff(want, s.read())))
		if c := bridge.Diff(want, s.read()); !c.IsEmpty() {
			t.Fatalf("a second reconcile would change %+v", c)
		}
		// What others did: a flow removed, one altered, one of ours forged, one of theirs.
		keys := slices.SortedFunc(maps.Keys(want.Flows), func(a, b of.FlowKey) int { return strings.Compare(a.String(), b.String()) })
		altered := want.Flows[keys[3]]
		altered.Actions = of.NewActions(of.OutputPort(4))
		forged := flow(9, 1, of.NewMatch(), of.OutputPort(1))
		theirs := of.Flow{Table: 9, Priority: 2, Cookie: 7}
		s.must(s.Apply(s.ctx, bridge.Change{Upsert: []of.Flow{altered, forged, theirs}, Delete: keys[7:8]}))
		state := s.read()
		if _, ok := state.Foreign[theirs.Key()]; !ok || len(state.Foreign) != 1 {
			t.Errorf("foreign flows %v, want %v", state.Foreign, theirs)
		}
		c := bridge.Diff(want, state)
		if len(c.Upsert) != 2 || len(c.Delete) != 1 || c.Delete[0] != forged.Key() || len(c.PutGroups)+len(c.PutMeters) != 0 {
			t.Errorf("reconcile would change %+v", c)
		}
		s.must(s.Apply(s.ctx, c))
		state = s.read()
		if c := bridge.Diff(want, state); !c.IsEmpty() || len(state.Foreign) != 1 {
			t.Errorf("after reconcile: %+v, %d foreign flows", c, len(state.Foreign))
		}
	})
}

func TestRefusedPartLeavesNothingOfTheBundle(t *testing.T) {
	bad := map[string]struct {
		change bridge.Change
		item   string
		err    error
	}{
		"goto backwards":  {bridge.Change{Upsert: []of.Flow{flow(5, 9, of.NewMatch(), of.GotoTable(4))}}, "table=5,priority=9", &of.Error{Type: 3, Code: 2}},
		"unknown group":   {bridge.Change{Upsert: []of.Flow{flow(5, 9, of.NewMatch(), of.ToGroup(77))}}, "group:77", of.ErrBadOutGroup},
		"unknown meter":   {bridge.Change{Upsert: []of.Flow{flow(5, 9, of.NewMatch(), of.MeterBy(77))}}, "meter:77", of.ErrInvalidMeter},
		"ct without ip":   {bridge.Change{Upsert: []of.Flow{flow(5, 9, of.NewMatch(), of.CT{Recirc: true, Table: 6})}}, "ct(table=6)", &of.Error{Type: 2, Code: 10}},
		"set without ip":  {bridge.Change{Upsert: []of.Flow{flow(5, 9, of.NewMatch(), of.Set(of.FieldIPv4Dst, of.Uint(1)))}}, "set_field", &of.Error{Type: 2, Code: 10}},
		"conjunction and": {bridge.Change{Upsert: []of.Flow{flow(5, 9, of.NewMatch(), of.Conjunction{ID: 1, Clauses: 2}, of.OutputPort(1))}}, "conjunction(1", &of.Error{Type: 0xffff, Code: 15}},
		"unknown type":    {bridge.Change{PutGroups: []of.Group{{ID: 8, Type: 99}}}, "group_id=8", &of.Error{Type: 6, Code: 10}},
	}
	each(t, func(t *testing.T, s *subject) {
		before := flow(5, 1, of.NewMatch(of.InPort(1)), of.OutputPort(2))
		s.put(before)
		for name, c := range bad {
			t.Run(name, func(t *testing.T) {
				change := c.change
				// In the middle of much that is right.
				var many []of.Flow
				for i := range 40 {
					many = append(many, flow(5, 50, of.NewMatch(of.InPort(uint32(i+1))), of.OutputPort(3)))
				}
				change.Upsert = append(append(slices.Clone(many[:20]), change.Upsert...), many[20:]...)
				change.Delete = []of.FlowKey{before.Key()}
				err := s.Apply(s.ctx, change)
				var refused *bridge.ChangeError
				if !errors.As(err, &refused) || !strings.Contains(refused.Item, c.item) {
					t.Fatalf("error %v does not name %q", err, c.item)
				}
				if !errors.Is(err, c.err) {
					t.Errorf("error %v, want %v", err, c.err)
				}
				state := s.read()
				if got, ok := state.Flows[before.Key()]; len(state.Flows) != 1 || len(state.Groups) != 0 || !ok || !got.Same(before) {
					t.Errorf("the bridge changed: %d flows, %d groups", len(state.Flows), len(state.Groups))
				}
			})
		}
		s.put(flow(5, 2, of.NewMatch(), of.OutputPort(1))) // the connection is still good
	})
}

func TestChangesThatCannotBeSaid(t *testing.T) {
	var conjunctions []of.Action
	for i := range 5000 {
		conjunctions = append(conjunctions, of.Conjunction{ID: uint32(i), Clauses: 2})
	}
	f := flow(1, 1, of.NewMatch(), conjunctions...)
	each(t, func(t *testing.T, s *subject) {
		for name, c := range map[string]bridge.Change{
			"too large":         {Upsert: []of.Flow{f}},
			"put and deleted":   {Upsert: []of.Flow{flow(1, 1, of.NewMatch())}, Delete: []of.FlowKey{{Table: 1, Priority: 1}}},
			"too large a group": {PutGroups: []of.Group{{ID: 1, Buckets: make([]of.Bucket, 5000)}}},
		} {
			var refused *bridge.ChangeError
			if err := s.Apply(s.ctx, c); !errors.As(err, &refused) {
				t.Errorf("%s: error %v", name, err)
			}
		}
		largest := flow(1, 1, of.NewMatch(), conjunctions[:4000]...)
		s.put(largest, flow(1, 2, of.NewMatch()))
		if got := s.read().Flows[largest.Key()]; !got.Same(largest) {
			t.Errorf("a flow of 4000 conjunctions reads back with %d bytes of %d", got.Actions.Size(), largest.Actions.Size())
		}
	})
}

func TestReplaceKeepsCountersAndDeleteIsStrict(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		m := of.NewMatch(of.InPort(1))
		old := flow(0, 10, m, of.Controller{ControllerID: logID})
		low := flow(0, 5, m, of.OutputPort(2))
		wide := flow(0, 9, of.NewMatch(), of.OutputPort(2))
		s.put(old, low, wide)
		s.send(tcp(1, "10.0.0.1", "10.0.0.2", 1, 2, bridge.TCPSyn))
		s.next(logID)
		if got := s.read().Flows[old.Key()].Packets; got != 1 {
			t.Fatalf("%d packets counted, want 1", got)
		}
		next := flow(0, 10, m, of.OutputPort(3))
		next.Cookie |= 0xabc
		s.put(next)
		got := s.read().Flows[old.Key()]
		if got.Packets != 1 || !got.Same(next) {
			t.Errorf("after replacing: %v with %d packets", got, got.Packets)
		}
		var counted []of.Flow
		err := s.Counters(s.ctx, of.FlowFilter{Table: 0, Cookie: ours | 0xabc, CookieMask: ^uint64(0)}, func(f of.Flow) { counted = append(counted, f) })
		if err != nil || len(counted) != 1 || counted[0].Packets != 1 {
			t.Errorf("counters by cookie: %v, %v", counted, err)
		}
		s.must(s.Apply(s.ctx, bridge.Change{Delete: []of.FlowKey{old.Key(), {Table: 0, Priority: 6, Match: m}}}))
		flows := s.read().Flows
		if len(flows) != 2 || !flows[low.Key()].Same(low) || !flows[wide.Key()].Same(wide) {
			t.Errorf("flows after the delete: %v", flows)
		}
	})
}

func TestFlowCounts(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		theirs := flow(7, 1, of.NewMatch(of.InPort(9)))
		theirs.Cookie = 1
		s.put(flow(0, 1, of.NewMatch(), of.OutputPort(2)), flow(7, 1, of.NewMatch(), of.OutputPort(2)), flow(7, 2, of.NewMatch()), theirs)
		counts, err := s.FlowCounts(s.ctx)
		if want := map[uint8]int{0: 1, 7: 3}; err != nil || !maps.Equal(counts, want) {
			t.Errorf("%v, %v; want %v", counts, err, want)
		}
	})
}

// A flow's age is that of its last installation, also where its counters are older.
func TestAgeIsThatOfTheInstallation(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		f := flow(0, 10, of.NewMatch(of.InPort(1)), of.Controller{ControllerID: logID})
		age := func() time.Duration { return s.read().Flows[f.Key()].Age }
		grown := func() (reached time.Duration) {
			for deadline := time.Now().Add(10 * time.Second); reached < 100*time.Millisecond; reached = age() {
				if time.Now().After(deadline) {
					t.Fatalf("the flow is %v old", reached)
				}
			}
			return reached
		}
		began := time.Now()
		s.put(f)
		s.send(tcp(1, "10.0.0.1", "10.0.0.2", 1, 2, bridge.TCPSyn))
		s.next(logID)
		if reached, most := grown(), time.Since(began)+time.Millisecond; reached > most { // It counts whole milliseconds.
			t.Errorf("%v old after %v", reached, most)
		}
		reached := grown()
		s.put(f)
		if got := s.read().Flows[f.Key()]; got.Age >= reached || got.Packets != 1 {
			t.Errorf("replaced: %v old after %v, with %d packets", got.Age, reached, got.Packets)
		}
		reached = grown()
		s.must(s.Apply(s.ctx, bridge.Change{Delete: []of.FlowKey{f.Key()}}))
		s.put(f)
		if got := s.read().Flows[f.Key()]; got.Age >= reached || got.Packets != 0 {
			t.Errorf("taken out and put in again: %v old after %v, with %d packets", got.Age, reached, got.Packets)
		}
	})
}

func TestGroupsAndMetersChangeAndGo(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		user := flow(1, 1, of.NewMatch(of.IPv4()), of.ToGroup(5))
		limited := flow(1, 2, of.NewMatch(of.IPv4()), of.Controller{ControllerID: 9, MeterID: 6})
		metered := flow(1, 3, of.NewMatch(of.IPv4()), of.MeterBy(6))
		s.must(s.Apply(s.ctx, bridge.Change{PutMeters: []of.Meter{meter6}, PutGroups: []of.Group{group5}, Upsert: []of.Flow{user, limited, metered}}))
		changed := group5
		changed.Buckets = slices.Clone(group5.Buckets[:1])
		all := of.Group{ID: 7, Type: of.GroupAll, Buckets: []of.Bucket{{Actions: of.NewActions(of.OutputPort(1))}, {}}}
		slower := of.Meter{ID: 6, Rate: 7}
		s.must(s.Apply(s.ctx, bridge.Change{PutMeters: []of.Meter{slower}, PutGroups: []of.Group{changed, all}}))
		state := s.read()
		if !state.Groups[5].Same(changed) || !state.Groups[7].Same(all) || state.Meters[6] != slower || len(state.Flows) != 3 {
			t.Errorf("after the change: groups %v, meters %v, %d flows", state.Groups, state.Meters, len(state.Flows))
		}
		// What refers to them goes with them, but for copies to controllers, which a
		// meter that is gone no longer limits.
		s.must(s.Apply(s.ctx, bridge.Change{DeleteGroups: []uint32{5, 99}, DeleteMeters: []uint32{6, 99}}))
		state = s.read()
		if left := state.Flows[limited.Key()]; len(state.Groups) != 1 || len(state.Meters) != 0 || len(state.Flows) != 1 || !left.Same(limited) {
			t.Errorf("after the delete: groups %v, meters %v, flows %v", state.Groups, state.Meters, state.Flows)
		}
	})
}

func TestPacketInCarriesWhatTheFlowKnew(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		log := of.Controller{ControllerID: logID, UserData: "\x00weir", MeterID: 6, MaxLen: 100}
		hit := flow(1, 1, of.NewMatch(of.IPv4()), of.SetReg(0, 0x12, 0xff), of.SetReg(5, 77, 0xffffffff), log, of.GotoTable(30))
		hit.Cookie |= 0x42
		s.must(s.Apply(s.ctx, bridge.Change{PutMeters: []of.Meter{{ID: 6, Rate: 100000}}, Upsert: []of.Flow{
			flow(0, 1, of.NewMatch(of.IPv4()), of.CT{Zone: 3, Recirc: true, Table: 1}), hit}}))
		p := tcp(2, "10.0.0.1", "10.0.0.2", 1234, 80, bridge.TCPSyn)
		s.send(p)
		in := s.next(logID)
		if in.Table != 1 || in.Cookie != hit.Cookie || in.Reason != of.ReasonAction || string(in.UserData) != "\x00weir" || in.Paused {
			t.Errorf("packet-in %+v", in)
		}
		md := in.Metadata
		if md.InPort() != 2 || md.Reg(0) != 0x12 || md.Reg(5) != 77 || md.CtState() != of.CtTrk|of.CtNew || md.CtMark() != 0 {
			t.Errorf("metadata: port %d, registers %#x and %d, state %#x", md.InPort(), md.Reg(0), md.Reg(5), md.CtState())
		}
		src, dst := md.CtTuple()
		if src.String() != "10.0.0.1:1234" || dst.String() != "10.0.0.2:80" {
			t.Errorf("connection %s to %s", src, dst)
		}
		got, err := bridge.ParseFrame(in.Packet)
		got.InPort = 2
		if err != nil || got != p {
			t.Errorf("packet %+v (%v), want %+v", got, err, p)
		}
		if len(s.PacketIns(otherID)) != 0 || s.PacketInStats(otherID) != (bridge.PacketInStats{}) {
			t.Error("the packet came to another controller id, too")
		}
		stats, err := s.MeterCounters(s.ctx)
		if err != nil || len(stats) != 1 || stats[0].Age <= 0 || stats[0] != (of.MeterStats{ID: 6, Packets: 1, Age: stats[0].Age}) {
			t.Errorf("meter counters %v, %v", stats, err)
		}
	})
}

// What is left out of a reading is told all the same, each flow once, be it ours or not.
func TestReadBut(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		for i := range 4 {
			s.put(flow(uint8(10+i), 1, of.NewMatch(of.IPv4()), of.GotoTable(20)))
		}
		all := s.read()
		told := make(map[of.FlowKey]int)
		state, err := s.ReadBut(s.ctx, func(f of.Flow) bool {
			told[f.Key()]++
			return f.Table != 12
		})
		s.must(err)
		for key := range all.Flows {
			if told[key] != 1 {
				t.Errorf("%v was told %d times", key, told[key])
			}
		}
		if len(told) != len(all.Flows)+len(all.Foreign) || len(state.Flows)+len(state.Foreign) != 1 {
			t.Errorf("of %d flows %d were told; read are %v and %v", len(all.Flows)+len(all.Foreign), len(told), state.Flows, state.Foreign)
		}
	})
}

// A switch says how many meters it can have, and has them.
func TestMetersUpToTheLimit(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		limit, err := s.MeterLimit(s.ctx)
		if err != nil || limit < 1100 {
			t.Fatalf("limit %d, %v", limit, err)
		}
		var meters []of.Meter
		for i := range uint32(1100) {
			meters = append(meters, of.Meter{ID: i + 1, Rate: 10, Burst: 10})
		}
		s.must(s.Apply(s.ctx, bridge.Change{PutMeters: meters}))
		state, err := s.Read(s.ctx)
		stats, err2 := s.MeterCounters(s.ctx)
		if err != nil || err2 != nil || len(state.Meters) != len(meters) || len(stats) != len(meters) {
			t.Errorf("%d meters are read back, %d with counters, of %d: %v, %v", len(state.Meters), len(stats), len(meters), err, err2)
		}
	})
}

// What a controller sends may be looked up in any table, with what its actions
// put in registers; it comes from no port, and so may leave by all.
func TestPacketOutTakesItsActions(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		report := of.Controller{ControllerID: logID}
		s.put(
			flow(0, 1, of.NewMatch(), of.Controller{ControllerID: otherID}), // Where it must not come.
			flow(14, 2, of.NewMatch(of.IPDst(pfx("10.0.0.1/32")), of.Reg(0, 0x101, 0x10f)), of.SetEthDst(macB), of.SetReg(1, 2, 0xffffffff), of.GotoTable(20)),
			flow(14, 1, of.NewMatch(of.IPv4()), of.SetReg(1, 9, 0xffffffff), of.GotoTable(20)),
			flow(20, 1, of.NewMatch(of.InPort(of.PortController)), report, of.OutputRegister(1)),
		)
		p := tcp(0, "10.0.0.2", "10.0.0.1", 80, 4000, bridge.TCPRst)
		p.EthDst = macA
		for _, dst := range []struct {
			to   string
			port uint32
			mac  [6]byte
		}{{"10.0.0.1", 2, macB}, {"10.0.0.3", 9, macA}} {
			p.IPDst = addrOf(dst.to)
			s.must(s.PacketOut(s.ctx, of.PacketOut{Actions: of.NewActions(of.SetReg(0, 0x101, 0x10f), of.Resubmit(14)), Packet: p.Frame()}))
			in := s.next(logID)
			got, err := bridge.ParseFrame(in.Packet)
			s.must(err)
			if in.Table != 20 || in.Metadata.InPort() != of.PortController || in.Metadata.Reg(0) != 0x101 || in.Metadata.Reg(1) != dst.port || got.EthDst != dst.mac || in.Metadata.CtState() != 0 {
				t.Errorf("to %s: table %d, port %#x, registers %#x and %d, %s", dst.to, in.Table, in.Metadata.InPort(), in.Metadata.Reg(0), in.Metadata.Reg(1), got.String())
			}
		}
		if len(s.PacketIns(otherID)) != 0 {
			t.Error("the packets were looked up in table 0")
		}
	})
}

// A meter limits the copies of its own action, and neither the packet nor what
// else is copied of it; what it holds back it counts. Copies are whole, however
// little is asked for.
func TestMetersLimitCopiesApart(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		const sent, burst = 40, 5
		s.must(s.Apply(s.ctx, bridge.Change{PutMeters: []of.Meter{{ID: 1, Rate: 1, Burst: burst}, {ID: 2, Rate: 1000, Burst: 1000}}, Upsert: []of.Flow{
			flow(0, 1, of.NewMatch(of.IPv4()), of.Controller{ControllerID: logID, MeterID: 1, MaxLen: 20}, of.Controller{ControllerID: otherID, MeterID: 2}, of.GotoTable(1)),
			flow(1, 1, of.NewMatch()),
		}}))
		passed := uint64(0)
		for i := range sent {
			s.send(udp(1, "10.0.0.1", "10.0.0.2", uint16(i+1), 9))
			s.next(otherID)
			for len(s.PacketIns(logID)) > 0 {
				if in := s.next(logID); len(in.Packet) != int(in.FullLen) {
					t.Fatalf("%d bytes of a packet of %d arrive", len(in.Packet), in.FullLen)
				}
				passed++
			}
		}
		stats, err := s.MeterCounters(s.ctx)
		s.must(err)
		slices.SortFunc(stats, func(a, b of.MeterStats) int { return int(a.ID) - int(b.ID) })
		if len(stats) != 2 || stats[0].Packets != sent || stats[1] != (of.MeterStats{ID: 2, Packets: sent, Age: stats[1].Age}) {
			t.Fatalf("meters count %+v", stats)
		}
		for received := sent - stats[0].Dropped; s.PacketInStats(logID).Received < received; {
			if s.ctx.Err() != nil {
				t.Fatalf("%d of %d packets arrived", s.PacketInStats(logID).Received, received)
			}
		}
		// As many as may come at once, and one or two that the rate adds.
		if got := sent - stats[0].Dropped; got < burst || got > burst+20 || s.PacketInStats(logID).Received != got || passed > got {
			t.Errorf("%d copies arrived of %d that were let through", s.PacketInStats(logID).Received, got)
		}
		if state := s.read(); state.Flows[of.FlowKey{Table: 1, Priority: 1}].Packets != sent {
			t.Errorf("%d of %d packets went on", state.Flows[of.FlowKey{Table: 1, Priority: 1}].Packets, sent)
		}
	})
}

func TestFullQueueCountsWhatItDrops(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		s.put(flow(0, 1, of.NewMatch(of.IPv4()), of.Controller{ControllerID: logID}),
			flow(0, 1, of.NewMatch(of.IPv6()), of.Controller{ControllerID: otherID}))
		for i := range 2 * queueSize {
			s.send(udp(1, "10.0.0.1", "10.0.0.2", uint16(i+1), 9))
		}
		// Nobody listens to the first; the second is not held up.
		s.send(udp(1, "fd00::1", "fd00::2", 1, 9))
		s.next(otherID)
		for range queueSize {
			s.next(logID)
		}
		for s.PacketInStats(logID).Received < 2*queueSize {
			if s.ctx.Err() != nil {
				t.Fatal("packets lost on the way")
			}
		}
		if got := s.PacketInStats(logID); got.Received != 2*queueSize || got.Dropped+uint64(len(s.PacketIns(logID))) != queueSize {
			t.Errorf("%+v", got)
		}
	})
}

func TestRestartIsNoticedAndRepaired(t *testing.T) {
	run := func(t *testing.T, s *subject) {
		want := bridge.NewContent()
		for _, f := range sampleFlows() {
			want.Flows[f.Key()] = f
		}
		want.Groups[5], want.Meters[6] = group5, meter6
		s.must(s.Apply(s.ctx, bridge.Diff(want, s.read())))
		<-s.Reconnected() // the first connection
		_, connects := s.Connected()
		s.restart()
		select {
		case <-s.Reconnected():
		case <-s.ctx.Done():
			t.Fatal("the restart was not noticed")
		}
		if up, n := s.Connected(); !up || n <= connects {
			t.Errorf("connected %v, %d times after %d", up, n, connects)
		}
		state := s.read()
		if len(state.Flows)+len(state.Foreign)+len(state.Groups)+len(state.Meters) != 0 {
			t.Fatalf("a restarted bridge holds %+v", state)
		}
		s.must(s.Apply(s.ctx, bridge.Diff(want, state)))
		if c := bridge.Diff(want, s.read()); !c.IsEmpty() {
			t.Errorf("after the repair: %+v", c)
		}
		s.put(flow(0, 1, of.NewMatch(of.IPv4()), of.Controller{ControllerID: logID}))
		s.send(udp(1, "10.0.0.1", "10.0.0.2", 1, 9))
		s.next(logID)
	}
	each(t, run)
}

func TestPortsAreFollowed(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		local, err := s.Local(s.ctx)
		if err != nil || local.Number != of.PortLocal || local.MAC == [6]byte{} {
			t.Fatalf("own interface %+v, %v", local, err)
		}
		find := func(name string) (bridge.Port, bool) {
			ports, err := s.Ports(s.ctx)
			s.must(err)
			i := slices.IndexFunc(ports, func(p bridge.Port) bool { return p.Name == name })
			if i < 0 {
				return bridge.Port{}, false
			}
			return ports[i], true
		}
		await := func(what string, is func(p bridge.Port, there bool) bool) bridge.Port {
			for {
				if p, there := find("wport"); is(p, there) {
					return p
				}
				select {
				case <-s.PortsChanged():
				case <-s.ctx.Done():
					t.Fatalf("the port never was %s", what)
				}
			}
		}
		ready := func(p bridge.Port, there bool) bool { return there && p.Number != 0 && p.MAC != [6]byte{} }
		s.attach("wport")
		ids := map[string]string{"iface-id": "pod/a b", "k8s": `q"uote`}
		s.must(s.AddPort(s.ctx, "wport", ids))
		one := await("ready", ready)
		if !maps.Equal(one.ExternalIDs, ids) || one.ID == "" || one.Error != "" {
			t.Errorf("port %+v", one)
		}
		s.must(s.RemovePort(s.ctx, "wport"))
		await("gone", func(_ bridge.Port, there bool) bool { return !there })
		s.must(s.AddPort(s.ctx, "wport", nil))
		if two := await("back", ready); two.ID == one.ID {
			t.Errorf("a new port has the old identity %s", one.ID)
		}
	})
}

func ExampleChange() {
	web := of.Flow{
		Table:    10,
		Priority: 100,
		Match:    of.NewMatch(of.IPv4(), of.IPSrc(pfx("10.0.0.0/8")), of.L4Dst(of.ProtoTCP, 80, 0xffff)),
		Actions:  of.NewActions(of.SetReg(5, 7, 0xffffffff), of.GotoTable(20)),
	}
	desired := bridge.NewContent()
	desired.Flows[web.Key()] = web
	change := bridge.Diff(desired, bridge.State{Content: bridge.NewContent()})
	for _, f := range change.Upsert {
		fmt.Println(f)
	}
	// Output: table=10,priority=100,tcp,nw_src=10.0.0.0/8,tcp_dst=80 actions=set_field:0x7->reg5,goto_table:20
}
