package bridge_test

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	of "github.com/weirnet/weir/shim/bridge/openflow"
)

// A small world of Services: number 7 is TCP with affinity, number 8 is UDP
// without, both at one address, before endpoints of which one is the client of
// its own Service.
const (
	vip, hairpin = "10.96.0.1", "169.254.0.253"
	learnedMark  = ours | 0x7777
)

var serviceID = of.Bits{Field: of.FieldMetadata, Offset: 0, Len: 32}

func ofService(id uint64, more ...of.Field) of.Match {
	return of.NewMatch(append([]of.Field{of.IPv4(), of.Masked(of.FieldMetadata, of.Uint(id), of.Ones(0, 32))}, more...)...)
}

func at(p string) netip.Prefix { return pfx(p + "/32") }

// services are the flows and groups of that world with so many endpoints.
func services(endpoints int) bridge.Content {
	label := of.Bits{Field: of.FieldCTLabel, Offset: 64, Len: 32}
	track := func(zone uint16, next uint8) of.Action {
		return of.CT{Zone: zone, NAT: of.NAT{Kind: of.NATApply}, Recirc: true, Table: next}
	}
	report := of.Controller{ControllerID: logID}
	begun := of.CtState(of.CtTrk|of.CtNew, of.CtTrk|of.CtNew|of.CtInv)
	list := []of.Flow{
		flow(0, 5, of.NewMatch(of.IPDst(at(hairpin))), track(2, 1)),
		flow(0, 1, of.NewMatch(of.IPv4()), track(1, 5)),
		flow(1, 1, of.NewMatch(of.IPv4()), track(1, 5)),
		flow(5, 9, of.NewMatch(begun, of.IPDst(at(vip)), of.L4Dst(of.ProtoTCP, 80, 0xffff)), of.Load(serviceID, 7), of.Resubmit(9), of.GotoTable(8)),
		flow(5, 9, of.NewMatch(begun, of.IPDst(at(vip)), of.L4Dst(of.ProtoUDP, 53, 0xffff)), of.Load(serviceID, 8), of.GotoTable(8)),
		flow(5, 1, of.NewMatch(), of.MoveBits(label, serviceID), of.GotoTable(20)),
		flow(20, 1, of.NewMatch(), report, of.GotoTable(30)),
		flow(21, 1, of.NewMatch(), report, of.InPortOutput()),
		flow(30, 1, of.NewMatch(of.IPDst(at("10.0.0.1"))), of.OutputPort(1)),
	}
	out := bridge.NewContent()
	for id, proto := range map[uint64]uint8{7: of.ProtoTCP, 8: of.ProtoUDP} {
		list = append(list, flow(8, 1, ofService(id), of.ToGroup(uint32(2*id))))
		out.Groups[uint32(2*id)] = balancer(uint32(2*id), false, endpoints)
		for i := range endpoints {
			ep := endpoint(false, i)
			var steps []of.Action
			if id == 7 {
				steps = append(steps, affinity(1))
			}
			steps = append(steps, of.CT{Commit: true, Zone: 1, Recirc: true, Table: 10, NAT: of.NAT{Kind: of.NATDst, MinAddr: ep, MinPort: 8080},
				Exec: []of.Action{of.Load(label, id)}})
			list = append(list, flow(8, 10, ofService(id, of.IPProto(proto), of.Exactly(of.FieldReg(8), of.Addr(ep))), steps...))
		}
	}
	list = append(list, flow(10, 1, of.NewMatch(), of.MoveBits(label, serviceID), of.GotoTable(20)))
	for i := range endpoints {
		itself := netip.PrefixFrom(endpoint(false, i), 32)
		list = append(list, flow(20, 10, of.NewMatch(of.IPSrc(itself), of.IPDst(itself)),
			of.CT{Commit: true, Zone: 2, Recirc: true, Table: 21, NAT: of.NAT{Kind: of.NATSrc, MinAddr: addrOf(hairpin)}}))
		list = append(list, flow(30, 1, of.NewMatch(of.IPDst(itself)), of.OutputPort(uint32(2+i))))
	}
	for _, f := range list {
		out.Flows[f.Key()] = f
	}
	return out
}

