package bridge_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/weirnet/weir/shim/bridge"
	of "github.com/weirnet/weir/shim/bridge/openflow"
)

func host(s string) of.Match { return of.NewMatch(of.IPSrc(pfx(s + "/32"))) }

func dport(p uint16) of.Match {
	return of.NewMatch(of.IPv4(), of.L4Dst(of.ProtoTCP, p, 0xffff))
}

// conjunctions is a table of three conjunctions that share clause flows, over a
// denying default.
func conjunctions() []of.Flow {
	clause := func(ids ...of.Action) of.Actions { return of.NewActions(ids...) }
	c := func(id uint32, clause, of_ uint8) of.Action {
		return of.Conjunction{ID: id, Clause: clause, Clauses: of_}
	}
	mk := func(priority uint16, m of.Match, a of.Actions) of.Flow {
		return of.Flow{Table: 0, Priority: priority, Match: m, Cookie: ours, Actions: a}
	}
	return []of.Flow{
		mk(100, host("10.0.0.1"), clause(c(1, 0, 2), c(2, 0, 2))),
		mk(100, host("10.0.0.2"), clause(c(2, 0, 2))),
		mk(100, dport(80), clause(c(1, 1, 2))),
		mk(100, dport(443), clause(c(2, 1, 2))),
		flow(0, 100, of.NewMatch(of.ConjID(1)), of.OutputPort(2)),
		flow(0, 100, of.NewMatch(of.ConjID(2), of.IPv4()), of.OutputPort(3)),
		// Below: a rule that the former hide only where all of their clauses hold.
		mk(90, host("10.0.0.1"), clause(c(3, 0, 3))),
		mk(90, of.NewMatch(of.IPDst(pfx("10.9.0.0/16"))), clause(c(3, 1, 3))),
		mk(90, dport(80), clause(c(3, 2, 3))),
		mk(90, dport(22), clause(c(3, 2, 3))),
		flow(0, 90, of.NewMatch(of.ConjID(3)), of.OutputPort(4)),
		flow(0, 80, host("10.0.0.3"), of.OutputPort(4)),
		flow(0, 1, of.NewMatch()),
	}
}

// A port that is read from a register has 16 bits: the reserved ports are named
// by their lower halves, and what is larger is no port.
func TestOutputByRegister(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		for value, want := range map[uint32][]string{
			2:             {"2"},
			1:             {}, // that it came from
			0xfffe:        {"LOCAL"},
			of.PortLocal:  {},
			of.PortInPort: {},
			0x10002:       {},
		} {
			s.put(flow(0, 1, of.NewMatch(), of.SetReg(1, value, 0xffffffff), of.OutputRegister(1)))
			if got := s.outputs(udp(1, "10.0.0.1", "10.0.0.2", 1, 2)); !slices.Equal(got, want) {
				t.Errorf("%#x: leaves by %v, want %v", value, got, want)
			}
		}
	})
}

// Nothing leaves by the port that it came from, but where that is said.
func TestOutputToInPort(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		s.put(flow(0, 2, host("10.0.0.1"), of.OutputPort(1), of.InPortOutput()), flow(0, 1, of.NewMatch(), of.OutputPort(1)))
		for src, want := range map[string][]string{"10.0.0.1": {"1"}, "10.0.0.2": {}} {
			if got := s.outputs(udp(1, src, "10.0.0.9", 1, 2)); !slices.Equal(got, want) {
				t.Errorf("from %s: leaves by %v, want %v", src, got, want)
			}
		}
	})
}

// A wide register is the registers that it spans.
func TestWideRegisters(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		wide := of.FieldXXReg(2)
		s.put(
			flow(0, 1, of.NewMatch(of.IPv6()), of.SetReg(8, 1, 0xffffffff), of.MoveBits(of.WholeField(of.FieldIPv6Dst), of.WholeField(wide)), of.GotoTable(1)),
			flow(1, 1, of.NewMatch(of.Reg(8, 0xfd000000, 0xffffffff), of.Reg(11, 9, 0xffffffff)), of.SetReg(10, 5, 0xff), of.GotoTable(2)),
			flow(2, 1, of.NewMatch(of.Exactly(wide, of.Addr(addrOf("fd00::5:0:9")))), of.Set(wide, of.Uint(3)), of.OutputRegister(11)),
		)
		for dst, want := range map[string][]string{"fd00::9": {"3"}, "fd01::9": {}} {
			if got := s.outputs(udp(1, "fd00::1", dst, 1, 2)); !slices.Equal(got, want) {
				t.Errorf("to %s: leaves by %v, want %v", dst, got, want)
			}
		}
	})
}

