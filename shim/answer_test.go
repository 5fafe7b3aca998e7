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
	"github.com/weirnet/weir/shim/pipeline"
)

func (b *tap) PacketOut(ctx context.Context, p openflow.PacketOut) error {
	defer b.signal()
	return b.Fake.PacketOut(ctx, p)
}

// rejecting is a policy that rejects what Pods of an app receive or send.
func rejecting(name, app string, in, out bool) *api.OrderedPolicy {
	rules := []api.OrderedRule{{Action: api.ActionReject}}
	p := &api.OrderedPolicy{Kind: api.KindAntreaClusterNetworkPolicy, Name: name, Tier: api.TierApplication, Priority: 1,
		AppliedTo: []api.Target{{PodSelector: &api.Selector{MatchLabels: labels(app)}}}}
	if in {
		p.Ingress = rules
	}
	if out {
		p.Egress = rules
	}
	return p
}

// answering runs the part of the shim that answers, until the test ends.
func answering(t testing.TB, s *Shim, sw *tap) {
	s.bridge = dataplane{sw}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.answer(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

// sent waits until so many answers were sent, and returns the last.
func (b *tap) sent(t testing.TB, n int) bridge.Sent {
	t.Helper()
	b.until(t, "the answer is sent", func() bool { return len(b.Sent()) >= n })
	return b.Sent()[n-1]
}

// rejected are the metric's values, by what became of the answers.
func rejected(t testing.TB, s *Shim) map[string]float64 {
	t.Helper()
	families, err := s.Metrics().Gather()
	must(t, err)
	out := make(map[string]float64)
	for _, f := range families {
		if f.GetName() == "weir_shim_rejected_packets_total" {
			for _, m := range f.GetMetric() {
				out[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	return out
}

// An answer finds the sender wherever it is, in the name of the destination and
// with the addresses that the link has there, and the sender's own rules do not
// judge it; that both Pods reject everything makes nothing of that.
func TestAnswersFindTheSender(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	begin(t, s)
	answering(t, s, sw)
	must(t, apply(t, s, w, w.cut(append(objects, rejecting("shut", "web", true, false), rejecting("mute", "client", true, true))...)))
	gateway, local := [6]byte{2, 0xee}, uint32(openflow.PortLocal)
	remote := syn(9, 2)
	remote.InPort, remote.EthSrc = local, gateway
	datagram := syn(2, 1)
	datagram.IPProto, datagram.TCPFlags = openflow.ProtoUDP, 0
	for i, tc := range []struct {
		name    string
		packet  bridge.Packet
		port    uint32
		address [6]byte
		proto   uint8
	}{
		{"egress, to the Pod itself", syn(1, 7), 1, mac(1), openflow.ProtoTCP},
		{"ingress, to another node or outside", remote, local, gateway, openflow.ProtoTCP},
		{"ingress, to a Pod beside it", datagram, 2, mac(2), openflow.ProtoICMP},
	} {
		if walk := sw.Send(tc.packet); len(walk.Outputs) != 0 {
			t.Fatalf("%s: the packet itself went to %v", tc.name, walk.Ports())
		}
		walk := sw.sent(t, i+1).Walk
		if !slices.Equal(walk.Ports(), []uint32{tc.port}) || len(walk.PacketIns) != 0 {
			t.Fatalf("%s: the answer went to %v, by tables %v, with %d copies", tc.name, walk.Ports(), walk.Tables(), len(walk.PacketIns))
		}
		got := walk.Outputs[0].Packet
		if got.EthDst != tc.address || got.IPSrc != tc.packet.IPDst || got.IPDst != tc.packet.IPSrc || got.IPProto != tc.proto {
			t.Errorf("%s: the answer is %s", tc.name, got.String())
		}
	}
	if got := rejected(t, s); got[answerSent] < 2 || got[answerNone]+got[answerLost] != 0 {
		t.Errorf("outcomes: %v", got)
	}
}

// Answers wait for nothing that the event loop does.
func TestAnswersDoNotWaitForTheLoop(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	begin(t, s)
	answering(t, s, sw)
	must(t, apply(t, s, w, w.cut(append(objects, rejecting("shut", "web", true, false))...)))
	gate, settled := make(chan struct{}), 0
	sw.look(func() { sw.settle = gate; settled = sw.settles })
	result := make(chan error, 1)
	touched := w.cut(deny("deny", "client"))
	go func() { result <- apply(t, s, w, touched) }()
	sw.until(t, "the loop waits for the switch", func() (yes bool) {
		sw.look(func() { yes = sw.settles > settled })
		return yes
	})
	sw.Send(syn(1, 2))
	sw.sent(t, 1)
	select {
	case err := <-result:
		t.Errorf("the loop did not wait: %v", err)
	default:
	}
	close(gate)
	must(t, <-result)
}

// Every rejected packet is counted by what became of its answer; what is lost of
// them says nothing of the log.
func TestRejectedPacketsAreCounted(t *testing.T) {
	t.Parallel()
	sw, w, _ := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	s.bridge = dataplane{sw}
	ctx := context.Background()
	reset := syn(1, 2)
	reset.TCPFlags = bridge.TCPRst
	in := func(p bridge.Packet) *openflow.PacketIn { return &openflow.PacketIn{Packet: p.Frame()} }
	if got := s.answerTo(ctx, in(syn(1, 2))); got != answerSent {
		t.Errorf("a SYN: %s", got)
	}
	if got := s.answerTo(ctx, in(reset)); got != answerNone {
		t.Errorf("an RST: %s", got)
	}
	sw.Disconnect()
	if got := s.answerTo(ctx, in(syn(1, 2))); got != answerLost {
		t.Errorf("with the switch away: %s", got)
	}

	now := time.Unix(1000, 0)
	meters := func(packets, dropped uint64) {
		now = now.Add(time.Second)
		sw.look(func() {
			sw.meters = []openflow.MeterStats{{ID: pipeline.LogMeter, Packets: 10}, {ID: pipeline.RejectMeter, Packets: packets, Dropped: dropped}}
		})
		s.loop.countLosses(ctx, now)
	}
	meters(10, 4)
	for range 4 { // Seven more that the meter holds back, and 13 of which the switch delivered none.
		meters(30, 11)
	}
	if got := rejected(t, s); got[answerOverRate] != 7 || got[answerLost] != 13 {
		t.Errorf("outcomes: %v", got)
	}
	if events := s.log.Take(10); len(events) != 0 {
		t.Errorf("the log states %v", events)
	}
}

// What was sent to an address that stands for others is answered in its name.
func TestAnswersInTheNameOfTheService(t *testing.T) {
	t.Parallel()
	sw, w, _ := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	s.bridge = dataplane{sw}
	vip := netip.MustParseAddr("10.96.0.1")
	for _, tc := range []struct {
		name  string
		state uint32
		from  netip.AddrPort
	}{
		{"translated", openflow.CtTrk | openflow.CtNew | openflow.CtDNAT, netip.AddrPortFrom(vip, 443)},
		{"of a translated connection, the other way", openflow.CtTrk | openflow.CtEst | openflow.CtRpl | openflow.CtDNAT, netip.MustParseAddrPort("10.0.0.2:80")},
		{"as it was sent", openflow.CtTrk | openflow.CtNew, netip.MustParseAddrPort("10.0.0.2:80")},
	} {
		p := syn(1, 2)
		in := &openflow.PacketIn{Packet: p.Frame(), Metadata: openflow.NewMetadata(openflow.CtState(tc.state, tc.state),
			openflow.Exactly(openflow.FieldCTIPv4Dst, openflow.Addr(vip)), openflow.Exactly(openflow.FieldCTTPDst, openflow.Uint(443)))}
		if got := s.answerTo(context.Background(), in); got != answerSent {
			t.Fatalf("%s: %s", tc.name, got)
		}
		all := sw.Sent()
		frame := all[len(all)-1].Packet
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte(frame[26:])), binary.BigEndian.Uint16(frame[34:]))
		if from != tc.from {
			t.Errorf("%s: answered by %s, want %s", tc.name, from, tc.from)
		}
	}
}
