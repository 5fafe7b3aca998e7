package packetlog

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/storage/faultpoint"
)

// ReporterConfig of a Reporter.
type ReporterConfig struct {
	Addresses []string // Of collectors, host:port; at least one.
	// Credentials are those of the node; nil for plain text. A collector on this
	// machine is reached in plain text all the same: see local.
	Credentials credentials.TransportCredentials
	Node        string
	Log         *Log
	// Ledger is where the next life finds what was sent; it is open. Nil: nowhere.
	Ledger *Ledger
	// MinBackoff and MaxBackoff bound the pause before a reconnect. Zero: 100 ms and 5 s.
	MinBackoff, MaxBackoff time.Duration
	Logger                 hclog.Logger
}

// Reporter sends a Log's events to the collector.
type Reporter struct {
	cfg       ReporterConfig
	boot      string
	next      uint64           // Sequence of the next event to get one.
	inflight  []*auditv1.Event // Sent at least once, not durable; consecutive, the last is next-1.
	acked     atomic.Uint64
	connected atomic.Bool
}

const (
	batchEvents = 512
	maxInflight = 8192
)

// NewReporter returns a reporter; Run connects it. Each reporter is a boot of
// its own: its sequence begins with 1.
func NewReporter(cfg ReporterConfig) (*Reporter, error) {
	if len(cfg.Addresses) == 0 {
		return nil, errors.New("reporter: no address of a collector")
	}
	if cfg.MinBackoff == 0 {
		cfg.MinBackoff = 100 * time.Millisecond
	}
	if cfg.MaxBackoff == 0 {
		cfg.MaxBackoff = 5 * time.Second
	}
	var id [8]byte
	rand.Read(id[:])
	return &Reporter{cfg: cfg, boot: hex.EncodeToString(id[:]), next: 1}, nil
}

// Acked is the newest sequence that the collector holds durably.
func (r *Reporter) Acked() uint64 { return r.acked.Load() }

// Connected says whether there is a stream to a collector now.
func (r *Reporter) Connected() bool { return r.connected.Load() }

// Run reports until the context ends.
func (r *Reporter) Run(ctx context.Context) error {
	if r.cfg.Ledger != nil && r.cfg.Ledger.nothingSent() {
		r.cfg.Ledger.settle(0, r.boot)
	}
	pause, said := r.cfg.MinBackoff, ""
	for i := 0; ctx.Err() == nil; i++ {
		address := r.cfg.Addresses[i%len(r.cfg.Addresses)]
		before := r.acked.Load()
		err := r.stream(ctx, address)
		r.connected.Store(false)
		if ctx.Err() != nil {
			break
		}
		if r.acked.Load() > before {
			pause, said = r.cfg.MinBackoff, ""
		}
		if err.Error() != said { // Once, and not with every attempt.
			said = err.Error()
			r.cfg.Logger.Warn("no collector; events wait; trying on", "server", address, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + mrand.N(pause/2+1)):
		}
		pause = min(2*pause, r.cfg.MaxBackoff)
	}
	return ctx.Err()
}