// Resubmit looks a packet up in an earlier table and comes back with what was
// done to its registers there, also where that table has no flow for it.
func TestResubmitComesBack(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		s.put(
			flow(0, 1, of.NewMatch(), of.GotoTable(5)),
			flow(5, 2, of.NewMatch(of.Reg(0, 0, 1)), of.SetReg(0, 1, 1), of.Resubmit(3), of.Resubmit(5)),
			flow(3, 1, of.NewMatch(of.IPSrc(pfx("10.0.0.1/32"))), of.SetReg(1, 2, 0xffffffff), of.GotoTable(4)),
			flow(4, 1, of.NewMatch(), of.SetReg(2, 3, 0xffffffff)),
			flow(5, 1, of.NewMatch(of.Reg(2, 3, 0xffffffff)), of.OutputRegister(1)),
			flow(5, 0, of.NewMatch(), of.OutputPort(4)),
		)
		for src, want := range map[string]string{"10.0.0.1": "2", "10.0.0.2": "4"} {
			if got := s.outputs(udp(1, src, "10.0.0.9", 1, 2)); !slices.Equal(got, []string{want}) {
				t.Errorf("from %s: leaves by %v, want %s", src, got, want)
			}
		}
	})
}

// A flow that matches a conjunction's id and more goes ahead of the one that
// matches the id alone, from any priority: it is looked for only once the
// clauses hold.
func TestConjunctionIDWithMore(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		clause := func(n uint8, m of.Match) of.Flow {
			return of.Flow{Table: 1, Priority: 10, Match: m, Cookie: ours, Actions: of.NewActions(of.Conjunction{ID: 7, Clause: n, Clauses: 2})}
		}
		s.put(
			flow(0, 2, host("10.0.0.1"), of.SetReg(0, 8, 0xf), of.GotoTable(1)),
			flow(0, 2, host("10.0.0.3"), of.SetReg(0, 9, 0xf), of.GotoTable(1)),
			flow(0, 1, of.NewMatch(), of.GotoTable(1)),
			clause(0, of.NewMatch(of.IPDst(pfx("10.9.0.0/16")))), clause(1, dport(80)),
			flow(1, 10, of.NewMatch(of.ConjID(7)), of.OutputPort(2)),
			flow(1, 65535, of.NewMatch(of.ConjID(7), of.Reg(0, 8, 9)), of.OutputPort(3)),
			flow(1, 0, of.NewMatch(), of.OutputPort(4)),
		)
		for _, tc := range []struct {
			src  string
			port uint16
			want string
		}{{"10.0.0.1", 80, "3"}, {"10.0.0.2", 80, "2"}, {"10.0.0.3", 80, "2"}, {"10.0.0.1", 81, "4"}, {"10.0.0.2", 81, "4"}} {
			if got := s.outputs(tcp(1, tc.src, "10.9.0.9", 1234, tc.port, bridge.TCPSyn)); !slices.Equal(got, []string{tc.want}) {
				t.Errorf("from %s to port %d: leaves by %v, want %s", tc.src, tc.port, got, tc.want)
			}
		}
	})
}

