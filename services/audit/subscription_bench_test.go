package audit

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/identity"
)

// BenchmarkSubscribers has 1,000 follow over mutual TLS, each on a connection of its
// own, while 2,000 events a second arrive: ten have no filter, the others one by
// Namespace, of which there are a hundred. An operation is one event. All must have
// all that is theirs. The delay is from an event's arrival, before its sync, until
// the subscriber has it decoded; CPU and memory are of both ends, in one process.
func BenchmarkSubscribers(b *testing.B) {
	const rate, namespaces, whole = 2000, 100, 10
	for _, subscribers := range []int{100, 1000} {
		b.Run(fmt.Sprint(subscribers), func(b *testing.B) {
			s, dial := benchSite(b)
			defer dial.stop()
			heap := func() uint64 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.HeapInuse + m.StackInuse
			}
			before := heap()
			events := max(b.N, 2*namespaces) / namespaces * namespaces
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			var wg sync.WaitGroup
			var mu sync.Mutex
			var delays []time.Duration
			for i := range subscribers {
				req, want := &auditv1.TailRequest{Follow: true}, events
				if i >= whole {
					req.Filter, want = &auditv1.RecordFilter{Namespace: fmt.Sprint("ns-", i%namespaces)}, events/namespaces
				}
				call, err := auditv1.NewAuditServiceClient(dial.conn(b, "operator")).Tail(ctx, req)
				if err != nil {
					b.Fatal(err)
				}
				wg.Go(func() {
					var mine []time.Duration
					for len(mine) < want {
						r, err := call.Recv()
						if err != nil {
							b.Errorf("subscriber %d, after %d records: %v", i, len(mine), err)
							return
						}
						if r.GetRecord() != nil {
							mine = append(mine, time.Since(r.GetRecord().GetReceived().AsTime()))
						}
					}
					mu.Lock()
					defer mu.Unlock()
					delays = append(delays, mine...)
				})
			}
			for s.seats.count() < subscribers { // Connections are made in the background.
				time.Sleep(10 * time.Millisecond)
			}
			each := (heap() - before) / uint64(subscribers)
			var encoded [][]byte
			for i := range namespaces {
				e := drop(uint32(i))
				e.GetPacket().AppliedTo, e.GetPacket().Peer = fmt.Sprintf("ns-%d/a", i), fmt.Sprintf("ns-%d/b", i)
				data, err := proto.Marshal(e)
				if err != nil {
					b.Fatal(err)
				}
				encoded = append(encoded, data)
			}
			begunCPU := cpuTime(b)
			b.ResetTimer()
			load{addr: s.Addr(), node: "n1", boot: "b", events: encoded, batches: events / namespaces, window: 64, interval: time.Second * namespaces / rate, creds: dial.creds(b, "node-n1")}.send(b)
			wg.Wait()
			b.StopTimer()
			slices.Sort(delays)
			b.ReportMetric(float64(delays[len(delays)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(delays[len(delays)*99/100].Microseconds())/1000, "p99-ms")
			b.ReportMetric((cpuTime(b)-begunCPU).Seconds()/b.Elapsed().Seconds(), "cores")
			b.ReportMetric(float64(len(delays))/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(each)/1024, "KiB/subscriber")
		})
	}
}

// benchDial makes connections to a collector over mutual TLS.
type benchDial struct {
	pki, addr string
	conns     []*grpc.ClientConn
	ended     func()
}

func benchSite(b *testing.B) (*Service, *benchDial) {
	d := &benchDial{pki: b.TempDir()}
	if _, err := identity.Init(identity.InitConfig{Dir: d.pki, Nodes: []string{"n1"}, Now: time.Now()}); err != nil {
		b.Fatal(err)
	}
	s, err := New(b.Context(), Config{Dir: b.TempDir(), Listen: "127.0.0.1:0", MinFree: 1, TLS: d.files("auditd"), Logger: hclog.NewNullLogger()})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	d.addr = s.Addr()
	d.ended = func() {
		cancel()
		if err := <-ran; err != nil {
			b.Error(err)
		}
	}
	return s, d
}

func (d *benchDial) files(name string) identity.Files {
	return identity.Files{CA: filepath.Join(d.pki, "ca.crt"), Cert: filepath.Join(d.pki, name+".crt"), Key: filepath.Join(d.pki, name+".key")}
}

func (d *benchDial) creds(b *testing.B, name string) credentials.TransportCredentials {
	config, err := identity.ClientTLS(d.files(name))
	if err != nil {
		b.Fatal(err)
	}
	return credentials.NewTLS(config)
}

func (d *benchDial) conn(b *testing.B, name string) *grpc.ClientConn {
	conn, err := grpc.NewClient(d.addr, grpc.WithTransportCredentials(d.creds(b, name)))
	if err != nil {
		b.Fatal(err)
	}
	d.conns = append(d.conns, conn)
	return conn
}

func (d *benchDial) stop() {
	for _, conn := range d.conns {
		conn.Close()
	}
	d.ended()
}
