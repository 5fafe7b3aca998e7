package openflow

import (
	"net/netip"
	"strings"
	"testing"
)

func prefixOf(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestMatchIsCanonical(t *testing.T) {
	same := map[string][2]Match{
		"order of conditions":   {NewMatch(InPort(1), IPSrc(prefixOf("10.0.0.0/8"))), NewMatch(IPSrc(prefixOf("10.0.0.0/8")), InPort(1))},
		"implied prerequisites": {NewMatch(ICMPType(8)), NewMatch(IPv4(), IPProto(ProtoICMP), ICMPType(8))},
		"host bits":             {NewMatch(IPSrc(prefixOf("10.1.2.3/8"))), NewMatch(IPSrc(prefixOf("10.0.0.0/8")))},
		"bits beyond the mask":  {NewMatch(Reg(0, 0xff, 0x0f)), NewMatch(Reg(0, 0x0f, 0x0f))},
		"no bits at all":        {NewMatch(IPSrc(prefixOf("0.0.0.0/0"))), NewMatch(IPv4())},
		"said twice":            {NewMatch(Reg(0, 1, 3), Reg(0, 4, 0xc)), NewMatch(Reg(0, 5, 0xf))},
		"wide register":         {NewMatch(Masked(FieldXXReg(2), Ones(0, 120), Ones(64, 64))), NewMatch(Reg(8, 0x00ffffff, 0xffffffff), Reg(9, 0xffffffff, 0xffffffff))},
		"ports of none":         {NewMatch(IPv4(), L4Dst(ProtoTCP, 0, 0)), NewMatch(IPv4(), IPProto(ProtoTCP))},
	}
	for name, pair := range same {
		if pair[0] != pair[1] {
			t.Errorf("%s: %q and %q differ", name, pair[0], pair[1])
		}
	}
	if NewMatch(IPv4()) == NewMatch(IPv6()) || NewMatch(Reg(0, 0, 1)) == NewMatch() {
		t.Error("different matches are equal")
	}
}

func TestMatchText(t *testing.T) {
	for want, m := range map[string]Match{
		"":                                 NewMatch(),
		"tcp,nw_src=10.0.0.0/8,tcp_dst=80": NewMatch(IPSrc(prefixOf("10.0.0.0/8")), L4Dst(ProtoTCP, 80, 0xffff)),
		"tcp6,tcp_dst=0x1000/0xf000":       NewMatch(IPv6(), L4Dst(ProtoTCP, 0x1000, 0xf000)),
		"icmp6,icmpv6_type=135,icmpv6_code=0,nd_target=fd00::1": NewMatch(ICMPv6Type(NDSolicit), NDTarget(prefixOf("fd00::1/128"))),
		"arp,arp_spa=10.0.0.1,reg0=0x1/0xf":                     NewMatch(ARPSpa(prefixOf("10.0.0.1/32")), Reg(0, 1, 15)),
		"in_port=LOCAL,dl_type=0x88cc":                          NewMatch(InPort(PortLocal), EthType(0x88cc)),
		"ct_state=+new-inv+trk,ct_mark=0x0/0x1":                 NewMatch(CtState(CtNew|CtTrk, CtNew|CtInv|CtTrk), CtMark(0, 1)),
		"ip,nw_proto=47,conj_id=9":                              NewMatch(IPv4(), IPProto(47), ConjID(9)),
	} {
		if m.String() != want {
			t.Errorf("match %q, want %q", m, want)
		}
	}
}

func TestMatchRefuses(t *testing.T) {
	for want, list := range map[string][]Field{
		"contradictory conditions on in_port": {InPort(1), InPort(2)},
		"which another condition excludes":    {IPv6(), IPSrc(prefixOf("10.0.0.0/8"))},
		"tcp_dst needs nw_proto=6":            {IPv4(), L4Dst(ProtoTCP, 1, 0xffff), IPProto(ProtoUDP)},
		"needs a family":                      {L4Dst(ProtoTCP, 1, 0xffff)},
		"nd_target needs ICMPv6 type":         {NDTarget(prefixOf("fd00::1/128"))},
		"cannot be masked":                    {Masked(FieldInPort, Uint(1), Uint(1))},
		"exceeds 8 bits":                      {Exactly(FieldIPProto, Uint(256))},
		"ct_nw_proto needs a ct_state":        {IPv4(), Exactly(FieldCTProto, Uint(6))},
		"unknown field":                       {{ID: 200}},
	} {
		if _, err := MakeMatch(list...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("NewMatch took a contradiction")
		}
	}()
	NewMatch(InPort(1), InPort(2))
}

func TestMatchFieldsGoBack(t *testing.T) {
	m := NewMatch(InPort(3), IPDst(prefixOf("fd00::/8")), L4Dst(ProtoUDP, 53, 0xffff), CtLabel([16]byte{1, 15: 2}, [16]byte{255, 15: 255}))
	if again := NewMatch(m.Fields()...); again != m {
		t.Errorf("match %q rebuilt as %q", m, again)
	}
	f, ok := m.Field(FieldIPv6Dst)
	if p, is := f.Prefix(); !ok || !is || p != prefixOf("fd00::/8") {
		t.Errorf("destination %v (%v)", p, ok)
	}
	if _, ok := m.Field(FieldEthSrc); ok || m.Foreign() || m.IsAny() {
		t.Error("the match has what nobody put there")
	}
	if m.With(Reg(1, 1, 1)) != NewMatch(append(m.Fields(), Reg(1, 1, 1))...) {
		t.Error("With differs from NewMatch")
	}
}

func TestForeignFieldsAreKept(t *testing.T) {
	raw := "\x00\x01\xfe\x02\xab\xcd" + NewMatch(InPort(1)).oxm
	m, err := decodeMatch(raw)
	if err != nil || !m.Foreign() || len(m.Fields()) != 1 || m == NewMatch(InPort(1)) {
		t.Errorf("match %q, %v", m, err)
	}
}

func TestValueArithmetic(t *testing.T) {
	for n := -127; n < 128; n++ {
		one := Ones(63, 2).Shift(n)
		want := Value{}
		for _, bit := range []int{63 + n, 64 + n} {
			if bit >= 0 && bit < 128 {
				want = want.Or(Ones(bit, 1))
			}
		}
		if one != want {
			t.Errorf("shift by %d gives %x, want %x", n, one, want)
		}
	}
	if Uint(0x1234).Uint64() != 0x1234 || Addr(netip.MustParseAddr("10.0.0.1")).IPv4().String() != "10.0.0.1" {
		t.Error("values do not go back")
	}
}

func TestOnes(t *testing.T) {
	for offset := range 130 {
		for n := range 130 {
			var want Value
			for bit := offset; bit < min(offset+n, 128); bit++ {
				want[15-bit/8] |= 1 << (bit % 8)
			}
			if got := Ones(offset, n); got != want {
				t.Fatalf("Ones(%d, %d) = %x, want %x", offset, n, got, want)
			}
		}
	}
}
