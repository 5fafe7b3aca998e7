package packetlog

import (
	"net/netip"
	"testing"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

func TestParseForged(t *testing.T) {
	mac, claimed := [6]byte{2, 0, 0, 0, 0, 9}, [6]byte{2, 0, 0, 0, 0, 8}
	a, b, target := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("ff02::1"), netip.MustParseAddr("fd00::7")
	nd := func(typ uint8, ll bool) bridge.Packet {
		p := bridge.Packet{EthSrc: mac, EthType: openflow.EtherIPv6, IPSrc: a, IPDst: b, IPProto: openflow.ProtoICMPv6, TTL: 255, ICMPType: typ, NDTarget: target}
		switch {
		case ll && typ == openflow.NDSolicit:
			p.NDSLL = claimed
		case ll:
			p.NDTLL = claimed
		}
		return p
	}
	for _, test := range []struct {
		name   string
		packet bridge.Packet
		want   Forged
		src    string // Empty: none.
	}{
		{"IPv4", bridge.Packet{EthSrc: mac, EthType: openflow.EtherIPv4, IPSrc: netip.MustParseAddr("10.0.0.1"), IPDst: netip.MustParseAddr("10.0.0.2"), IPProto: 17, TTL: 64},
			Forged{SourceMAC: mac}, "10.0.0.1"},
		{"ARP", bridge.Packet{EthSrc: mac, EthType: openflow.EtherARP, ARPOp: 2, ARPSHA: claimed, ARPSPA: netip.MustParseAddr("10.0.0.7"), ARPTPA: netip.MustParseAddr("10.0.0.1")},
			Forged{SourceMAC: mac, EtherType: etherARP, ClaimedMAC: claimed}, "10.0.0.7"},
		{"solicitation", nd(openflow.NDSolicit, true), Forged{SourceMAC: mac, ClaimedMAC: claimed, Target: target}, "fd00::1"},
		{"advertisement", nd(openflow.NDAdvert, true), Forged{SourceMAC: mac, ClaimedMAC: claimed, Target: target}, "fd00::1"},
		{"advertisement without option", nd(openflow.NDAdvert, false), Forged{SourceMAC: mac, Target: target}, "fd00::1"},
		{"neither", bridge.Packet{EthSrc: mac, EthType: 0x88cc}, Forged{SourceMAC: mac, EtherType: 0x88cc}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			frame := test.packet.Frame()
			p, err := ParseForged(frame)
			src := ""
			if p.Src.IsValid() {
				src = p.Src.String()
			}
			if err != nil || p.Forged != test.want || src != test.src {
				t.Errorf("got  %+v of %q, %v\nwant %+v of %q", p.Forged, src, err, test.want, test.src)
			}
			for n := range frame { // However much of it is missing.
				if cut, err := ParseForged(frame[:n]); (err == nil) != (n >= 14) || err == nil && cut.Forged.SourceMAC != mac {
					t.Fatalf("of %d bytes: %+v, %v", n, cut, err)
				}
			}
		})
	}
}