// affinity learns which endpoint a client has, for so many idle seconds.
func affinity(idle uint16) of.Learn {
	return of.Learn{Table: 9, Priority: 100, IdleTimeout: idle, Cookie: learnedMark, Specs: []of.LearnSpec{
		of.LearnMatchValue(of.FieldEthType, of.Uint(of.EtherIPv4)), of.LearnMatchValue(of.FieldIPProto, of.Uint(of.ProtoTCP)),
		of.LearnMatch(of.FieldIPv4Src), of.LearnMatch(of.FieldIPv4Dst), of.LearnLoad(of.WholeField(of.FieldReg(8)), of.WholeField(of.FieldReg(8))),
	}}
}

// hop sends a packet and says what it was when it came to a report.
func (s *subject) hop(p bridge.Packet) (bridge.Packet, of.PacketIn) {
	s.t.Helper()
	s.send(p)
	in := s.next(logID)
	got, err := bridge.ParseFrame(in.Packet)
	s.must(err)
	return got, in
}

// answered is the reply to a packet as it arrived.
func answered(p bridge.Packet, port uint32) bridge.Packet {
	p.InPort, p.EthSrc, p.EthDst = port, p.EthDst, p.EthSrc
	p.IPSrc, p.IPDst, p.SrcPort, p.DstPort = p.IPDst, p.IPSrc, p.DstPort, p.SrcPort
	if p.IPProto == of.ProtoTCP {
		p.TCPFlags = bridge.TCPSyn | bridge.TCPAck
	}
	return p
}

// hold has the bridge hold exactly that, but for what it learned.
func (s *subject) hold(want bridge.Content) {
	s.t.Helper()
	state := s.read()
	maps.DeleteFunc(state.Flows, func(_ of.FlowKey, f of.Flow) bool { return f.Cookie == learnedMark })
	s.must(s.Apply(s.ctx, bridge.Diff(want, state)))
}

func (s *subject) learned() (list []of.Flow) {
	s.t.Helper()
	s.must(s.Counters(s.ctx, of.FlowFilter{Table: of.AllTables, Cookie: learnedMark, CookieMask: ^uint64(0)}, func(f of.Flow) { list = append(list, f) }))
	return list
}

// Each connection goes to one endpoint, all of them are used, and what comes back
// is as if the Service had answered.
func TestServiceBalances(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		const endpoints = 4
		s.hold(services(endpoints))
		seen := map[netip.Addr]bool{}
		for i := range 32 {
			client := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}).String()
			first := udp(1, client, vip, 4000, 53)
			got, in := s.hop(first)
			md := in.Metadata
			if got.IPSrc != first.IPSrc || got.DstPort != 8080 || in.Table != 20 || md.CtState()&of.CtDNAT == 0 {
				t.Fatalf("arrives as %s in table %d, %s", got.String(), in.Table, stateWords(md.CtState()))
			}
			if src, dst := md.CtTuple(); dst != netip.AddrPortFrom(first.IPDst, 53) || src.Addr() != first.IPSrc || md.CtLabel() != [16]byte{7: 8} {
				t.Fatalf("tracked as %s to %s, label %x", src, dst, md.CtLabel())
			}
			if md.Reg(8) != uint32(of.Addr(got.IPDst).Uint64()) {
				t.Errorf("the bucket's register is %#x", md.Reg(8))
			}
			seen[got.IPDst] = true
			back, in := s.hop(answered(got, 2))
			if back.IPSrc != first.IPDst || back.SrcPort != 53 || back.IPDst != first.IPSrc || in.Metadata.CtState()&(of.CtEst|of.CtRpl) != of.CtEst|of.CtRpl {
				t.Fatalf("the reply arrives as %s, %s", back.String(), stateWords(in.Metadata.CtState()))
			}
			if again, _ := s.hop(first); again.IPDst != got.IPDst {
				t.Errorf("the connection moves from %s to %s", got.IPDst, again.IPDst)
			}
		}
		if len(seen) != endpoints {
			t.Errorf("%d of %d endpoints were used", len(seen), endpoints)
		}
		for addr := range seen {
			if !slices.ContainsFunc([]int{0, 1, 2, 3}, func(i int) bool { return endpoint(false, i) == addr }) {
				t.Errorf("%s is no endpoint", addr)
			}
		}
	})
}

