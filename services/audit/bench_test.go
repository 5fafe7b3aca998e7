package audit

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/audit/record"
)

// cpuTime is what the process has used, garbage collection included.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// encoded is a message that was encoded before.
type encoded []byte

// encodedCodec sends encoded messages as they are, so that the benchmark's
// clients cost little.
type encodedCodec struct{}

func (encodedCodec) Name() string { return "proto" }
func (encodedCodec) Marshal(v any) ([]byte, error) {
	if e, ok := v.(encoded); ok {
		return e, nil
	}
	return proto.Marshal(v.(proto.Message))
}
func (encodedCodec) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }

// startBench runs a collector without sinks, and makes so many events.
func startBench(b *testing.B, n int) (s *Service, events [][]byte, stop func()) {
	s, err := New(b.Context(), Config{Dir: b.TempDir(), Listen: "127.0.0.1:0", Logger: hclog.NewNullLogger()})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	for i := range n {
		e, err := proto.Marshal(drop(uint32(i)))
		if err != nil {
			b.Fatal(err)
		}
		events = append(events, e)
	}
	return s, events, func() {
		cancel()
		if err := <-ran; err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDurable sends events from eight nodes over TCP to a collector
// without sinks; an operation is one event, durable and acknowledged. The p99 is
// of another second, at 200,000 events a second: of the time from sending a batch
// of 512 until it is acknowledged.
func BenchmarkDurable(b *testing.B) {
	const nodes, batch, window = 8, 512, 8
	s, events, stop := startBench(b, batch)
	each := max(1, b.N/nodes/batch)
	// run sends so many batches of every node, one an interval, and returns how
	// long they took.
	run := func(boot string, each int, interval time.Duration) []time.Duration {
		var mu sync.Mutex
		var all []time.Duration
		var wg sync.WaitGroup
		for n := range nodes {
			wg.Go(func() {
				l := load{addr: s.Addr(), node: fmt.Sprint("n", n), boot: boot, events: events, batches: each, window: window, interval: interval}.send(b)
				mu.Lock()
				all = append(all, l...)
				mu.Unlock()
			})
		}
		wg.Wait()
		return all
	}
	begunCPU := cpuTime(b)
	b.ResetTimer()
	run("full", each, 0)
	b.StopTimer()
	cpu := cpuTime(b) - begunCPU
	total := nodes * each * batch
	if st := s.log.Stats(); st.Kept != uint64(total) {
		b.Fatalf("%d events kept, %d sent", st.Kept, total)
	}
	const rate, perNode = 200_000, 200_000 / nodes / batch
	latencies := run("paced", perNode, time.Second*nodes*batch/rate)
	slices.Sort(latencies)
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(latencies[len(latencies)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(cpu.Microseconds())/float64(total), "cpu-us/event")
	stop()
}

// BenchmarkReportLeg is the gRPC leg of one node at 20,000 events a second for five
// seconds, an event an operation: from when a batch of 100 is due until it is
// acknowledged, durable.
func BenchmarkReportLeg(b *testing.B) {
	const rate, batch, batches = 20_000, 100, 5 * 20_000 / 100
	s, events, stop := startBench(b, batch)
	b.ResetTimer()
	latencies := load{addr: s.Addr(), node: "n1", boot: "paced", events: events, batches: batches, window: 64, interval: time.Second * batch / rate}.send(b)
	b.StopTimer()
	if st := s.log.Stats(); st.Kept != batches*batch {
		b.Fatalf("%d events kept, %d sent", st.Kept, batches*batch)
	}
	slices.Sort(latencies)
	b.ReportMetric(float64(batches*batch)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(latencies[len(latencies)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(latencies[len(latencies)*99/100].Microseconds())/1000, "p99-ms")
	stop()
}

// load is what one node sends.
type load struct {
	addr, node, boot string
	events           [][]byte // Of one batch.
	batches, window  int      // At most so many are unacknowledged.
	interval         time.Duration
	creds            credentials.TransportCredentials // Nil: plain text.
}

// send sends batches, and returns how long each took from when it was due.
func (l load) send(b *testing.B) []time.Duration {
	events := l.events
	if l.creds == nil {
		l.creds = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient(l.addr, grpc.WithTransportCredentials(l.creds))
	if err != nil {
		b.Error(err)
		return nil
	}
	defer conn.Close()
	stream, err := auditv1.NewCollectorServiceClient(conn).Report(context.Background(), grpc.ForceCodec(encodedCodec{}))
	if err != nil {
		b.Error(err)
		return nil
	}
	if err := stream.Send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: l.node, Boot: l.boot}}}); err != nil {
		b.Error(err)
		return nil
	}
	var body []byte
	for _, e := range events {
		body = append(body, 0x12)
		body = binary.AppendUvarint(body, uint64(len(e)))
		body = append(body, e...)
	}
	sent := make(chan time.Time, l.window)
	go func() {
		begun := time.Now()
		for i := range l.batches {
			inner := binary.AppendUvarint([]byte{0x08}, uint64(i*len(events)+1))
			msg := append([]byte{0x12}, binary.AppendUvarint(nil, uint64(len(inner)+len(body)))...)
			msg = append(append(msg, inner...), body...)
			due := begun.Add(time.Duration(i) * l.interval)
			if l.interval > 0 {
				time.Sleep(time.Until(due)) // The pace is what is measured.
			} else {
				due = time.Now()
			}
			sent <- due
			if err := stream.SendMsg(encoded(msg)); err != nil {
				return // The reader tells.
			}
		}
	}()
	var out []time.Duration
	for acked := 0; acked < l.batches; {
		r, err := stream.Recv()
		if err != nil {
			b.Error(err)
			return nil
		}
		for upTo := int(r.GetAckedSequence()) / len(events); acked < upTo; acked++ {
			out = append(out, time.Since(<-sent))
		}
	}
	return out
}

// BenchmarkDedupScan de-duplicates 100,000 packets a second: of a scan, where all
// are distinct, or of one client that repeats itself.
func BenchmarkDedupScan(b *testing.B) {
	for _, name := range []string{"distinct", "repeated"} {
		b.Run(name, func(b *testing.B) {
			var lines, packets uint64
			d := record.NewDedup(record.DedupConfig{Key: record.KeyPrinted, Emit: func(l *record.Line) { lines++; packets += l.Packets }})
			event := drop(1)
			data, err := proto.Marshal(event)
			if err != nil {
				b.Fatal(err)
			}
			e, err := record.NewDecoder().Decode(data)
			if err != nil {
				b.Fatal(err)
			}
			r := record.Record{Node: "n1", Event: e}
			n := uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				n++
				if name == "distinct" {
					r.Packet.SourcePort.Value, r.Packet.DestPort.Value = uint32(n&0xffff), uint32(n>>16&0xffff)
				}
				r.Cursor, r.Packet.First = n, day.Add(time.Duration(n)*10*time.Microsecond) // 100,000 a second.
				r.Packet.Last = r.Packet.First
				d.Add(&r, r.Packet.First)
			}
			d.Flush()
			if packets != n || name == "distinct" && n < record.DefaultMaxWindows && lines != n {
				b.Fatalf("%d packets in %d lines, of %d", packets, lines, n)
			}
		})
	}
}
