package shim

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/igmp"
)

var someGroup = netip.MustParseAddr("239.1.2.3")

// report is a message of IGMP from a Pod, about a group, as the switch delivers it.
func report(from byte, typ uint8, group netip.Addr) *openflow.PacketIn {
	msg := []byte{typ, 0, 0, 0, 0, 0, 0, 0}
	if at := group.As4(); typ == igmp.ReportV3 {
		msg[7] = 1
		msg = append(msg, 4, 0, 0, 0, at[0], at[1], at[2], at[3])
	} else {
		copy(msg[4:], at[:])
	}
	var n uint32
	for i := 0; i < len(msg); i += 2 {
		n += uint32(binary.BigEndian.Uint16(msg[i:]))
	}
	binary.BigEndian.PutUint16(msg[2:], ^uint16(n>>16+n&0xffff))
	b := append(make([]byte, 12), 8, 0, 0x45, 0, 0, byte(20+len(msg)), 0, 0, 0, 0, 1, 2, 0, 0, 10, 0, 0, from, 224, 0, 0, 22)
	return &openflow.PacketIn{Packet: append(b, msg...), Metadata: openflow.NewMetadata(openflow.InPort(uint32(from)))}
}

// castShim is a shim with two Pods in force, whose turns are taken by hand.
func castShim(t *testing.T) (*Shim, *tap, *world) {
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	s.bridge = dataplane{sw}
	ctx := context.Background()
	s.loop.refreshPorts(ctx)
	if r := s.loop.apply(ctx, w.replica, w.cut(objects...)); r.err != nil {
		t.Fatal(r.err)
	}
	return s, sw, w
}

// castTurn has the loop take in messages, and do what it does each second.
func (s *Shim) castTurn(packets ...*openflow.PacketIn) {
	for _, p := range packets {
		s.multicast.packetIn(p, time.Now())
	}
	s.loop.casts.kept = time.Time{}
	s.loop.takeMulticast(context.Background())
}

// reached are the ports that get what the first Pod sends to a group.
func reached(sw *tap, group netip.Addr) []uint32 {
	p := syn(1, 2)
	p.IPDst, p.IPProto = group, openflow.ProtoUDP
	return sw.Send(p).Ports()
}

func (w *world) bring(t *testing.T, s *Shim, objects ...api.Object) {
	t.Helper()
	if r := s.loop.apply(context.Background(), w.replica, w.cut(objects...)); r.err != nil || len(r.problems) > 0 {
		t.Fatal(r.err, r.problems)
	}
}

// igmpRule is a policy with a rule for IGMP that drops, and logs.
func igmpRule(app string, egress bool, typ uint8, group netip.Addr) *api.OrderedPolicy {
	p := rejecting("igmp", app, !egress, egress)
	r := []api.OrderedRule{{Name: "r", Action: api.ActionDrop, Log: true, Traffic: []api.Traffic{{Protocol: api.ProtocolIGMP, IGMPType: &typ, Multicast: group}}}}
	if egress {
		p.Egress = r
	} else {
		p.Ingress = r
	}
	return p
}

func joins(t *testing.T, sw *tap, want ...uint32) {
	t.Helper()
	if got := reached(sw, someGroup); !slices.Equal(got, want) {
		t.Fatalf("what is sent to the group goes to %v, want %v", got, want)
	}
}

// A Pod gets what is sent to a group from when it joins to when it leaves, or says
// no more that it is there, or is gone.
func TestMembersComeAndGo(t *testing.T) {
	s, sw, _ := castShim(t)
	ctx := context.Background()
	s.castTurn()
	joins(t, sw)
	for _, typ := range []uint8{igmp.ReportV1, igmp.ReportV2, igmp.ReportV3} {
		s.castTurn(report(2, typ, someGroup))
		joins(t, sw, 2)
		s.castTurn(report(2, igmp.Leave, someGroup))
		joins(t, sw)
	}
	m, err := igmp.Parse(report(2, igmp.ReportV2, someGroup).Packet)
	must(t, err)
	s.loop.hearIGMP(time.Now().Add(time.Second/2-igmp.Lifetime), castMessage{2, m})
	s.castTurn()
	joins(t, sw, 2)
	s.loop.hearIGMP(time.Now().Add(-igmp.Lifetime), castMessage{2, m})
	s.castTurn()
	joins(t, sw)

	s.castTurn(report(2, igmp.ReportV2, someGroup))
	joins(t, sw, 2)
	must(t, sw.RemovePort(ctx, "if-web"))
	s.loop.refreshPorts(ctx)
	joins(t, sw)
	s.castTurn()
	if all := s.loop.casts.members.All(); len(all) > 0 {
		t.Errorf("members %v", all)
	}
	if got := counterOf(t, s, "weir_shim_igmp_messages_total", map[string]string{"outcome": "taken"}); got != 7 {
		t.Errorf("%v messages are counted", got)
	}
}

