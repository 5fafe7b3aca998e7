package openflow

import (
	"bytes"
	"net/netip"
	"testing"
)

// seedFlows are flows whose encodings seed the fuzzers.
func seedFlows() []Flow {
	m := NewMatch(InPort(1), IPSrc(prefixOf("10.0.0.0/8")), L4Dst(ProtoTCP, 80, 0xffff), Reg(1, 1, 1), CtState(CtTrk|CtNew, CtTrk|CtNew), CtLabel([16]byte{1}, [16]byte{1}))
	return []Flow{
		{Table: 1, Priority: 2, Match: m, Cookie: 3, Actions: NewActions(SetReg(0, 1, 1), OutputPort(2), OutputRegister(1), GotoTable(4))},
		{Match: NewMatch(), Actions: Drop()},
		{Match: NewMatch(ICMPv6Type(NDSolicit), NDTarget(prefixOf("fd00::/64"))), Actions: NewActions(
			CT{Commit: true, Zone: 1, Recirc: true, Table: 9, NAT: NAT{Kind: NATDst, MinAddr: netip.MustParseAddr("fd00::1"), MinPort: 5, MaxPort: 9}, Exec: []Action{SetCtMark(1, 1), MoveBits(RegBits(5, 0, 32), Bits{FieldCTLabel, 32, 32})}},
			Controller{ControllerID: 1, MaxLen: 100, MeterID: 4, UserData: "abc", Pause: true, Reason: 3}, ToGroup(3), MeterBy(4), Resubmit(5))},
		{Match: NewMatch(IPv6(), L4Dst(ProtoTCP, 80, 0xffff), Exactly(FieldXXReg(2), Ones(5, 100))), Actions: NewActions(
			Set(FieldXXReg(2), Addr(netip.MustParseAddr("fd00::1"))), MoveBits(Bits{FieldCTLabel, 64, 32}, Bits{FieldMetadata, 0, 32}), learn())},
		{Match: NewMatch(IPv4()), Actions: NewActions(Conjunction{ID: 1, Clause: 1, Clauses: 3}, Conjunction{ID: 2, Clause: 0, Clauses: 2})},
	}
}

// learn is a Learn with each kind of spec.
func learn() Learn {
	return Learn{Table: 9, Priority: 7, IdleTimeout: 10800, HardTimeout: 3, Cookie: 0x5745, Limit: 4, Specs: []LearnSpec{
		LearnMatchValue(FieldEthType, Uint(EtherIPv6)), LearnMatch(FieldIPv6Src), LearnMatchValue(FieldIPProto, Uint(ProtoTCP)), LearnMatch(FieldTCPDst),
		{From: RegBits(1, 0, 16), To: RegBits(2, 8, 16)}, {Value: Uint(5), To: RegBits(0, 0, 3)},
		LearnLoad(WholeField(FieldXXReg(2)), WholeField(FieldXXReg(2))), LearnLoadValue(Uint(1), RegBits(0, 20, 1)),
	}}
}

// stats is a flow as the switch would report it.
func stats(f *Flow) []byte {
	b := make([]byte, 24)
	b[4] = f.Table
	b[6], b[7] = byte(f.Priority>>8), byte(f.Priority)
	b[23] = byte(f.Cookie)
	b = appendMatch(b, f.Match)
	b = append(b, 0, 0, 0, 16, 0x80, 0x02, oxsPackets<<1, 8, 0, 0, 0, 0, 0, 0, 0, 5)
	b = f.Actions.appendInstructions(b)
	b[0], b[1] = byte(len(b)>>8), byte(len(b))
	return b
}

func TestFlowGoesThroughTheCodec(t *testing.T) {
	for _, want := range seedFlows() {
		var got Flow
		if err := DecodeFlowStats(stats(&want), func(f Flow) { got = f }); err != nil {
			t.Fatal(err)
		}
		if !got.Same(want) || got.Packets != 5 {
			t.Errorf("decoded %v with %d packets\n   from %v", got, got.Packets, want)
		}
		if again := NewActions(got.Actions.List()...); again != want.Actions {
			t.Errorf("actions %v rebuilt as %v", want.Actions, again)
		}
	}
}