// A flow that matches at once stands among conjunctions by its priority: ahead of
// those below, and behind those above whose clauses hold.
func TestFlowAmongConjunctions(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		put := []of.Flow{flow(0, 0, of.NewMatch(), of.OutputPort(4))}
		conjunction := func(id uint32, src string, port uint16, out uint32) {
			for n, m := range []of.Match{host(src), dport(port)} {
				put = append(put, of.Flow{Table: 0, Priority: uint16(100 - 10*id), Match: m, Cookie: ours,
					Actions: of.NewActions(of.Conjunction{ID: id, Clause: uint8(n), Clauses: 2})})
			}
			put = append(put, flow(0, uint16(100-10*id), of.NewMatch(of.ConjID(id)), of.OutputPort(out)))
		}
		conjunction(1, "10.0.0.1", 80, 2)
		put = append(put, flow(0, 80, of.NewMatch(of.IPSrc(pfx("10.0.0.2/32")), of.L4Dst(of.ProtoTCP, 80, 0xffff)), of.OutputPort(3)),
			flow(0, 80, of.NewMatch(of.IPSrc(pfx("10.0.0.1/32")), of.L4Dst(of.ProtoTCP, 80, 0xffff)), of.OutputPort(4)),
			flow(0, 80, of.NewMatch(of.IPSrc(pfx("10.0.0.1/32")), of.L4Dst(of.ProtoTCP, 81, 0xffff)), of.OutputPort(3)))
		conjunction(3, "10.0.0.2", 80, 4)
		conjunction(4, "10.0.0.1", 81, 4)
		conjunction(5, "10.0.0.3", 80, 2)
		s.put(put...)
		for _, tc := range []struct {
			src  string
			port uint16
			want string
		}{{"10.0.0.1", 80, "2"}, {"10.0.0.2", 80, "3"}, {"10.0.0.1", 81, "3"}, {"10.0.0.3", 80, "2"}, {"10.0.0.3", 81, "4"}} {
			if got := s.outputs(tcp(1, tc.src, "10.9.0.9", 1234, tc.port, bridge.TCPSyn)); !slices.Equal(got, []string{tc.want}) {
				t.Errorf("from %s to port %d: leaves by %v, want %s", tc.src, tc.port, got, tc.want)
			}
		}
	})
}

func TestConjunctionsShareClauses(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		s.put(conjunctions()...)
		for _, c := range []struct {
			src, dst string
			port     uint16
			want     []string
		}{
			{"10.0.0.1", "10.9.0.1", 80, []string{"2"}},
			{"10.0.0.1", "10.9.0.1", 443, []string{"3"}},
			{"10.0.0.2", "10.9.0.1", 443, []string{"3"}},
			{"10.0.0.2", "10.9.0.1", 80, []string{}},
			{"10.0.0.1", "10.9.0.1", 22, []string{"4"}},
			{"10.0.0.1", "10.8.0.1", 22, []string{}},
			{"10.0.0.3", "10.8.0.1", 80, []string{"4"}},
		} {
			if got := s.outputs(tcp(1, c.src, c.dst, 5, c.port, bridge.TCPSyn)); !slices.Equal(got, c.want) {
				t.Errorf("%s to %s:%d leaves by %v, want %v", c.src, c.dst, c.port, got, c.want)
			}
		}
	})
}

// tiers is a table of rules in order, each of which shares its source with
// others above and below it, as rules of tiers do: a drop, one that passes to
// the table of allow-lists, two of one priority that allow, and a drop of the
// rest. The next table allows one port and drops what else there is.
func tiers() []of.Flow {
	var out []of.Flow
	rule := func(table uint8, priority uint16, id uint32, source string, port uint16, steps ...of.Action) {
		clause := func(m of.Match, n uint8) {
			f := flow(table, priority, m, of.Conjunction{ID: id, Clause: n, Clauses: 2})
			if i := slices.IndexFunc(out, func(have of.Flow) bool { return have.Key() == f.Key() }); i >= 0 {
				out[i].Actions = of.NewActions(append(out[i].Actions.List(), f.Actions.List()...)...)
				return
			}
			out = append(out, f)
		}
		clause(of.NewMatch(of.IPSrc(pfx(source))), 0)
		service := of.NewMatch(of.IPv4())
		if port != 0 {
			service = dport(port)
		}
		clause(service, 1)
		out = append(out, flow(table, priority, of.NewMatch(of.ConjID(id)), steps...))
	}
	rule(10, 40000, 1, "10.0.0.1/32", 22)
	rule(10, 32000, 2, "10.0.0.1/32", 80, of.GotoTable(11))
	rule(10, 20000, 3, "10.0.0.1/32", 443, of.OutputPort(2))
	rule(10, 20000, 4, "10.0.0.0/24", 443, of.OutputPort(2))
	rule(10, 19999, 5, "10.0.0.0/24", 80, of.OutputPort(3))
	rule(10, 1, 6, "10.0.0.0/8", 0)
	rule(11, 190, 7, "10.0.0.0/16", 80, of.OutputPort(4))
	return append(out, flow(0, 1, of.NewMatch(), of.GotoTable(10)), flow(10, 0, of.NewMatch(), of.GotoTable(11)), flow(11, 0, of.NewMatch()))
}

