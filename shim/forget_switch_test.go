package shim

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/bridge/ovstest"
	"github.com/weirnet/weir/shim/pipeline"
)

// Of an address that departs, Open vSwitch forgets the connections of all forms:
// of either direction, of either end of a translation, of all zones and protocols
// that there are. Those of others stay.
func TestAllFormsOfConnectionsAreForgotten(t *testing.T) {
	ovstest.Require(t)
	n := newBenchNode(t, 1)
	at := netip.MustParseAddr
	const udp, tcp, icmp, icmp6, sctp = openflow.ProtoUDP, openflow.ProtoTCP, openflow.ProtoICMP, openflow.ProtoICMPv6, openflow.ProtoSCTP
	names := map[uint8]string{udp: "udp", tcp: "tcp", icmp: "icmp", icmp6: "icmpv6", sctp: "sctp"}
	for _, gone := range []netip.Addr{at("10.7.0.1"), at("fd07::1")} {
		other, third, vip, hairpin := at("10.7.0.2"), at("10.7.0.3"), at("10.96.0.1"), at("169.254.7.7")
		echo := uint8(icmp)
		if gone.Is6() {
			other, third, vip, hairpin, echo = at("fd07::2"), at("fd07::3"), at("fd96::1"), at("fd16::7"), icmp6
		}
		for i, form := range []struct {
			name     string
			src, dst netip.Addr
			proto    uint8
			zone     uint16
			nat      openflow.NATKind
			to       netip.Addr
			stays    bool
		}{
			{name: "original source", src: gone, dst: other, proto: udp, zone: pipeline.Zone},
			{name: "original destination", src: other, dst: gone, proto: tcp, zone: pipeline.Zone},
			{name: "reply's source", src: other, dst: vip, proto: udp, zone: pipeline.Zone, nat: openflow.NATDst, to: gone},
			{name: "reply's destination", src: other, dst: third, proto: udp, zone: pipeline.Zone, nat: openflow.NATSrc, to: gone},
			{name: "echo", src: gone, dst: other, proto: echo, zone: pipeline.Zone, stays: echo == icmp6}, // See Bridge.FlushConntrack.
			{name: "echoed", src: other, dst: gone, proto: echo, zone: pipeline.Zone, stays: echo == icmp6},
			{name: "itself by way of a Service", src: gone, dst: gone, proto: tcp, zone: pipeline.HairpinZone, nat: openflow.NATSrc, to: hairpin},
			{name: "SCTP, from", src: gone, dst: other, proto: sctp, zone: 80},
			{name: "SCTP, to", src: other, dst: gone, proto: sctp, zone: 9999},
			{name: "others'", src: other, dst: third, proto: udp, zone: pipeline.Zone, stays: true},
			{name: "others', translated", src: other, dst: vip, proto: tcp, zone: pipeline.Zone, nat: openflow.NATDst, to: third, stays: true},
			{name: "others', itself", src: other, dst: other, proto: tcp, zone: pipeline.HairpinZone, nat: openflow.NATSrc, to: hairpin, stays: true},
			{name: "others', SCTP", src: other, dst: third, proto: sctp, zone: 80, stays: true},
			{name: "others', echo", src: third, dst: other, proto: echo, zone: pipeline.Zone, stays: true},
		} {
			p := bridge.Packet{EthSrc: benchMAC(0), EthDst: benchMAC(1), EthType: openflow.EtherIPv4, IPSrc: form.src, IPDst: form.dst, IPProto: form.proto, TTL: 64, SrcPort: uint16(4000 + i), DstPort: 80}
			if gone.Is6() {
				p.EthType = openflow.EtherIPv6
			}
			switch form.proto {
			case tcp:
				p.TCPFlags = bridge.TCPSyn
			case icmp:
				p.ICMPType = 8
			case icmp6:
				p.ICMPType = 128
			}
			ct := openflow.CT{Commit: true, Zone: form.zone, NAT: openflow.NAT{Kind: form.nat, MinAddr: form.to, MaxAddr: form.to}}
			must(t, n.sw.PacketOut(t.Context(), openflow.PacketOut{Actions: openflow.NewActions(ct), Packet: p.Frame()}))
			entry := func() bool {
				out, err := n.in.Appctl(t.Context(), "dpctl/dump-conntrack")
				must(t, err)
				return slices.ContainsFunc(strings.Split(out, "\n"), func(line string) bool {
					return strings.HasPrefix(line, names[form.proto]+",") && strings.Contains(line, "orig=(src="+form.src.String()+",dst="+form.dst.String()+",") && (form.nat == openflow.NATNone || strings.Contains(line, form.to.String()))
				})
			}
			for end := time.Now().Add(10 * time.Second); !entry(); {
				if time.Now().After(end) {
					t.Fatalf("%s of %s: there is no such connection to begin with", form.name, gone)
				}
			}
			done := make(chan error)
			n.shim.turns <- func(ctx context.Context) { done <- n.shim.loop.forget(ctx, gone) }
			if err := <-done; err != nil {
				t.Fatalf("%s of %s: %v", form.name, gone, err)
			}
			if is := entry(); is != form.stays {
				t.Errorf("%s of %s: it is there %t, want %t", form.name, gone, is, form.stays)
			}
		}
	}
}
