package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// fleetNode is one node of a fleet: a connection, one goroutine on its stream,
// and a replica. Every cut is applied and acknowledged with the digest that
// came out. It stays ready for a stream after the stream before.
type fleetNode struct {
	name    string
	address string
	config  *tls.Config
	conn    *grpc.ClientConn
	cancel  context.CancelFunc // Of the present stream; nil for none.
	ended   chan struct{}      // Closed when that stream's goroutine has returned.

	payload atomic.Int64

	mu      sync.Mutex // Guards what follows.
	replica storage.Replica
	report  nodeReport
}

// dial makes a new connection, with the windows and the keepalive of a shim.
func (n *fleetNode) dial() error {
	if n.conn != nil {
		n.conn.Close()
	}
	var err error
	n.conn, err = grpc.NewClient("passthrough:"+n.address,
		grpc.WithTransportCredentials(credentials.NewTLS(n.config)),
		grpc.WithInitialWindowSize(1<<20),
		grpc.WithInitialConnWindowSize(4<<20),
		grpc.WithReadBufferSize(4<<10),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithStatsHandler(payloadCounter{&n.payload}))
	return err
}

func (n *fleetNode) unsubscribe() {
	if n.cancel != nil {
		n.cancel()
		<-n.ended
	}
}

// subscribe begins a stream and returns when its first cut, or in-sync, has
// been acknowledged. A stream that ends before unsubscribe has failed.
func (n *fleetNode) subscribe(ctx context.Context, failed chan<- error) error {
	ctx, n.cancel = context.WithCancel(ctx)
	n.ended = make(chan struct{})
	begun, first := make(chan struct{}), sync.Once{}
	result := make(chan error, 1)
	go func() {
		defer close(n.ended)
		err := n.follow(ctx, func() { first.Do(func() { close(begun) }) })
		if ctx.Err() != nil {
			return
		}
		err = fmt.Errorf("%s: %w", n.name, err)
		result <- err
		select {
		case failed <- err:
		default: // One is enough.
		}
	}()
	select {
	case <-begun:
		return nil
	case err := <-result:
		return err
	}
}

func (n *fleetNode) follow(ctx context.Context, answered func()) error {
	stream, err := policyv1.NewPolicyServiceClient(n.conn).Subscribe(ctx)
	if err != nil {
		return err
	}
	h := &policyv1.Hello{Node: n.name, Version: "bench"}
	n.mu.Lock()
	n.replica.Begin()
	if n.replica.Revision() != 0 {
		h.Digest, h.Position = n.replica.Digest().Bytes(), n.replica.Position()
	}
	n.mu.Unlock()
	if err := stream.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Hello{Hello: h}}); err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		ack, err := n.take(resp)
		if err != nil {
			return err
		}
		if ack == nil {
			continue
		}
		if err := stream.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Ack{Ack: ack}}); err != nil {
			return err
		}
		answered()
	}
}

// take applies a message; the acknowledgement is nil before a cut's last frame.
func (n *fleetNode) take(resp *policyv1.SubscribeResponse) (*policyv1.Ack, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	start := time.Now()
	switch m := resp.GetMessage().(type) {
	case *policyv1.SubscribeResponse_InSync:
		n.replica.InSync(m.InSync)
		n.report.InSyncs++
	case *policyv1.SubscribeResponse_Cut:
		n.count(m.Cut)
		_, done, err := n.replica.Apply(m.Cut)
		if err != nil || !done {
			return nil, err
		}
		n.report.Cuts++
		if want, _ := storage.DigestFromBytes(m.Cut.GetDigest()); want != n.replica.Digest() {
			return nil, fmt.Errorf("digest %s after cut %d, want %s", n.replica.Digest(), m.Cut.GetRevision(), want)
		}
	default:
		return nil, errors.New("a message that is no cut and no in-sync")
	}
	return &policyv1.Ack{Revision: n.replica.Revision(), ApplyMicros: uint64(time.Since(start).Microseconds()), Digest: n.replica.Digest().Bytes()}, nil
}

func (n *fleetNode) count(frame *policyv1.Cut) {
	if frame.GetSnapshot() {
		if !frame.GetMore() {
			n.report.Snapshots++
		}
		return
	}
	for _, sd := range frame.GetScopes() {
		n.report.Upserts += len(sd.GetUpserts())
		n.report.Others += len(sd.GetRemovals())
		if sd.GetReset_() || sd.GetGone() || len(sd.GetResetBuckets()) > 0 {
			n.report.Others++
		}
	}
}

func (n *fleetNode) tell() nodeReport {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.report
	r.Digest, r.Payload = n.replica.Digest().Bytes(), n.payload.Load()
	return r
}

// payloadCounter counts the bytes of messages, without gRPC's and TLS's own.
type payloadCounter struct{ bytes *atomic.Int64 }

func (payloadCounter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (payloadCounter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (payloadCounter) HandleConn(context.Context, stats.ConnStats)                       {}

func (p payloadCounter) HandleRPC(_ context.Context, s stats.RPCStats) {
	switch s := s.(type) {
	case *stats.InPayload:
		p.bytes.Add(int64(s.Length))
	case *stats.OutPayload:
		p.bytes.Add(int64(s.Length))
	}
}