func TestRulesOfTiersInOrder(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		s.put(tiers()...)
		for _, c := range []struct {
			name, src string
			port      uint16
			want      []string
		}{
			{"the first rule drops", "10.0.0.1", 22, []string{}},
			{"one that passes skips what would allow", "10.0.0.1", 80, []string{"4"}},
			{"two of one priority allow", "10.0.0.1", 443, []string{"2"}},
			{"one of them", "10.0.0.2", 443, []string{"2"}},
			{"what is passed for one source is allowed for another", "10.0.0.2", 80, []string{"3"}},
			{"half of the first rule is no match", "10.0.0.2", 22, []string{}},
			{"the last rule drops before the allow-list", "10.0.1.1", 80, []string{}},
			{"no rule matches", "192.0.2.1", 80, []string{}},
		} {
			if got := s.outputs(tcp(1, c.src, "10.9.0.1", 5, c.port, bridge.TCPSyn)); !slices.Equal(got, c.want) {
				t.Errorf("%s: %s to port %d leaves by %v, want %v", c.name, c.src, c.port, got, c.want)
			}
		}
	})
}

// TestConjunctionWithoutItsFlow shows a trap: where all clauses hold but no flow
// takes the conjunction's id, the whole table is looked up again without
// clauses, and conjunctions of lower priority are not considered.
func TestConjunctionWithoutItsFlow(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		flows := slices.DeleteFunc(conjunctions(), func(f of.Flow) bool { return f.Match == of.NewMatch(of.ConjID(1)) })
		s.put(flows...)
		if got := s.outputs(tcp(1, "10.0.0.1", "10.9.0.1", 5, 80, bridge.TCPSyn)); len(got) != 0 {
			t.Errorf("leaves by %v", got)
		}
	})
}

// TestPipelinesAgree compares the Fake's walker with the switch's own account
// over random tables: priorities, masks, registers, conjunctions, groups, goto
// and recirculation.
func TestPipelinesAgree(t *testing.T) {
	real, fake := newReal(t), newFake(t)
	rounds, packets := 12, 12
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		r := rand.New(rand.NewPCG(1, uint64(round)))
		want := bridge.NewContent()
		want.Groups[1] = of.Group{ID: 1, Type: of.GroupAll, Buckets: []of.Bucket{
			{Actions: of.NewActions(of.SetReg(3, 9, 0xff), of.OutputPort(2))}, {Actions: of.NewActions(of.OutputPort(3))}}}
		for _, f := range randomFlows(r) {
			want.Flows[f.Key()] = f
		}
		for _, s := range []*subject{real, fake} {
			s.must(s.Apply(s.ctx, bridge.Diff(want, s.read())))
		}
		for range packets {
			p := randomPacket(r)
			states := []uint32{of.CtTrk | of.CtNew, of.CtTrk | of.CtEst, of.CtTrk | of.CtEst | of.CtRpl, of.CtTrk | of.CtInv}
			state := states[r.IntN(len(states))]
			got, wanted := fake.outputs(p, state), real.outputs(p, state)
			if !reflect.DeepEqual(got, wanted) {
				t.Fatalf("round %d: %s with %s leaves by %v in the walker:\n%s\nby %v in the switch:\n%s", round, p.String(), stateWords(state),
					got, fake.account(p, state), wanted, real.account(p, state))
			}
		}
	}
}

