package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/storage"
)

// Model answers inspection. Its methods may be called at any time from any goroutine.
type Model interface {
	Policies() []engine.PolicyInfo
	Groups(members bool) []engine.GroupInfo
	// Explain returns an error that names the field which it cannot read.
	Explain(*policyv1.ExplainRequest) (*policyv1.ExplainResponse, error)
}

// Config of a Server. All fields are required.
type Config struct {
	Store *storage.Store
	Model Model
	// NodeOf is the node that a caller is allowed to be, from its transport
	// credentials; "" where the transport has none and any name is taken.
	NodeOf func(context.Context) (string, error)
	// MayInspect decides over inspection from transport credentials.
	MayInspect func(context.Context) error
	// Synced says whether the sources have been read: until then nobody is served.
	Synced   func() bool
	Registry prometheus.Registerer
	Logger   hclog.Logger
}

// Server implements PolicyService and InspectionService.
type Server struct {
	policyv1.UnimplementedPolicyServiceServer
	policyv1.UnimplementedInspectionServiceServer
	cfg      Config
	sessions sessions

	streams  prometheus.Gauge
	resyncs  prometheus.Counter
	applySec prometheus.Histogram
}

// Streams are cut into frames of this size; one item may be larger.
const frameBytes = 1 << 20

const helloTimeout = 10 * time.Second

// New returns a server; Register puts it on a gRPC server.
func New(cfg Config) (*Server, error) {
	s := &Server{
		cfg:      cfg,
		sessions: sessions{byNode: make(map[string]*session)},
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "weir_policy_streams", Help: "Nodes that are connected."}),
		resyncs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weir_policy_digest_mismatches_total", Help: "Acknowledged digests that were not the cut's; each is followed by a snapshot."}),
		applySec: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weir_policy_apply_seconds", Help: "Time that nodes took to apply a cut.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
	}
	for _, c := range []prometheus.Collector{s.streams, s.resyncs, s.applySec} {
		if err := cfg.Registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return s, nil
}

// Register puts both services on a gRPC server made with Codec.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	policyv1.RegisterPolicyServiceServer(r, s)
	policyv1.RegisterInspectionServiceServer(r, s)
}

// Subscribe implements PolicyService.
func (s *Server) Subscribe(call grpc.BidiStreamingServer[policyv1.SubscribeRequest, policyv1.SubscribeResponse]) error {
	hello, held, err := s.hello(call)
	if err != nil {
		return err
	}
	if !s.cfg.Synced() {
		return status.Error(codes.Unavailable, "sources have not been read yet; try again shortly")
	}
	log := s.cfg.Logger.With("node", hello.GetNode())
	se := s.sessions.get(hello.GetNode())
	st := &stream{replaced: make(chan struct{}), acks: make(chan struct{}, 1)}
	if se.begin(st, hello.GetVersion()) {
		log.Warn("a newer stream of the node replaces the older")
	}
	defer se.end(st)
	s.streams.Inc()
	defer s.streams.Dec()

	sub := s.cfg.Store.Subscribe(hello.GetNode())
	defer func() { sub.Close() }()
	if held != nil {
		if rev, pos, ok := sub.Resume(*held); ok {
			log.Debug("node is in sync", "revision", rev)
			se.inSync(rev, *held)
			m := &policyv1.InSync{Epoch: s.cfg.Store.Epoch(), Revision: rev, Position: &policyv1.Position{Sources: pos}}
			if err := call.Send(&policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_InSync{InSync: m}}); err != nil {
				return err
			}
		}
	}
	received := make(chan error, 1)
	go func() { received <- s.receive(call, se, st, log) }()
	for {
		room, resync := se.mayCut(st)
		if resync {
			sub.Close()
			sub = s.cfg.Store.Subscribe(hello.GetNode())
		}
		if room {
			if cut := sub.Next(); cut != nil {
				if err := s.send(call, se, st, cut, log); err != nil {
					return err
				}
				continue
			}
		}
		var wake <-chan struct{}
		if room {
			wake = sub.Wake()
		}
		select {
		case <-wake:
		case <-st.acks:
		case err := <-received:
			return err
		case <-st.replaced:
			return status.Error(codes.Aborted, "replaced by a newer stream of this node")
		}
	}
}

