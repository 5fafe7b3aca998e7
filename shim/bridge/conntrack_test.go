package bridge_test

import (
	"net/netip"
	"testing"

	"github.com/weirnet/weir/shim/bridge"
	of "github.com/weirnet/weir/shim/bridge/openflow"
)

// Of a Service's connections, those that one endpoint answers are forgotten, and
// no others.
func TestFlushedConnectionsOfAnEndpoint(t *testing.T) {
	each(t, func(t *testing.T, s *subject) {
		s.hold(services(4))
		connect := func(client int, port uint16) (bridge.Packet, of.PacketIn) {
			from := netip.AddrFrom4([4]byte{10, 0, 0, byte(client + 1)}).String()
			if port == 80 {
				return s.hop(tcp(1, from, vip, 4000, port, bridge.TCPSyn))
			}
			return s.hop(udp(1, from, vip, 4000, port))
		}
		type key struct {
			client int
			port   uint16
		}
		goes := map[key]netip.Addr{}
		for client := range 16 {
			for _, port := range []uint16{53, 80} {
				got, _ := connect(client, port)
				s.hop(answered(got, 2))
				goes[key{client, port}] = got.IPDst
			}
		}
		gone := goes[key{0, 53}]
		for _, other := range []bridge.Connections{
			{Addr: addrOf(vip), Proto: of.ProtoUDP, DstPort: 54, Zone: 1, Endpoint: gone},
			{Addr: addrOf(vip), Proto: of.ProtoUDP, DstPort: 53, Zone: 3, Endpoint: gone},
			{Addr: addrOf("10.96.0.2"), Proto: of.ProtoUDP, DstPort: 53, Zone: 1, Endpoint: gone},
			{Addr: addrOf(vip), Proto: of.ProtoUDP, DstPort: 53, Zone: 1, Endpoint: addrOf("10.1.0.99")},
		} {
			s.must(s.FlushConntrack(s.ctx, other))
		}
		_, in := connect(0, 53)
		if in.Metadata.CtState()&of.CtEst == 0 {
			t.Fatalf("flushing others', it is %s", stateWords(in.Metadata.CtState()))
		}
		s.must(s.FlushConntrack(s.ctx, bridge.Connections{Addr: addrOf(vip), Proto: of.ProtoUDP, DstPort: 53, Zone: 1, Endpoint: gone}))
		for k, ep := range goes {
			_, in := connect(k.client, k.port)
			if forgotten := in.Metadata.CtState()&of.CtNew != 0; k.port == 53 && forgotten != (ep == gone) {
				t.Errorf("flushing those of %s, one to %s is %s", gone, ep, stateWords(in.Metadata.CtState()))
			} else if k.port == 80 && forgotten {
				t.Errorf("a TCP connection to %s is %s", ep, stateWords(in.Metadata.CtState()))
			}
		}
	})
}