var (
	randomHosts = []string{"10.0.0.1", "10.0.0.2", "10.0.1.1", "10.1.0.1"}
	randomPorts = []uint16{80, 81, 443}
)

// randomFlows makes tables in which every priority has one hard flow or one
// conjunction's clauses, so that the outcome is defined.
func randomFlows(r *rand.Rand) []of.Flow {
	var out []of.Flow
	pick := func() string { return randomHosts[r.IntN(len(randomHosts))] }
	condition := func(side int) of.Field {
		p := netip.PrefixFrom(addrOf(pick()), []int{0, 16, 24, 32}[r.IntN(4)]).Masked()
		if side == 0 {
			return of.IPSrc(p)
		}
		return of.IPDst(p)
	}
	port := func() of.Field {
		return of.L4Dst(of.ProtoTCP, randomPorts[r.IntN(3)], []uint16{0xffff, 0xfffe, 0}[r.IntN(3)])
	}
	steps := func(table uint8) []of.Action {
		list := []of.Action{of.SetReg(r.IntN(2), uint32(r.IntN(4)), 3)}
		switch r.IntN(6) {
		case 0:
			return append(list, of.OutputPort(uint32(1+r.IntN(4))))
		case 1:
			return append(list, of.Load(of.RegBits(4, 0, 16), uint64(1+r.IntN(4))), of.OutputReg{From: of.RegBits(4, 0, 16)})
		case 2:
			return append(list, of.ToGroup(1))
		case 3:
			if table < 4 {
				return append(list, of.CT{Zone: 1, Recirc: true, Table: table + 1})
			}
			return nil
		default:
			return append(list, of.MoveBits(of.RegBits(0, 0, 2), of.RegBits(2, 4, 2)), of.GotoTable(table+1))
		}
	}
	id := uint32(1)
	for table := range uint8(5) {
		for priority := uint16(10); priority < 16; priority++ {
			if r.IntN(3) == 0 {
				clauses := [][]of.Match{
					{of.NewMatch(condition(0)), of.NewMatch(condition(0))},
					{of.NewMatch(condition(1)), of.NewMatch(condition(1))},
					{of.NewMatch(of.IPv4(), port())},
				}
				for k, list := range clauses {
					for _, m := range list {
						out = append(out, flow(table, priority, m, of.Conjunction{ID: id, Clause: uint8(k), Clauses: 3}))
					}
				}
				out = append(out, flow(table, priority, of.NewMatch(of.ConjID(id), of.IPv4()), steps(table)...))
				id++
				continue
			}
			fields := []of.Field{of.IPv4(), condition(r.IntN(2))}
			switch r.IntN(4) {
			case 0:
				fields = append(fields, port())
			case 1:
				fields = append(fields, of.Reg(r.IntN(3), uint32(r.IntN(4)), 3))
			case 2:
				fields = append(fields, of.CtState(of.CtTrk|of.CtEst, of.CtTrk|of.CtEst|of.CtRpl))
			}
			out = append(out, flow(table, priority, of.NewMatch(fields...), steps(table)...))
		}
		out = append(out, flow(table, 0, of.NewMatch(of.IPv4()), of.GotoTable(table+1)))
	}
	// A clause that equals another one takes both conjunctions' places: keep the
	// last, as the switch does.
	return out
}

func randomPacket(r *rand.Rand) bridge.Packet {
	return tcp(uint32(1+r.IntN(3)), randomHosts[r.IntN(len(randomHosts))], randomHosts[r.IntN(len(randomHosts))], 5, randomPorts[r.IntN(3)], bridge.TCPSyn)
}