// An endpoint that calls its own Service sees it from another address, and its
// replies find back through both translations.
func TestServiceHairpin(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		s.hold(services(1))
		itself := endpoint(false, 0).String()
		first := tcp(2, itself, vip, 4000, 80, bridge.TCPSyn)
		got, in := s.hop(first)
		if got.IPSrc.String() != hairpin || got.IPDst.String() != itself || got.SrcPort != 4000 || got.DstPort != 8080 || in.Table != 21 {
			t.Fatalf("arrives as %s in table %d", got.String(), in.Table)
		}
		if state := in.Metadata.CtState(); state&(of.CtSNAT|of.CtNew) != of.CtSNAT|of.CtNew || in.Metadata.CtLabel() != [16]byte{} {
			t.Errorf("in the second zone it is %s, label %x", stateWords(state), in.Metadata.CtLabel())
		}
		back, in := s.hop(answered(got, 2))
		if back.IPSrc.String() != vip || back.SrcPort != 80 || back.IPDst.String() != itself || back.DstPort != 4000 || in.Table != 20 {
			t.Fatalf("the reply arrives as %s in table %d", back.String(), in.Table)
		}
		if in.Metadata.CtLabel() != [16]byte{7: 7} || in.Metadata.CtState()&(of.CtEst|of.CtRpl) != of.CtEst|of.CtRpl {
			t.Errorf("the reply is %s, label %x", stateWords(in.Metadata.CtState()), in.Metadata.CtLabel())
		}
		first.TCPFlags = bridge.TCPAck
		if got, _ := s.hop(first); got.IPSrc.String() != hairpin || got.DstPort != 8080 {
			t.Errorf("the next packet arrives as %s", got.String())
		}
	})
}

// What a connection learns, the client's next ones follow, until the endpoint goes
// or the time is over.
func TestServiceAffinity(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		s.hold(services(4))
		connect := func(port uint16) netip.Addr {
			got, _ := s.hop(tcp(1, "10.0.0.1", vip, port, 80, bridge.TCPSyn))
			return got.IPDst
		}
		chosen := connect(4000)
		want := func(ep netip.Addr) of.Flow {
			return of.Flow{Table: 9, Priority: 100, Cookie: learnedMark, IdleTimeout: 1,
				Match:   of.NewMatch(of.IPProto(of.ProtoTCP), of.IPSrc(at("10.0.0.1")), of.IPDst(at(vip))),
				Actions: of.NewActions(of.Set(of.FieldReg(8), of.Addr(ep)))}
		}
		if list := s.learned(); len(list) != 1 || !list[0].Same(want(chosen)) || list[0].Packets != 0 {
			t.Fatalf("learned %v, want %v", list, want(chosen))
		}
		for port := range uint16(8) {
			if got := connect(4001 + port); got != chosen {
				t.Errorf("a later connection goes to %s, not %s", got, chosen)
			}
		}
		if list := s.learned(); len(list) != 1 || !list[0].Same(want(chosen)) || list[0].Packets != 8 {
			t.Errorf("8 connections later: %v with %d packets", list, list[0].Packets)
		}
		if _, ok := s.read().Flows[want(chosen).Key()]; !ok {
			t.Error("the learned flow is not read as ours")
		}
		// Its endpoint goes.
		less := services(4)
		for key, f := range less.Flows {
			if m, ok := f.Match.Field(of.FieldReg(8)); ok && m.Value == of.Addr(chosen) {
				delete(less.Flows, key)
			}
		}
		g := less.Groups[14]
		g.Buckets = slices.DeleteFunc(g.Buckets, func(b of.Bucket) bool { return b.Actions.List()[0] == of.Set(of.FieldReg(8), of.Addr(chosen)) })
		less.Groups[14] = g
		s.hold(less)
		next := connect(5000)
		if next == chosen || connect(5001) != next {
			t.Errorf("after %s went, connections go to %s", chosen, next)
		}
		if list := s.learned(); len(list) != 1 || !list[0].Same(want(next)) {
			t.Errorf("after it went: %v", list)
		}
		s.pass(time.Second, func() bool { return len(s.learned()) == 0 })
	})
}