// A denied report makes no member, and who is one by a report that is denied now is
// one no more; it is on record.
func TestDeniedReports(t *testing.T) {
	s, sw, w := castShim(t)
	s.castTurn(report(2, igmp.ReportV2, someGroup))
	joins(t, sw, 2)
	w.bring(t, s, igmpRule("web", true, igmp.ReportV2, someGroup))
	joins(t, sw, 2)
	s.castTurn()
	joins(t, sw)
	s.castTurn(report(2, igmp.ReportV2, someGroup))
	joins(t, sw)
	s.castTurn(report(2, igmp.ReportV3, someGroup))
	joins(t, sw, 2)
	if got := counterOf(t, s, "weir_shim_igmp_messages_total", map[string]string{"outcome": "denied"}); got != 1 {
		t.Errorf("%v messages are denied", got)
	}
	s.log.Flush(time.Now().Add(time.Minute))
	events := s.log.Take(10)
	if len(events) != 1 {
		t.Fatalf("events %v", events)
	}
	e := events[0].GetPacket()
	dst, _ := netip.AddrFromSlice(e.GetDestinationIp())
	if e.GetReason() != "rule" || e.GetRule() != "r" || e.GetAppliedTo() != "x/web" || e.GetProtocol() != 2 || e.GetIcmpType() != igmp.ReportV2 || dst != someGroup || e.GetTable() != "AntreaPolicyEgressRule" {
		t.Errorf("event %v", e)
	}
	// A new compiler learns of the members.
	s.loop.config.LocalMAC[5]++
	s.loop.restart(context.Background(), s.loop.config.LocalMAC, 0, [6]byte{})
	joins(t, sw)
	s.castTurn()
	joins(t, sw, 2)
}

// queries are those that were sent, by port.
func queries(sw *tap) map[uint32]int {
	out := make(map[uint32]int)
	for _, s := range sw.Sent() {
		if p, err := bridge.ParseFrame(s.Packet); err == nil && p.IPProto == igmp.Protocol && p.IPDst == igmp.AllHosts {
			for _, port := range s.Walk.Ports() {
				out[port]++
			}
		}
	}
	return out
}

// Every Pod is asked when it comes, and again; one that may not be asked is not.
func TestQueries(t *testing.T) {
	s, sw, w := castShim(t)
	asks := func(one, two int) {
		t.Helper()
		if got := queries(sw); got[1] != one || got[2] != two || len(got) > 2 {
			t.Fatalf("queries %v", got)
		}
	}
	later := func() {
		for port, a := range s.loop.casts.asked {
			a.next = time.Now()
			s.loop.casts.asked[port] = a
		}
		s.castTurn()
	}
	s.castTurn()
	asks(1, 1)
	s.castTurn()
	asks(1, 1)
	if a := s.loop.casts.asked; len(a) != 2 || time.Until(a[s.loop.compiler.CastPorts()[0]].next) > igmp.Startup {
		t.Errorf("asked %v", a)
	}
	w.bring(t, s, igmpRule("web", false, igmp.Query, igmp.AllHosts))
	later()
	asks(2, 1)
	if got := counterOf(t, s, "weir_shim_igmp_queries_total", map[string]string{"outcome": "denied"}); got != 1 {
		t.Errorf("%v are denied", got)
	}
	if a := s.loop.casts.asked; time.Until(a[s.loop.compiler.CastPorts()[0]].next) < igmp.Startup {
		t.Errorf("asked %v", a)
	}
}

// A Pod that says too much is not listened to, and others are.
func TestIGMPFloodIsBounded(t *testing.T) {
	s, sw, _ := castShim(t)
	for range 10 * igmp.MessagesASecond {
		s.multicast.packetIn(report(1, igmp.ReportV3, someGroup), time.Now())
	}
	s.castTurn(report(2, igmp.ReportV2, someGroup), &openflow.PacketIn{Packet: []byte("nothing"), Metadata: openflow.NewMetadata(openflow.InPort(2))})
	joins(t, sw, 2)
	if got := counterOf(t, s, "weir_shim_igmp_messages_total", map[string]string{"outcome": "over-budget"}); got < 8*igmp.MessagesASecond {
		t.Errorf("%v are over the budget", got)
	}
	if got := counterOf(t, s, "weir_shim_igmp_messages_total", map[string]string{"outcome": "unread"}); got != 1 {
		t.Errorf("%v are unread", got)
	}
	for i := range igmp.GroupsOfPort + 1 {
		s.multicast.budget = igmp.Budget{}
		s.castTurn(report(1, igmp.ReportV2, netip.AddrFrom4([4]byte{239, 9, 9, byte(i)})))
	}
	if got := counterOf(t, s, "weir_shim_igmp_messages_total", map[string]string{"outcome": "roomless"}); got != 2 { // It has the first group, too.
		t.Errorf("%v have no room", got)
	}
}