// tracker are flows that send every IP packet through the tracker, as a
// pipeline does, and report what it found.
func tracker(nat of.NAT) []of.Flow {
	report := of.Controller{ControllerID: logID}
	commit := of.CT{Commit: true, Zone: 1, NAT: nat, Recirc: true, Table: 2, Exec: []of.Action{
		of.SetCtMark(1, 3), of.SetReg(0, 0, 0), of.MoveBits(of.RegBits(5, 0, 32), of.Bits{Field: of.FieldCTLabel, Offset: 32, Len: 32})}}
	commit.Exec = slices.Delete(commit.Exec, 1, 2)
	var out []of.Flow
	for _, family := range []of.Field{of.IPv4(), of.IPv6()} {
		out = append(out,
			flow(0, 1, of.NewMatch(family), of.SetReg(5, 0xbeef, 0xffffffff), of.CT{Zone: 1, NAT: of.NAT{Kind: of.NATApply}, Recirc: true, Table: 1}),
			flow(1, 1, of.NewMatch(family), report))
	}
	return append(out,
		flow(1, 3, of.NewMatch(of.IPv4(), of.CtState(of.CtTrk|of.CtNew, of.CtTrk|of.CtNew|of.CtInv)), report, commit),
		flow(2, 1, of.NewMatch(), report))
}

// TestTrackersAgree sends the same packets through both and compares what each
// stage reported of them.
func TestTrackersAgree(t *testing.T) {
	icmp := func(typ uint8, src, dst string) bridge.Packet {
		return bridge.Packet{InPort: 1, EthSrc: macA, EthDst: macB, EthType: of.EtherIPv4, IPSrc: addrOf(src), IPDst: addrOf(dst), IPProto: of.ProtoICMP, TTL: 64, ICMPType: typ, ICMPID: 7}
	}
	refused := icmp(3, "10.0.0.2", "10.0.0.1")
	inner := udp(0, "10.0.0.1", "10.0.0.2", 5000, 53)
	inner.InPort, inner.EthSrc, inner.EthDst = 0, [6]byte{}, [6]byte{}
	refused.ICMPCode, refused.ICMPID, refused.Inner = 3, 0, &inner
	about := refused // An SCTP packet.
	innerSCTP := inner
	innerSCTP.IPProto = of.ProtoSCTP
	about.Inner, about.ICMPCode = &innerSCTP, 10
	sctp := func(sport, dport uint16) bridge.Packet {
		p := udp(1, "10.0.0.1", "10.0.0.2", sport, dport)
		p.IPProto = of.ProtoSCTP
		return p
	}
	reverse := func(p bridge.Packet, dst string) bridge.Packet {
		p.InPort, p.IPSrc, p.IPDst, p.SrcPort, p.DstPort = 2, p.IPDst, addrOf(dst), p.DstPort, p.SrcPort
		return p
	}
	const syn, synAck, ack = bridge.TCPSyn, bridge.TCPSyn | bridge.TCPAck, bridge.TCPAck
	dnat := of.NAT{Kind: of.NATDst, MinAddr: addrOf("10.0.0.9"), MinPort: 8080}
	snat := of.NAT{Kind: of.NATSrc, MinAddr: addrOf("10.0.0.250")}
	cases := map[string]struct {
		nat     of.NAT
		packets []bridge.Packet
	}{
		"tcp handshake":      {packets: []bridge.Packet{tcp(1, "10.0.0.1", "10.0.0.2", 4000, 80, syn), tcp(2, "10.0.0.2", "10.0.0.1", 80, 4000, synAck), tcp(1, "10.0.0.1", "10.0.0.2", 4000, 80, ack)}},
		"tcp syn again":      {packets: []bridge.Packet{tcp(1, "10.0.0.1", "10.0.0.2", 4001, 80, syn), tcp(1, "10.0.0.1", "10.0.0.2", 4001, 80, syn)}},
		"tcp ack unanswered": {packets: []bridge.Packet{tcp(1, "10.0.0.1", "10.0.0.2", 4002, 80, syn), tcp(1, "10.0.0.1", "10.0.0.2", 4002, 80, ack)}},
		"tcp mid-stream":     {packets: []bridge.Packet{tcp(1, "10.0.0.1", "10.0.0.2", 4003, 80, ack), tcp(2, "10.0.0.2", "10.0.0.1", 80, 4003, ack)}},
		"tcp syn-ack first":  {packets: []bridge.Packet{tcp(1, "10.0.0.1", "10.0.0.2", 4004, 80, synAck)}},
		"tcp bad flags":      {packets: []bridge.Packet{tcp(1, "10.0.0.1", "10.0.0.2", 4005, 80, 0), tcp(1, "10.0.0.1", "10.0.0.2", 4006, 80, bridge.TCPFin)}},
		"udp and error":      {packets: []bridge.Packet{udp(1, "10.0.0.1", "10.0.0.2", 5000, 53), udp(1, "10.0.0.1", "10.0.0.2", 5000, 53), refused, udp(2, "10.0.0.2", "10.0.0.1", 53, 5000), udp(1, "10.0.0.1", "10.0.0.2", 5000, 53)}},
		"error of nothing":   {packets: []bridge.Packet{refused}},
		"ping":               {packets: []bridge.Packet{icmp(8, "10.0.0.1", "10.0.0.2"), icmp(0, "10.0.0.2", "10.0.0.1"), icmp(8, "10.0.0.1", "10.0.0.2")}},
		"pong first":         {packets: []bridge.Packet{icmp(0, "10.0.0.1", "10.0.0.2")}},
		"sctp and error":     {packets: []bridge.Packet{sctp(5000, 53), about}},
		"error of no sctp":   {packets: []bridge.Packet{udp(1, "10.0.0.1", "10.0.0.2", 5000, 53), about}},
		"sctp":               {packets: []bridge.Packet{sctp(1, 2), sctp(3, 4)}},
		"dnat":               {nat: dnat, packets: []bridge.Packet{tcp(1, "10.0.0.1", "10.96.0.1", 4000, 80, syn), tcp(2, "10.0.0.9", "10.0.0.1", 8080, 4000, synAck), tcp(1, "10.0.0.1", "10.96.0.1", 4000, 80, ack)}},
		"snat":               {nat: snat, packets: []bridge.Packet{udp(1, "10.0.0.1", "10.0.0.2", 4000, 53), udp(2, "10.0.0.2", "10.0.0.250", 53, 4000), udp(1, "10.0.0.1", "10.0.0.2", 4000, 53)}},
		"snat of sctp":       {nat: snat, packets: []bridge.Packet{sctp(4000, 53), reverse(sctp(4000, 53), "10.0.0.250")}},
		"ipv6":               {packets: []bridge.Packet{udp(1, "fd00::1", "fd00::2", 4000, 53), udp(2, "fd00::2", "fd00::1", 53, 4000)}},
	}
	real, fake := newReal(t), newFake(t)
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var got [2]string
			for i, s := range []*subject{real, fake} {
				want := bridge.NewContent()
				for _, f := range tracker(c.nat) {
					want.Flows[f.Key()] = f
				}
				s.must(s.Apply(s.ctx, bridge.Diff(want, s.read())))
				for _, a := range []string{"10.0.0.1", "10.0.0.2", "fd00::1"} {
					s.must(s.FlushConntrack(s.ctx, bridge.Connections{Addr: addrOf(a), Zone: 1}))
				}
				for _, p := range c.packets {
					s.send(p)
					got[i] += p.String() + "\n" + s.reports()
				}
			}
			if got[0] != got[1] {
				t.Errorf("switch:\n%s\nfake:\n%s", got[0], got[1])
			}
		})
	}
}