// The same of IPv6, where the endpoint takes a wide register.
func TestServiceAffinity6(t *testing.T) {
	const vip6 = "fd00:96::1"
	learn := of.Learn{Table: 9, Priority: 100, HardTimeout: 600, Cookie: learnedMark, Specs: []of.LearnSpec{
		of.LearnMatchValue(of.FieldEthType, of.Uint(of.EtherIPv6)), of.LearnMatch(of.FieldIPv6Src), of.LearnMatch(of.FieldIPv6Dst),
		of.LearnLoad(of.WholeField(of.FieldXXReg(2)), of.WholeField(of.FieldXXReg(2))),
	}}
	each(t, func(t *testing.T, s *subject) {
		v6 := of.IPv6()
		track := of.CT{Zone: 1, NAT: of.NAT{Kind: of.NATApply}, Recirc: true, Table: 5}
		flows := []of.Flow{
			flow(0, 1, of.NewMatch(v6), track),
			flow(5, 2, of.NewMatch(v6, of.CtState(of.CtNew, of.CtNew)), of.Resubmit(9), of.GotoTable(8)),
			flow(5, 1, of.NewMatch(), of.GotoTable(20)),
			flow(8, 1, of.NewMatch(v6), of.ToGroup(1)),
			flow(20, 1, of.NewMatch(), of.Controller{ControllerID: logID}),
		}
		for i := range 4 {
			ep := endpoint(true, i)
			flows = append(flows, flow(8, 10, of.NewMatch(v6, of.Exactly(of.FieldXXReg(2), of.Addr(ep))), learn,
				of.CT{Commit: true, Zone: 1, Recirc: true, Table: 20, NAT: of.NAT{Kind: of.NATDst, MinAddr: ep, MinPort: 8080}}))
		}
		s.must(s.Apply(s.ctx, bridge.Change{PutGroups: []of.Group{balancer(1, true, 4)}, Upsert: flows}))
		first := tcp(1, "fd00::aaaa", vip6, 4000, 80, bridge.TCPSyn)
		got, _ := s.hop(first)
		want := of.Flow{Table: 9, Priority: 100, Cookie: learnedMark, HardTimeout: 600,
			Match:   of.NewMatch(of.IPSrc(pfx("fd00::aaaa/128")), of.IPDst(pfx(vip6+"/128"))),
			Actions: of.NewActions(of.Set(of.FieldXXReg(2), of.Addr(got.IPDst)))}
		if list := s.learned(); len(list) != 1 || !list[0].Same(want) {
			t.Fatalf("learned %v, want %v", list, want)
		}
		for port := range uint16(8) {
			next, _ := s.hop(tcp(1, "fd00::aaaa", vip6, 4001+port, 80, bridge.TCPSyn))
			if next.IPDst != got.IPDst || next.DstPort != 8080 {
				t.Errorf("a later connection goes to %s", next.String())
			}
		}
		if back, _ := s.hop(answered(got, 2)); back.IPSrc != first.IPDst || back.SrcPort != 80 || back.IPDst != first.IPSrc {
			t.Errorf("the reply arrives as %s", back.String())
		}
	})
}

