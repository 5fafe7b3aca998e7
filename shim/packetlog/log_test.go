package packetlog

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// ether is an Ethernet header before the rest; a VLAN tag if vlan is true.
func ether(etherType uint16, vlan bool, rest ...[]byte) []byte {
	b := make([]byte, 12)
	if vlan {
		b = append(b, 0x81, 0, 0, 5)
	}
	b = binary.BigEndian.AppendUint16(b, etherType)
	for _, r := range rest {
		b = append(b, r...)
	}
	return b
}

// ipv4 is a header of 5 + options words, of a packet of 60 bytes.
func ipv4(proto byte, fragment uint16, options int) []byte {
	b := make([]byte, 20+4*options)
	b[0], b[3], b[9] = byte(0x45+options), 60, proto
	binary.BigEndian.PutUint16(b[6:], fragment)
	copy(b[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	return b
}

// ipv6 is a header of a packet with 20 bytes behind it.
func ipv6(next byte) []byte {
	b := make([]byte, 40)
	b[0], b[5], b[6] = 0x60, 20, next
	copy(b[8:], netip.MustParseAddr("fd00::1").AsSlice())
	copy(b[24:], netip.MustParseAddr("fd00::2").AsSlice())
	return b
}

var tcp = []byte{0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0}

var packets = []struct {
	name  string
	frame []byte
	want  Packet // Without addresses, which are the same in all.
	six   bool
	err   error
}{
	{name: "TCP", frame: ether(0x0800, false, ipv4(6, 0, 0), tcp),
		want: Packet{Proto: 6, Length: 60, HasPorts: true, SrcPort: 40000, DstPort: 80, TCPFlags: 2}},
	{name: "in a VLAN, with IP options", frame: ether(0x0800, true, ipv4(6, 0x4000, 3), tcp),
		want: Packet{Proto: 6, Length: 60, HasPorts: true, SrcPort: 40000, DstPort: 80, TCPFlags: 2}},
	{name: "ICMP", frame: ether(0x0800, false, ipv4(1, 0, 0), []byte{3, 1, 0, 0}), want: Packet{Proto: 1, Length: 60, HasICMP: true, ICMPType: 3, ICMPCode: 1}},
	{name: "first fragment", frame: ether(0x0800, false, ipv4(17, 0x2000, 0), tcp[:8]), want: Packet{Proto: 17, Length: 60, HasPorts: true, SrcPort: 40000, DstPort: 80}},
	{name: "later fragment", frame: ether(0x0800, false, ipv4(17, 0x2005, 0), tcp[:8]), want: Packet{Proto: 17, Length: 60}},
	{name: "ports cut off", frame: ether(0x0800, false, ipv4(6, 0, 0), tcp[:3]), want: Packet{Proto: 6, Length: 60}},
	{name: "flags cut off", frame: ether(0x0800, false, ipv4(6, 0, 0), tcp[:13]), want: Packet{Proto: 6, Length: 60, HasPorts: true, SrcPort: 40000, DstPort: 80}},
	{name: "options cut off", frame: ether(0x0800, false, ipv4(6, 0, 5)[:30]), want: Packet{Proto: 6, Length: 60}},
	{name: "SCTP over IPv6", six: true, frame: ether(0x86dd, false, ipv6(132), tcp), want: Packet{Proto: 132, Length: 60, HasPorts: true, SrcPort: 40000, DstPort: 80}},
	{name: "ICMPv6", six: true, frame: ether(0x86dd, false, ipv6(58), []byte{128, 0, 0, 0, 0, 0, 0, 0}), want: Packet{Proto: 58, Length: 60, HasICMP: true, ICMPType: 128}},
	{name: "extension headers", six: true, frame: ether(0x86dd, false, ipv6(0),
		[]byte{43, 0, 0, 0, 0, 0, 0, 0}, append([]byte{60, 1}, make([]byte, 14)...), []byte{44, 0, 0, 0, 0, 0, 0, 0}, []byte{6, 0, 0, 1, 0, 0, 0, 9}, tcp),
		want: Packet{Proto: 6, Length: 60, HasPorts: true, SrcPort: 40000, DstPort: 80, TCPFlags: 2}},
	{name: "later fragment of IPv6", six: true, frame: ether(0x86dd, false, ipv6(44), []byte{6, 0, 0, 8, 0, 0, 0, 9}, tcp), want: Packet{Proto: 6, Length: 60}},
	{name: "extension header cut off", six: true, frame: ether(0x86dd, false, ipv6(60), []byte{6, 9, 0, 0, 0, 0, 0, 0}), want: Packet{Proto: 60, Length: 60}},
	{name: "no frame", frame: make([]byte, 13), err: errShort},
	{name: "VLAN tag cut off", frame: ether(0x8100, false, []byte{0}), err: errShort},
	{name: "IPv4 cut off", frame: ether(0x0800, false, ipv4(6, 0, 0)[:19]), err: errShort},
	{name: "IPv6 cut off", frame: ether(0x86dd, false, ipv6(6)[:39]), err: errShort},
	{name: "ARP", frame: ether(0x0806, false, make([]byte, 28)), err: errNotIP},
	{name: "IPv6 that says IPv4", frame: ether(0x0800, false, ipv6(6)), err: errNotIP},
	{name: "IPv4 that says IPv6", frame: ether(0x86dd, false, ipv4(6, 0, 5)), err: errNotIP},
}

func TestParse(t *testing.T) {
	for _, test := range packets {
		t.Run(test.name, func(t *testing.T) {
			want := test.want
			if test.err == nil {
				want.Src, want.Dst = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
				if test.six {
					want.Src, want.Dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
				}
			}
			if got, err := Parse(test.frame); got != want || err != test.err {
				t.Errorf("got  %+v, %v\nwant %+v, %v", got, err, want, test.err)
			}
		})
	}
}

// Whatever the bytes are, what Parse returns can be recorded.
func FuzzParse(f *testing.F) {
	for _, p := range packets {
		f.Add(p.frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		p, err := Parse(frame)
		switch {
		case err != nil && p != (Packet{}):
			t.Errorf("an error and %+v", p)
		case err == nil && (!p.Src.IsValid() || p.Src.BitLen() != p.Dst.BitLen()):
			t.Errorf("addresses %s and %s", p.Src, p.Dst)
		case p.HasPorts && p.HasICMP:
			t.Error("ports and ICMP")
		}
	})
}

func known() (Meaning, bool) { return Meaning{Isolation: true, AppliedTo: "x/web"}, true }

func packet(port uint16) Packet {
	return Packet{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Proto: 6, Length: 60, HasPorts: true, SrcPort: 1, DstPort: port}
}

var start = time.Unix(1000, 0)

// Alike packets of a window are one event, which says how many and when.
func TestAlikePacketsAreOneEvent(t *testing.T) {
	l := NewLog(0)
	asked := 0
	meaning := func() (Meaning, bool) { asked++; return known() }
	for i := range 5 {
		l.Add(start.Add(time.Duration(i)*10*time.Millisecond), Key{Table: 1}, packet(80), meaning)
	}
	l.Add(start, Key{Table: 2}, packet(80), func() (Meaning, bool) { return Meaning{}, false })
	l.Flush(start.Add(Window - 1))
	if got := l.Take(10); len(got) != 0 {
		t.Fatalf("the window is not over, but there is %v", got)
	}
	l.Flush(start.Add(Window))
	got := l.Take(10)
	if len(got) != 2 || asked != 1 {
		t.Fatalf("%d events, the meaning was asked for %d times", len(got), asked)
	}
	e := got[0].GetPacket()
	if e.GetCount() != 5 || !e.GetFirst().AsTime().Equal(start) || !e.GetLast().AsTime().Equal(start.Add(40*time.Millisecond)) || e.GetReason() != "isolation" || e.GetAppliedTo() != "x/web" {
		t.Errorf("the event is %v", e)
	}
	if e := got[1].GetPacket(); e.GetCount() != 1 || e.GetLast() != nil || e.GetReason() != "unattributed" {
		t.Errorf("the event of another flow is %v", e)
	}
	l.Add(start.Add(Window), Key{Table: 1}, packet(80), meaning)
	l.Flush(start.Add(2 * Window))
	if got := l.Take(10); len(got) != 1 || got[0].GetPacket().GetCount() != 1 {
		t.Errorf("the next window's event is %v", got)
	}
}

// Packets that differ in what staged policies would do are events of their own;
// what is on record for that alone says so.
func TestStagedOutcomesAreApart(t *testing.T) {
	l := NewLog(0)
	outcome := &auditv1.StagedOutcome{Action: policyv1.Action_ACTION_ALLOW}
	for _, key := range []Key{{Mark: [3]uint32{9, 7}}, {Mark: [3]uint32{9, 8}}, {Mark: [3]uint32{9, 7}}, {Mark: [3]uint32{9, 7}, Unlogged: true}} {
		l.Add(start, key, packet(80), func() (Meaning, bool) {
			return Meaning{Isolation: true, Staged: outcome, Unlogged: key.Unlogged}, true
		})
	}
	l.Flush(start.Add(Window))
	var got []string
	for _, e := range l.Take(10) {
		p := e.GetPacket()
		got = append(got, fmt.Sprint(p.GetCount(), " ", p.GetReason(), " ", p.GetStaged().GetAction()))
	}
	if want := []string{"2 isolation ACTION_ALLOW", "1 isolation ACTION_ALLOW", "1 staged ACTION_ALLOW"}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

// count sums the packets of events, and those that they say were lost.
func count(events []*auditv1.Event) (kept, lost uint64) {
	for _, e := range events {
		kept += e.GetPacket().GetCount()
		lost += e.GetLoss().GetCount()
	}
	return kept, lost
}

// A clock that is set back or forth holds nothing up.
func TestClockThatIsSet(t *testing.T) {
	l, now, took := NewLog(0), start, 0
	for i, step := range []time.Duration{0, -time.Hour, time.Second, 2 * time.Hour, -time.Hour} {
		now = now.Add(step)
		l.Flush(now)
		took += len(l.Take(10)) // All but what is of this moment.
		if took != i {
			t.Errorf("after a step of %s, %d of %d events are ready", step, took, i)
		}
		l.Add(now, Key{}, packet(uint16(i)), known)
	}
}

// A full queue drops the oldest, and what is kept and what is stated to be lost
// is what was added.
func TestFullQueueStatesItsLossExactly(t *testing.T) {
	l := NewLog(10)
	added := uint64(0)
	for i := range 100 {
		now := start.Add(time.Duration(i) * time.Second)
		for range i%3 + 1 {
			l.Add(now, Key{}, packet(uint16(i)), known)
			added++
		}
		l.Flush(now.Add(Window))
	}
	l.Lose(&auditv1.LossEvent{Stage: auditv1.LossStage_LOSS_STAGE_METER})
	got := l.Take(100)
	kept, lost := count(got)
	if kept+lost != added || lost == 0 {
		t.Errorf("%d kept and %d lost, of %d", kept, lost, added)
	}
	loss := got[0].GetLoss()
	if loss.GetStage() != auditv1.LossStage_LOSS_STAGE_QUEUE || !loss.GetFrom().AsTime().Equal(start) || loss.GetTo().AsTime().Before(start.Add(89*time.Second)) {
		t.Errorf("the first event is %v, not the loss of the oldest", got[0])
	}
	if last := got[len(got)-1].GetPacket(); last.GetDestinationPort() != 99 {
		t.Errorf("the newest packet is not kept, but %v", last)
	}
	if packets, dropped := l.Counts(); packets != added || dropped != lost {
		t.Errorf("counts say %d, %d dropped", packets, dropped)
	}
	if more := l.Take(100); len(more) != 0 {
		t.Errorf("a loss is stated again: %v", more)
	}
}

// A meter that takes another's number begins with nothing, whatever had come by that.
func TestLossesOfANewMeter(t *testing.T) {
	var l Losses
	l.Begin(start, 1000)
	for i := range settle + 1 {
		got := l.Next(Reading{Time: start.Add(time.Duration(i+1) * time.Second), Metered: 10, Limited: 4, Received: 1003})
		want := map[int]uint64{0: 4, settle - 1: 3}[i]
		if (len(got) == 1) != (want > 0) || len(got) == 1 && got[0].GetCount() != want {
			t.Errorf("reading %d: %v, want %d", i, got, want)
		}
	}
}

func TestLosses(t *testing.T) {
	const meter, ovs, queue, unknown = auditv1.LossStage_LOSS_STAGE_METER, auditv1.LossStage_LOSS_STAGE_OVS, auditv1.LossStage_LOSS_STAGE_QUEUE, auditv1.LossStage_LOSS_STAGE_UNKNOWN
	const hour = time.Hour
	type losses map[auditv1.LossStage]uint64
	for _, test := range []struct {
		name     string
		readings []Reading
		want     []losses // After each reading.
	}{
		{"what was before the first look is no loss", []Reading{{Metered: 100, Limited: 50}, {Metered: 100, Limited: 50}}, []losses{{}, {}}},
		{"meter and queue", []Reading{{}, {Metered: 10, Limited: 4, Received: 6, Unread: 1}, {Metered: 20, Limited: 9, Received: 11, Unread: 1}},
			[]losses{{}, {meter: 4, queue: 1}, {meter: 5}}},
		{"reports under way are no loss", []Reading{{}, {Metered: 5}, {Metered: 9, Received: 5}, {Metered: 9, Received: 9}, {Metered: 9, Received: 9}},
			[]losses{{}, {}, {}, {}, {}}},
		{"reports that are always under way are no loss", []Reading{{}, {Metered: 10, Received: 9}, {Metered: 20, Received: 19}, {Metered: 30, Received: 29}, {Metered: 40, Received: 39}, {Metered: 40, Received: 40}},
			[]losses{{}, {}, {}, {}, {}, {}}},
		{"a deficit that lasts is one, once", []Reading{{}, {Metered: 5, Received: 3}, {Metered: 5, Received: 3}, {Metered: 5, Received: 3}, {Metered: 5, Received: 3}, {Metered: 5, Received: 3}},
			[]losses{{}, {}, {}, {ovs: 2}, {}, {}}},
		{"counters that go back", []Reading{{Metered: 10, Limited: 5, Received: 5}, {Metered: 3, Limited: 1, Received: 7}, {Metered: 4, Limited: 2, Received: 7}},
			[]losses{{}, {unknown: 0}, {meter: 1}}},
		{"what was under way at the first look hides no loss", []Reading{{Metered: 10, Received: 4}, {Metered: 10, Received: 10}, {Metered: 15, Received: 12}, {Metered: 15, Received: 12}, {Metered: 15, Received: 12}},
			[]losses{{}, {}, {}, {}, {ovs: 3}}},
		{"nor does what another meter had let through", []Reading{{Born: hour, Metered: 100, Received: 100}, {Born: 2 * hour, Metered: 5, Received: 125, Before: 100}, {Born: 2 * hour, Metered: 9, Received: 127, Before: 100},
			{Born: 2 * hour, Metered: 9, Received: 127, Before: 100}, {Born: 2 * hour, Metered: 9, Received: 127, Before: 100}}, []losses{{}, {unknown: 0}, {}, {}, {ovs: 2}}},
		{"a meter that was put under flows that named none", []Reading{{Born: hour, Metered: 100, Received: 100}, {Born: 2 * hour, Metered: 105, Received: 150, Before: 120, Unbound: true}, {Born: 2 * hour, Metered: 109, Received: 151, Before: 120},
			{Born: 2 * hour, Metered: 109, Received: 151, Before: 120}, {Born: 2 * hour, Metered: 109, Received: 151, Before: 120}}, []losses{{}, {unknown: 0}, {}, {}, {ovs: 3}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var l Losses
			for i, r := range test.readings {
				r.Time = start.Add(time.Duration(i) * time.Second)
				got := l.Next(r)
				if len(got) != len(test.want[i]) {
					t.Errorf("reading %d: %v, want %v", i, got, test.want[i])
				}
				for _, e := range got {
					if n, ok := test.want[i][e.GetStage()]; !ok || n != e.GetCount() || !e.GetTo().AsTime().Equal(r.Time) {
						t.Errorf("reading %d: %v, want %v", i, e, test.want[i])
					}
				}
			}
		})
	}
}

// collector stores the events of every boot in memory; it refuses gaps.
type collector struct {
	auditv1.UnimplementedCollectorServiceServer
	streams chan *report
}

// report is one stream, which the test reads and answers.
type report struct {
	stream grpc.BidiStreamingServer[auditv1.ReportRequest, auditv1.ReportResponse]
	end    chan struct{}
}

func (c *collector) Report(stream grpc.BidiStreamingServer[auditv1.ReportRequest, auditv1.ReportResponse]) error {
	r := &report{stream: stream, end: make(chan struct{})}
	select {
	case c.streams <- r:
	case <-stream.Context().Done():
		return nil
	}
	select {
	case <-r.end:
		return status.Error(codes.Unavailable, "disk full")
	case <-stream.Context().Done():
		return nil
	}
}

func (c *collector) next(t *testing.T) *report {
	t.Helper()
	select {
	case r := <-c.streams:
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("no stream")
		return nil
	}
}

func (r *report) recv(t *testing.T) *auditv1.ReportRequest {
	t.Helper()
	m, err := r.stream.Recv()
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return m
}

// Over reconnects with and without acks, every event arrives under one number,
// without gaps, and the numbers say the same events whenever they come again.
func TestReporterLosesAndDoublesNothing(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g, c := grpc.NewServer(), &collector{streams: make(chan *report)}
	auditv1.RegisterCollectorServiceServer(g, c)
	go g.Serve(listener)
	t.Cleanup(g.Stop)
	l := NewLog(0)
	r, err := NewReporter(ReporterConfig{Addresses: []string{listener.Addr().String()}, Node: "node-1", Log: l,
		MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })

	const rounds, each = 6, 700 // More than a batch.
	stored := map[uint64]uint32{}
	durable, boot, added := uint64(0), "", 0
	for round := range rounds {
		for range each {
			l.Add(start, Key{}, packet(uint16(added)), known)
			added++
		}
		l.Flush(start.Add(Window))
		s := c.next(t)
		hello := s.recv(t).GetHello()
		if hello.GetNode() != "node-1" || boot != "" && hello.GetBoot() != boot {
			t.Fatalf("hello %v, of boot %s", hello, boot)
		}
		boot = hello.GetBoot()
		next := durable + 1
		for next <= uint64(added) {
			batch := s.recv(t).GetBatch()
			if batch.GetFirstSequence() != next {
				t.Fatalf("round %d: a batch begins with %d, want %d", round, batch.GetFirstSequence(), next)
			}
			for _, e := range batch.GetEvents() {
				port := e.GetPacket().GetDestinationPort()
				if was, ok := stored[next]; ok && was != port {
					t.Fatalf("event %d was packet %d and is packet %d", next, was, port)
				}
				stored[next] = port
				next++
			}
		}
		if round%2 == 0 { // Half of it is durable, and the stream ends.
			durable += (uint64(added) - durable) / 2
		} else if round == rounds-1 {
			durable = uint64(added)
		}
		if err := s.stream.Send(&auditv1.ReportResponse{AckedSequence: durable}); err != nil {
			t.Fatal(err)
		}
		deadline := time.After(10 * time.Second)
		for tick := time.Tick(time.Millisecond); r.Acked() != durable; {
			select {
			case <-tick:
			case <-deadline:
				t.Fatalf("acked %d, want %d", r.Acked(), durable)
			}
		}
		close(s.end)
	}
	if len(stored) != added {
		t.Errorf("%d events of %d", len(stored), added)
	}
	seen := map[uint32]bool{}
	for _, port := range stored {
		seen[port] = true
	}
	if len(seen) != added {
		t.Errorf("%d of %d packets arrived", len(seen), added)
	}
	// The last stream has nothing left to send but what is new.
	s := c.next(t)
	s.recv(t)
	l.Add(start, Key{}, packet(9999), known)
	l.Flush(start.Add(Window))
	if batch := s.recv(t).GetBatch(); batch.GetFirstSequence() != uint64(added)+1 || len(batch.GetEvents()) != 1 {
		t.Errorf("the next batch is %d events from %d", len(batch.GetEvents()), batch.GetFirstSequence())
	}
}