// reports are the packet-ins until now, as text.
func (s *subject) reports() string {
	s.t.Helper()
	// One more packet that no tracker sees, and that comes after all others.
	fence := bridge.Packet{InPort: 3, EthType: of.EtherARP, ARPOp: 1, ARPSPA: addrOf("10.0.0.1"), ARPTPA: addrOf("10.0.0.2")}
	s.put(flow(0, 9, of.NewMatch(of.ARP()), of.Controller{ControllerID: logID}))
	s.send(fence)
	text := ""
	for {
		in := s.next(logID)
		p, err := bridge.ParseFrame(in.Packet)
		s.must(err)
		if p.EthType == of.EtherARP {
			return text
		}
		src, dst := in.Metadata.CtTuple()
		text += fmt.Sprintf("  table %d: %s ct_state=%s mark=%#x label=%x tuple=%s-%s\n", in.Table, p.String(),
			stateWords(in.Metadata.CtState()), in.Metadata.CtMark(), in.Metadata.CtLabel(), src, dst)
	}
}

// One connection is forgotten, and others between the same two are not.
func TestFlushedConnectionIsOne(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		s.put(tracker(of.NAT{})...)
		echo := func(port uint32, typ uint8, from, to string, id uint16) bridge.Packet {
			return bridge.Packet{InPort: port, EthSrc: macA, EthDst: macB, EthType: of.EtherIPv4, IPSrc: addrOf(from), IPDst: addrOf(to), IPProto: of.ProtoICMP, TTL: 64, ICMPType: typ, ICMPID: id}
		}
		for _, test := range []struct {
			forget        bridge.Connections
			packet, other bridge.Packet
		}{
			{bridge.Connections{Addr: addrOf("10.0.0.1"), Peer: addrOf("10.0.0.2"), Zone: 1, Proto: of.ProtoUDP, SrcPort: 1, DstPort: 53},
				udp(1, "10.0.0.1", "10.0.0.2", 1, 53), udp(1, "10.0.0.1", "10.0.0.2", 2, 53)},
			{bridge.Connections{Addr: addrOf("10.0.0.1"), Peer: addrOf("10.0.0.2"), Zone: 1, Proto: of.ProtoICMP, SrcPort: 7},
				echo(1, 8, "10.0.0.1", "10.0.0.2", 7), echo(1, 8, "10.0.0.1", "10.0.0.2", 8)},
		} {
			for _, n := range []uint16{1, 2} {
				s.send(udp(1, "10.0.0.1", "10.0.0.2", n, 53))
				s.send(echo(1, 8, "10.0.0.1", "10.0.0.2", n+6))
				s.send(udp(2, "10.0.0.2", "10.0.0.1", 53, n))
				s.send(echo(2, 0, "10.0.0.2", "10.0.0.1", n+6))
				s.reports() // Few wait at a time.
			}
			s.must(s.FlushConntrack(s.ctx, test.forget))
			s.send(test.packet)
			if state := s.next(logID).Metadata.CtState(); state&of.CtEst != 0 {
				t.Errorf("after flushing %s it is %s", test.forget, stateWords(state))
			}
			s.reports()
			s.send(test.other)
			if state := s.next(logID).Metadata.CtState(); state&of.CtEst == 0 {
				t.Errorf("after flushing %s another is %s", test.forget, stateWords(state))
			}
			s.reports()
		}
	})
}