func FuzzDecodeFlowStats(f *testing.F) {
	var all []byte
	for _, flow := range seedFlows() {
		f.Add(stats(&flow))
		all = append(all, stats(&flow)...)
	}
	f.Add(all)
	f.Add([]byte{0, 24})
	f.Fuzz(func(t *testing.T, b []byte) {
		flows := 0
		err := DecodeFlowStats(b, func(flow Flow) {
			flows++
			_ = flow.String()
			if again, err := decodeMatch(flow.Match.oxm); err != nil || again != flow.Match {
				t.Errorf("match %q is not canonical: %q, %v", flow.Match, again, err)
			}
			var out []byte
			for _, a := range flow.Actions.List() {
				out = a.append(out)
			}
			if string(out) != flow.Actions.steps {
				t.Errorf("actions %x decode to what encodes as %x", flow.Actions.steps, out)
			}
			if flow.Fits() {
				AppendFlowAdd(nil, 1, &flow)
			}
		})
		if err == nil && flows > len(b)/24 {
			t.Errorf("%d flows in %d bytes", flows, len(b))
		}
	})
}

func FuzzDecodePacketIn(f *testing.F) {
	head := []byte{0, 0, 0x23, 0x20, 0, 0, 0, nxPacketIn2}
	b := appendProp(append([]byte(nil), head...), pinPacket, []byte("frame of a packet"))
	b = appendProp(b, pinTable, []byte{7, 0, 0, 0})
	b = appendProp(b, pinCookie, []byte{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	b = appendProp(b, pinReason, []byte{1, 0, 0, 0})
	b = appendProp(b, pinMetadata, []byte(NewMatch(InPort(1), Reg(3, 4, 0xffffffff)).oxm))
	b = appendProp(b, pinUserData, []byte("user"))
	f.Add(b)
	f.Add(appendProp(b, pinContinuation, []byte("private")))
	f.Add(head)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodePacketIn(b)
		if err != nil {
			return
		}
		if len(p.Packet)+len(p.UserData) > len(b) {
			t.Errorf("packet and user data of %d bytes in %d", len(p.Packet)+len(p.UserData), len(b))
		}
		p.Metadata.CtTuple()
		p.Metadata.Reg(3)
		if len(b) < 1<<15 {
			AppendResume(nil, 1, &p)
		}
	})
}

func FuzzDecodeReplies(f *testing.F) {
	group := Group{ID: 1, Type: GroupSelect, Buckets: []Bucket{{5, NewActions(OutputPort(1))}, {6, Drop()}}}
	var buckets []byte
	for i := range group.Buckets {
		buckets = appendBucket(buckets, uint32(i), group.Type, &group.Buckets[i])
	}
	desc := append([]byte{0, byte(16 + len(buckets)), byte(group.Type), 0, 0, 0, 0, 1, 0, byte(len(buckets)), 0, 0, 0, 0, 0, 0}, buckets...)
	if got, err := DecodeGroupDesc(desc); err != nil || len(got) != 1 || !got[0].Same(group) {
		f.Fatalf("group decoded as %v, %v", got, err)
	}
	f.Add(desc)
	for _, hash := range []GroupHash{HashDatapath, HashFields} {
		hashed := hash.appendProp(bytes.Clone(desc))
		hashed[1] = byte(len(hashed))
		if got, err := DecodeGroupDesc(hashed); err != nil || len(got) != 1 || got[0].Hash != hash {
			f.Fatalf("group by %s decoded as %v, %v", hash, got, err)
		}
		f.Add(hashed)
	}
	f.Add(AppendMeterPut(nil, 1, Meter{1, 2, 3}, false)[HeaderLen:])
	f.Add(make([]byte, 48))
	f.Add([]byte{0, 4, 0, 9, 1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, g := range must(DecodeGroupDesc(b)) {
			_ = g.String()
			if g.Fits() && !strange(g) {
				AppendGroupPut(nil, 1, &g)
			}
		}
		for _, m := range must(DecodeMeterConfig(b)) {
			_ = m.String()
		}
		must(DecodeMeterStats(b))
		must(DecodeTableStats(b))
		must(DecodeFeatures(b))
		must(DecodePart(b))
		if e, err := DecodeError(b); err == nil && e.Error() == "" {
			t.Error("an error without words")
		}
		_, _, _ = DecodeBundleControl(b)
		r := bytes.NewReader(b)
		for {
			m, err := ReadMessage(r, make([]byte, 16))
			if err != nil {
				break
			}
			if len(m.Body) > len(b) {
				t.Errorf("body of %d bytes in %d", len(m.Body), len(b))
			}
		}
	})
}

func must[T any](v T, _ error) T { return v }

func strange(g Group) bool { return len(g.Buckets) > 1000 }