// hello receives the first message and checks it against who is calling.
func (s *Server) hello(call grpc.BidiStreamingServer[policyv1.SubscribeRequest, policyv1.SubscribeResponse]) (*policyv1.Hello, *storage.Digest, error) {
	type result struct {
		req *policyv1.SubscribeRequest
		err error
	}
	first := make(chan result, 1)
	go func() {
		req, err := call.Recv()
		first <- result{req, err}
	}()
	var r result
	select {
	case r = <-first:
	case <-time.After(helloTimeout):
		return nil, nil, status.Error(codes.InvalidArgument, "no hello within 10 s")
	}
	if r.err != nil {
		return nil, nil, r.err
	}
	hello := r.req.GetHello()
	if hello == nil {
		return nil, nil, status.Error(codes.InvalidArgument, "the first message must be a hello")
	}
	if hello.GetNode() == "" {
		return nil, nil, status.Error(codes.InvalidArgument, "hello.node is empty")
	}
	node, err := s.cfg.NodeOf(call.Context())
	if err != nil {
		return nil, nil, status.Errorf(codes.PermissionDenied, "caller is no node: %v", err)
	}
	if node != "" && node != hello.GetNode() {
		return nil, nil, status.Errorf(codes.PermissionDenied, "hello.node is %q, the certificate is that of %q", hello.GetNode(), node)
	}
	if len(hello.GetDigest()) == 0 {
		return hello, nil, nil
	}
	held, ok := storage.DigestFromBytes(hello.GetDigest())
	if !ok {
		return nil, nil, status.Errorf(codes.InvalidArgument, "hello.digest has %d bytes, not 16", len(hello.GetDigest()))
	}
	return hello, &held, nil
}

func (s *Server) send(call grpc.ServerStream, se *session, st *stream, cut *storage.Cut, log hclog.Logger) error {
	se.cutSent(st, cut)
	frames := cut.Frames(frameBytes)
	for _, f := range frames {
		if err := call.SendMsg(frame(f)); err != nil {
			return err
		}
	}
	log.Debug("cut sent", "revision", cut.Revision, "snapshot", cut.Snapshot, "scopes", len(cut.Scopes), "frames", len(frames))
	return nil
}

// receive takes acks, nacks and stats until the stream ends.
func (s *Server) receive(call grpc.BidiStreamingServer[policyv1.SubscribeRequest, policyv1.SubscribeResponse], se *session, st *stream, log hclog.Logger) error {
	for {
		req, err := call.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch m := req.GetMessage().(type) {
		case *policyv1.SubscribeRequest_Ack:
			s.applySec.Observe(float64(m.Ack.GetApplyMicros()) / 1e6)
			err = s.answer(se, st, m.Ack.GetRevision(), m.Ack.GetDigest(), "", m.Ack.GetApplyMicros(), log)
		case *policyv1.SubscribeRequest_Nack:
			msg := m.Nack.GetError()
			if msg == "" {
				return status.Error(codes.InvalidArgument, "nack.error is empty")
			}
			log.Warn("node could not apply a cut", "revision", m.Nack.GetRevision(), "err", msg, "items", len(m.Nack.GetItems()))
			err = s.answer(se, st, m.Nack.GetRevision(), m.Nack.GetDigest(), msg, 0, log)
		case *policyv1.SubscribeRequest_Stats:
			se.setStats(m.Stats)
		case *policyv1.SubscribeRequest_Hello:
			return status.Error(codes.InvalidArgument, "a second hello")
		default:
			return status.Error(codes.InvalidArgument, "an empty message")
		}
		if err != nil {
			return err
		}
	}
}

func (s *Server) answer(se *session, st *stream, revision uint64, digest []byte, msg string, micros uint64, log hclog.Logger) error {
	d, ok := storage.DigestFromBytes(digest)
	if !ok {
		return status.Errorf(codes.InvalidArgument, "digest of revision %d has %d bytes, not 16", revision, len(digest))
	}
	known, differs := se.answered(st, revision, d, msg, micros)
	if !known {
		return status.Errorf(codes.InvalidArgument, "revision %d was never sent", revision)
	}
	if differs {
		s.resyncs.Inc()
		log.Warn("the node's state differs from what it was sent: sending a snapshot", "revision", revision)
	}
	return nil
}