func TestFlushedConnectionsAreForgotten(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		s.put(tracker(of.NAT{})...)
		for _, flush := range []struct{ other, of bridge.Connections }{
			{bridge.Connections{Addr: addrOf("10.0.0.1"), Zone: 2}, bridge.Connections{Addr: addrOf("10.0.0.1"), Zone: 1}},
			{bridge.Connections{Addr: addrOf("10.0.0.2"), Zone: 2}, bridge.Connections{Addr: addrOf("10.0.0.2"), Zone: 1}},
			{bridge.Connections{Addr: addrOf("10.0.0.1"), AnyZone: true, Proto: of.ProtoSCTP}, bridge.Connections{Addr: addrOf("10.0.0.1"), AnyZone: true, Proto: of.ProtoUDP}},
		} {
			s.send(udp(1, "10.0.0.1", "10.0.0.2", 1, 53))
			s.send(udp(1, "10.0.0.3", "10.0.0.4", 1, 53))
			s.reports()
			s.must(s.FlushConntrack(s.ctx, flush.other))
			s.must(s.FlushConntrack(s.ctx, flush.of))
			s.send(udp(2, "10.0.0.2", "10.0.0.1", 53, 1))
			if state := s.next(logID).Metadata.CtState(); state&of.CtNew == 0 {
				t.Errorf("after flushing %s one of them is %s", flush.of, stateWords(state))
			}
			s.reports()
			s.send(udp(2, "10.0.0.4", "10.0.0.3", 53, 1))
			if state := s.next(logID).Metadata.CtState(); state&of.CtEst == 0 {
				t.Errorf("after flushing %s another is %s", flush.of, stateWords(state))
			}
			s.reports()
		}
	})
}
