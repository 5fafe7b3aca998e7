package shim

import (
	"context"
	"net/netip"
	"testing"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

func probeOf(t *testing.T, change func(*policyv1.ProbeRequest)) (*probing, error) {
	t.Helper()
	req := &policyv1.ProbeRequest{Id: 1, Role: policyv1.ProbeRole_PROBE_ROLE_SEND, Pod: "x/client", SourceIp: []byte{10, 0, 0, 1}, DestinationIp: []byte{10, 0, 0, 2},
		Protocol: 6, SourcePort: 61000, DestinationPort: 80, LimitMillis: 1000}
	if change != nil {
		change(req)
	}
	return newProbing(req)
}

// Flows that watch a probe copy it and forward it as ever. They stay when the
// bridge is read back and mended, are no difference, and go in the end.
func TestWatchFlowsAreLeftAlone(t *testing.T) {
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	ctx := context.Background()
	s.loop.refreshPorts(ctx)
	if r := s.loop.apply(ctx, w.replica, w.cut(objects...)); r.err != nil {
		t.Fatal(r.err)
	}
	p, err := probeOf(t, nil)
	must(t, err)
	p.ID = 7
	must(t, s.loop.watch(ctx, p))
	s.loop.stale = true
	must(t, s.loop.reconcile(ctx))
	resp, err := s.loop.check(ctx)
	must(t, err)
	if len(resp.GetDifferences()) > 0 {
		t.Errorf("differences: %v", resp.GetDifferences())
	}
	packet := p.packet()
	walk := sw.Send(packet)
	if ports := walk.Ports(); len(ports) != 1 || ports[0] != 2 || len(walk.PacketIns) != 1 || walk.PacketIns[0].ControllerID != pipeline.WatchController {
		t.Fatalf("the probe leaves by %v with %d copies", ports, len(walk.PacketIns))
	}
	in := walk.PacketIns[0]
	if id, ok := pipeline.Watches(in.Cookie); !ok || id != 7 || in.Metadata.Reg(1) != 2 {
		t.Errorf("the copy has cookie %#x and output %d", in.Cookie, in.Metadata.Reg(1))
	}
	other := packet
	other.SrcPort++
	if walk := sw.Send(other); len(walk.Ports()) != 1 || len(walk.PacketIns) != 0 {
		t.Errorf("another connection leaves by %v with %d copies", walk.Ports(), len(walk.PacketIns))
	}
	must(t, s.loop.unwatch(ctx, p))
	if walk := sw.Send(packet); len(walk.PacketIns) != 0 {
		t.Error("the flows that watch are still there")
	}
	for name, change := range map[string]func(*policyv1.ProbeRequest){
		"a Pod that is not here": func(r *policyv1.ProbeRequest) { r.Pod = "x/nobody" },
		"another's address":      func(r *policyv1.ProbeRequest) { r.SourceIp = []byte{10, 0, 0, 2} },
		"a watch for another":    func(r *policyv1.ProbeRequest) { r.Role = policyv1.ProbeRole_PROBE_ROLE_WATCH },
	} {
		p, err := probeOf(t, change)
		must(t, err)
		if err := s.loop.watch(ctx, p); err == nil {
			t.Errorf("%s can be probed", name)
		}
	}
}

func TestMalformedProbesAreRefused(t *testing.T) {
	for name, change := range map[string]func(*policyv1.ProbeRequest){
		"role":     func(r *policyv1.ProbeRequest) { r.Role = 9 },
		"family":   func(r *policyv1.ProbeRequest) { r.DestinationIp = make([]byte, 16) },
		"address":  func(r *policyv1.ProbeRequest) { r.SourceIp = []byte{1} },
		"port":     func(r *policyv1.ProbeRequest) { r.SourcePort = 0 },
		"protocol": func(r *policyv1.ProbeRequest) { r.Protocol = 47 },
		"ICMPv6":   func(r *policyv1.ProbeRequest) { r.Protocol = 58 },
	} {
		if _, err := probeOf(t, change); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// Only what belongs to the probe answers it.
func TestAnswersToProbes(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	tcp := func(from, to netip.Addr, sport, dport, flags uint16) bridge.Packet {
		return bridge.Packet{EthType: openflow.EtherIPv4, IPSrc: from, IPDst: to, IPProto: 6, SrcPort: sport, DstPort: dport, TCPFlags: flags}
	}
	sent := tcp(a, b, 61000, 80, bridge.TCPSyn)
	foreign := tcp(a, b, 61001, 80, bridge.TCPSyn)
	unreachable := func(inner bridge.Packet) bridge.Packet {
		return bridge.Packet{EthType: openflow.EtherIPv4, IPSrc: netip.MustParseAddr("10.0.0.9"), IPDst: a, IPProto: 1, ICMPType: 3, ICMPCode: 10, Inner: &inner}
	}
	echo := func(from, to netip.Addr, typ uint8, id uint16) bridge.Packet {
		return bridge.Packet{EthType: openflow.EtherIPv4, IPSrc: from, IPDst: to, IPProto: 1, ICMPType: typ, ICMPID: id}
	}
	ping := func(r *policyv1.ProbeRequest) { r.Protocol, r.SourcePort, r.DestinationPort = 1, 7, 0 }
	for name, test := range map[string]struct {
		change func(*policyv1.ProbeRequest)
		packet bridge.Packet
		answer string
		probe  bool
	}{
		"itself":                {nil, sent, "", true},
		"SYN-ACK":               {nil, tcp(b, a, 80, 61000, bridge.TCPSyn|bridge.TCPAck), "SYN-ACK", false},
		"reset":                 {nil, tcp(b, a, 80, 61000, bridge.TCPRst|bridge.TCPAck), "RST", false},
		"of another":            {nil, tcp(b, a, 80, 61001, bridge.TCPRst), "", false},
		"the sender's reset":    {nil, tcp(a, b, 61000, 80, bridge.TCPRst), "", false},
		"unreachable":           {nil, unreachable(sent), "ICMP type 3 code 10", false},
		"another's unreachable": {nil, unreachable(foreign), "", false},
		"ping":                  {ping, echo(a, b, 8, 7), "", true},
		"another's ping":        {ping, echo(a, b, 8, 8), "", false},
		"echo reply":            {ping, echo(b, a, 0, 7), "echo reply", false},
		"another's echo reply":  {ping, echo(b, a, 0, 8), "", false},
	} {
		p, err := probeOf(t, test.change)
		must(t, err)
		frame := test.packet.Frame() // As it is read from the wire.
		packet, err := bridge.ParseFrame(frame)
		must(t, err)
		if answer, probe := p.answer(&packet), p.isProbe(&packet); answer != test.answer || probe != test.probe {
			t.Errorf("%s: answers %q, is the probe: %v", name, answer, probe)
		}
	}
}

// A probe waits for no longer than there is something to come.
func TestProbesEnd(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	p, err := probeOf(t, nil)
	must(t, err)
	p.deliver = 2
	back := bridge.Packet{EthType: openflow.EtherIPv4, IPSrc: b, IPDst: a, IPProto: 6, SrcPort: 80, DstPort: 61000, TCPFlags: bridge.TCPSyn | bridge.TCPAck}
	reset := bridge.Packet{EthType: openflow.EtherIPv4, IPSrc: a, IPDst: b, IPProto: 6, SrcPort: 61000, DstPort: 80, TCPFlags: bridge.TCPRst}
	copies := make(chan seenPacket, 8)
	for _, c := range []seenPacket{{packet: p.packet(), output: 2}, {packet: back, output: 1}, {packet: reset, output: 2}, {packet: reset, output: 2}} {
		copies <- c
	}
	if seen := p.await(context.Background(), copies, time.Hour); len(seen) != 3 {
		t.Errorf("%d packets seen, want those up to the reset", len(seen))
	}
	if seen := p.await(context.Background(), make(chan seenPacket), time.Millisecond); len(seen) != 0 {
		t.Errorf("seen: %v", seen)
	}
}