// local reports whether an address, "HOST:PORT" or "unix:PATH", stays on this
// machine: a collector there is the node's own, and has no certificate to show
// for its address. A name counts only if it is localhost, whatever it resolves
// to.
func local(address string) bool {
	if strings.HasPrefix(address, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

func (r *Reporter) stream(ctx context.Context, address string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	creds := r.cfg.Credentials
	if creds == nil || local(address) {
		creds = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", address, err)
	}
	defer conn.Close()
	client := auditv1.NewCollectorServiceClient(conn)
	if err := r.settle(ctx, client); err != nil {
		return fmt.Errorf("ask %s what it has of a former life: %w", address, err)
	}
	stream, err := client.Report(ctx)
	if err != nil {
		return fmt.Errorf("report to %s: %w", address, err)
	}
	hello := &auditv1.ReportHello{Node: r.cfg.Node, Boot: r.boot}
	if err := stream.Send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: hello}}); err != nil {
		return recvError(stream, address, err)
	}
	acks := make(chan uint64)
	ended := make(chan error, 1)
	go func() {
		for {
			resp, err := stream.Recv()
			if err != nil {
				ended <- fmt.Errorf("report to %s: %w", address, err)
				return
			}
			select {
			case acks <- resp.GetAckedSequence():
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	}()
	unsent := r.inflight // Of this stream: everything that is not durable goes first.
	for {
		if len(unsent) == 0 && len(r.inflight) < maxInflight {
			unsent = r.fresh()
		}
		if len(unsent) > 0 {
			n := min(len(unsent), batchEvents)
			batch := &auditv1.EventBatch{FirstSequence: r.next - uint64(len(unsent)), Events: unsent[:n]}
			if err := stream.Send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Batch{Batch: batch}}); err != nil {
				return r.drain(acks, ended, err)
			}
			faultpoint.Reach("shim.log.sent")
			unsent = unsent[n:]
			select { // Acks are taken on the way, so that neither side waits for the other.
			case seq := <-acks:
				r.ack(seq)
			default:
			}
			continue
		}
		var wake <-chan struct{}
		if len(r.inflight) < maxInflight {
			wake = r.cfg.Log.Wake()
		}
		select {
		case seq := <-acks:
			r.ack(seq)
		case <-wake:
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// settle asks the collector what it has of a former life, as far as the ledger
// does not know. From then on nothing more of that life is stored.
func (r *Reporter) settle(ctx context.Context, client auditv1.CollectorServiceClient) error {
	if r.cfg.Ledger == nil || r.cfg.Ledger.Settled() {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Report(ctx)
	if err != nil {
		return err
	}
	hello := &auditv1.ReportHello{Node: r.cfg.Node, Boot: r.cfg.Ledger.formerBoot()}
	if err := stream.Send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: hello}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	resp, err := stream.Recv()
	if err != nil {
		return err
	}
	r.cfg.Ledger.settle(resp.GetAckedSequence(), r.boot)
	faultpoint.Reach("shim.log.settled")
	return nil
}

// fresh gives the log's next events their numbers.
func (r *Reporter) fresh() []*auditv1.Event {
	taken := r.cfg.Log.take(batchEvents)
	if len(taken) == 0 {
		return nil
	}
	faultpoint.Reach("shim.log.taken")
	if r.cfg.Ledger != nil {
		r.cfg.Ledger.send(taken)
	}
	fresh := events(taken)
	r.inflight = append(r.inflight, fresh...)
	r.next += uint64(len(fresh))
	return fresh
}

// ack forgets what is durable.
func (r *Reporter) ack(seq uint64) {
	r.connected.Store(true)
	first := r.next - uint64(len(r.inflight))
	if seq < first || seq >= r.next {
		return
	}
	r.inflight = append([]*auditv1.Event(nil), r.inflight[seq-first+1:]...)
	r.acked.Store(seq)
	faultpoint.Reach("shim.log.acked")
	if r.cfg.Ledger != nil {
		r.cfg.Ledger.ack(seq)
	}
}

// drain takes the last acks of a stream on which a Send failed, and returns its
// own error, which the failed Send only hints at. It is the receiver that meets
// it: two must not receive at a time.
func (r *Reporter) drain(acks <-chan uint64, ended <-chan error, sent error) error {
	for {
		select {
		case seq := <-acks:
			r.ack(seq)
		case err := <-ended:
			return errors.Join(sent, err)
		}
	}
}

// recvError is the stream's own error, which a failed Send only hints at.
func recvError(stream grpc.BidiStreamingClient[auditv1.ReportRequest, auditv1.ReportResponse], address string, err error) error {
	for {
		if _, recv := stream.Recv(); recv != nil {
			return fmt.Errorf("report to %s: %w", address, errors.Join(err, recv))
		}
	}
}