// A learned flow is known by its cookie, and goes by its key.
func TestLearnedFlowsAreDeleted(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		s.put(flow(0, 1, of.NewMatch(of.IPv4(), of.IPProto(of.ProtoTCP)), affinity(600), of.Controller{ControllerID: logID}, of.Resubmit(9)),
			flow(9, 1, of.NewMatch(), of.Controller{ControllerID: logID}))
		for i := range 5 {
			client := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}).String()
			s.hop(tcp(1, client, vip, 1, 80, bridge.TCPSyn))
			s.next(logID) // what a packet makes, it does not meet
		}
		var keys []of.FlowKey
		for _, f := range s.learned() {
			keys = append(keys, f.Key())
		}
		if len(keys) != 5 {
			t.Fatalf("%d flows were learned, want 5", len(keys))
		}
		s.must(s.Apply(s.ctx, bridge.Change{Delete: keys}))
		if state := s.read(); len(s.learned()) != 0 || len(state.Flows) != 2 {
			t.Errorf("%d flows are left, want 2", len(state.Flows))
		}
	})
}

// Flows that learn what the packet need not have, or what the learned flow could
// not match, are refused.
func TestLearnNeedsItsFields(t *testing.T) {
	ip4 := of.LearnMatchValue(of.FieldEthType, of.Uint(of.EtherIPv4))
	overTCP := of.LearnMatchValue(of.FieldIPProto, of.Uint(of.ProtoTCP))
	anyTCP := of.NewMatch(of.IPv4(), of.IPProto(of.ProtoTCP))
	each(t, func(t *testing.T, s *subject) {
		for name, c := range map[string]struct {
			match of.Match
			specs []of.LearnSpec
			taken bool
		}{
			"all there":          {anyTCP, []of.LearnSpec{ip4, overTCP, of.LearnMatch(of.FieldTCPSrc)}, true},
			"registers":          {of.NewMatch(), []of.LearnSpec{of.LearnLoad(of.WholeField(of.FieldXXReg(2)), of.WholeField(of.FieldXXReg(1))), of.LearnMatch(of.FieldReg(2))}, true},
			"source without tcp": {of.NewMatch(of.IPv4()), []of.LearnSpec{ip4, overTCP, of.LearnMatch(of.FieldTCPSrc)}, false},
			"target without tcp": {anyTCP, []of.LearnSpec{ip4, of.LearnMatch(of.FieldTCPSrc)}, false},
			"target too early":   {anyTCP, []of.LearnSpec{of.LearnMatch(of.FieldIPv4Src), ip4}, false},
			"sets a port":        {anyTCP, []of.LearnSpec{ip4, overTCP, of.LearnLoadValue(of.Uint(1), of.WholeField(of.FieldTCPSrc))}, true},
			"sets no port":       {anyTCP, []of.LearnSpec{ip4, of.LearnLoadValue(of.Uint(1), of.WholeField(of.FieldTCPSrc))}, false},
			"other family":       {anyTCP, []of.LearnSpec{ip4, {From: of.WholeField(of.FieldXXReg(0)), To: of.WholeField(of.FieldIPv6Src)}}, false},
		} {
			err := s.Apply(s.ctx, bridge.Change{Upsert: []of.Flow{flow(5, 9, c.match, of.Learn{Table: 9, Specs: c.specs})}})
			if c.taken && err != nil || !c.taken && !errors.Is(err, &of.Error{Type: 2, Code: 10}) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// What is learned has a limit for packets that come in.
func TestLearnLimitOfTheFake(t *testing.T) {
	f := bridge.NewFake(config("br0"))
	limited := affinity(600)
	limited.Limit = 3
	if err := f.Apply(t.Context(), bridge.Change{Upsert: []of.Flow{flow(0, 1, of.NewMatch(of.IPv4(), of.IPProto(of.ProtoTCP)), limited)}}); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		f.Send(tcp(1, netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}).String(), vip, 1, 80, bridge.TCPSyn))
	}
	if counts, err := f.FlowCounts(t.Context()); err != nil || counts[9] != 3 {
		t.Errorf("%v, %v", counts, err)
	}
}
