// Package client follows a node's stream of the policy service: it subscribes,
// builds the node's state from the cuts, checks the digest of every one, has
// the owner put it in force, and acknowledges.
//
//	policy service ─► cut ─► storage.Replica ─► Handler.Apply ─► ack or nack
//	                             (digest equal?)
//
// The Client owns the replica and lends it to the Handler during Apply. A cut
// whose digest does not come out is not applied: it is refused, and the
// service asks what is held and sends what differs, so that the Handler touches
// only that. When a stream ends, for whatever reason, the state stays, and the
// client connects again after a pause with jitter, to each address in turn,
// and resumes from the digest that it holds. A message that cannot be read
// ends the stream, and so does a service that owes an answer for too long. A
// state that is older than the one held is taken over only once no other address
// has a later one.
//
// Read client_test.go first.
package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
	"github.com/weirnet/weir/storage/faultpoint"
)

// Handler puts cuts in force. Its methods are called by one goroutine.
type Handler interface {
	// Apply puts what was touched in force and returns when it is, or why it
	// is not. The replica may be read until it returns. Problems are items
	// that could not be realised although the rest is in force; beside an
	// error, items for which nothing is.
	Apply(ctx context.Context, state *storage.Replica, touched storage.Touched) (problems []*policyv1.ItemError, err error)
	// Hold names endpoints, by key, of which the next Apply brings new addresses
	// and whose ports are to stay closed until Release names them, but not for ever.
	Hold(ctx context.Context, endpoints []string)
	Release(ctx context.Context, endpoints []string)
	// Stats are sent to the service when they change.
	Stats() *policyv1.NodeStats
	// Counters are the stats that are sent now and then: with what rules matched, as
	// far as it changed after a mark. The mark is zero on a new stream, for all, and
	// then the one that was returned. More than one are sent one after the other.
	Counters(after uint64) (stats []*policyv1.NodeStats, mark uint64)
	// Probe takes a probe and returns at once; answers go to answer, from any
	// goroutine, until the context ends.
	Probe(ctx context.Context, req *policyv1.ProbeRequest, answer func(*policyv1.ProbeResult))
}

// Config of a Client.
type Config struct {
	Addresses []string // Of policy services, host:port; at least one.
	// Credentials are those of the node; nil for plain text.
	Credentials credentials.TransportCredentials
	Dial        func(ctx context.Context, address string) (net.Conn, error) // Nil: TCP.
	Node        string
	Version     string
	// Replica to begin with, from a checkpoint. Nil: none.
	Replica *storage.Replica
	// MinBackoff and MaxBackoff bound the pause before a reconnect. Zero: 100 ms and 10 s.
	MinBackoff, MaxBackoff time.Duration
	// AnswerTimeout is how long the service may owe its first answer, or a repair,
	// before the stream is given up. Zero: 30 s.
	AnswerTimeout time.Duration
	// StatsInterval is how often stats are sent, counters among them. Zero: 10 s.
	StatsInterval time.Duration
	// StatsChanged signals that they are worth sending now. They are, but not more
	// often than every statsPause: what changes meanwhile goes as one. Nil: none do.
	StatsChanged <-chan struct{}
	Logger       hclog.Logger
}

// Client follows one node's stream.
type Client struct {
	cfg     Config
	mu      sync.Mutex // Guards replica and wrong while they change; the run's goroutine alone changes them.
	replica *storage.Replica
	wrong   bool // The digest did not come out: a repair is to come.
	// owed is what was touched since the Handler last said that all is in force;
	// nil where nothing is owed. It belongs to the run's goroutine.
	owed storage.Touched
	// turns are the streams in a row that were left because the state that they
	// brought was behind, and the attempts between them. It belongs to the run's goroutine.
	turns      int
	connected  atomic.Bool
	synced     atomic.Bool
	mismatches atomic.Uint64
	repairs    atomic.Uint64
	rollbacks  atomic.Uint64
}

// Limits of the connection. A message holds at most one frame of about 1 MiB
// or one item that is larger; static windows switch bandwidth probing off.
const (
	maxMessageBytes  = 16 << 20
	windowBytes      = 1 << 20
	connWindowBytes  = 4 << 20
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	connectTimeout   = 5 * time.Second // With the handshake; then the next address has its turn.
	maxSpread        = 30 * time.Second
	spreadHeader     = "weir-reconnect-spread-ms"
)

// New returns a client; Run connects it.
func New(cfg Config) (*Client, error) {
	if len(cfg.Addresses) == 0 {
		return nil, errors.New("policy client: no address of a policy service")
	}
	if cfg.Node == "" {
		return nil, errors.New("policy client: no node name")
	}
	if cfg.MinBackoff == 0 {
		cfg.MinBackoff = 100 * time.Millisecond
	}
	if cfg.MaxBackoff == 0 {
		cfg.MaxBackoff = 10 * time.Second
	}
	if cfg.AnswerTimeout == 0 {
		cfg.AnswerTimeout = 30 * time.Second
	}
	if cfg.StatsInterval == 0 {
		cfg.StatsInterval = 10 * time.Second
	}
	if cfg.Replica == nil {
		cfg.Replica = &storage.Replica{}
	}
	return &Client{cfg: cfg, replica: cfg.Replica}, nil
}

// Connected says whether there is a stream now.
func (c *Client) Connected() bool { return c.connected.Load() }

// Synced says whether the service's whole state has been in force since start.
func (c *Client) Synced() bool { return c.synced.Load() }

// Mismatches counts the cuts whose digest did not come out.
func (c *Client) Mismatches() uint64 { return c.mismatches.Load() }

// Repairs counts the times that the service was told what is held, since it was
// not what it must be: after a digest that did not come out, or on a new stream.
func (c *Client) Repairs() uint64 { return c.repairs.Load() }

// Rollbacks counts the streams that began with the state of an earlier position
// than was held.
func (c *Client) Rollbacks() uint64 { return c.rollbacks.Load() }

// Snapshot is the whole state held now, for a checkpoint; nil where there is
// none, or a wrong one. It may be called from any goroutine.
func (c *Client) Snapshot() *policyv1.Cut {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wrong || c.replica.Revision() == 0 {
		return nil
	}
	return c.replica.Snapshot()
}

// View lends the state to fn, until it returns. It is false, and fn not called,
// while the state is known to be wrong. It may be called from any goroutine,
// also from inside of Handler.Apply.
func (c *Client) View(fn func(state *storage.Replica)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wrong {
		return false
	}
	fn(c.replica)
	return true
}

// Run follows the stream until the context ends.
func (c *Client) Run(ctx context.Context, h Handler) error {
	pause, said := c.cfg.MinBackoff, ""
	for i := rand.IntN(len(c.cfg.Addresses)); ctx.Err() == nil; i++ {
		address := c.cfg.Addresses[i%len(c.cfg.Addresses)]
		log := c.cfg.Logger.With("server", address)
		served, spread, err := c.follow(ctx, address, h, log)
		c.connected.Store(false)
		if ctx.Err() != nil {
			break
		}
		if served {
			pause, said = c.cfg.MinBackoff, ""
		} else if c.turns > 0 {
			c.turns++
		}
		if err.Error() != said { // Once, and not with every attempt.
			said = err.Error()
			log.Warn("no stream of the policy service; what is enforced stays; trying on", "err", err)
		}
		wait := pause/2 + rand.N(pause/2+1) + rand.N(spread+1)
		if status.Code(err) == codes.Aborted { // Another shim speaks for this node.
			wait = c.cfg.MaxBackoff
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		pause = min(2*pause, c.cfg.MaxBackoff)
	}
	return ctx.Err()
}

// follow is one stream's life; served says whether the service brought this
// node's state to the present, and spread over how long its nodes should come back.
func (c *Client) follow(ctx context.Context, address string, h Handler, log hclog.Logger) (served bool, spread time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	creds := c.cfg.Credentials
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithInitialWindowSize(windowBytes),
		grpc.WithInitialConnWindowSize(connWindowBytes),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
	}
	if c.cfg.Dial != nil {
		options = append(options, grpc.WithContextDialer(c.cfg.Dial))
	}
	conn, err := grpc.NewClient(address, options...)
	if err != nil {
		return false, 0, fmt.Errorf("connect to %s: %w", address, err)
	}
	defer conn.Close()
	stream, err := policyv1.NewPolicyServiceClient(conn).Subscribe(ctx)
	if err != nil {
		return false, 0, fmt.Errorf("subscribe at %s: %w", address, err)
	}
	out := &sender{stream: stream, queue: make(chan *policyv1.SubscribeRequest, 16), stats: h.Stats, counters: h.Counters, every: c.cfg.StatsInterval, changed: c.cfg.StatsChanged}
	hello := c.hello()
	out.queue <- &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Hello{Hello: hello}}
	go out.run(ctx)
	if stats := h.Stats(); slices.ContainsFunc(stats.GetPorts(), func(p *policyv1.PortState) bool { return len(p.GetIps()) > 0 && !p.GetOpen() }) {
		// Whoever answers may know of these addresses from nobody else yet, and a Pod
		// waits. Of open ports it is told with the next stats.
		out.send(ctx, &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Stats{Stats: stats}})
	}
	c.mu.Lock()
	c.replica.Begin()
	c.mu.Unlock()
	frames, ended := make(chan *policyv1.SubscribeResponse), make(chan error, 1)
	go func() {
		for {
			resp, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case frames <- resp:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	}()
	retry := time.NewTicker(retryInterval)
	defer retry.Stop()
	overdue := time.NewTimer(c.cfg.AnswerTimeout)
	defer overdue.Stop()
	began, owing := false, true // Whether the service has answered, and whether it owes an answer.
	var refused uint64          // Revision that is not in force yet; zero for none.
	for {
		if now := !began || c.wrong; now != owing {
			owing = now
			overdue.Stop()
			if owing {
				overdue.Reset(c.cfg.AnswerTimeout)
			}
		}
		var resp *policyv1.SubscribeResponse
		select {
		case resp = <-frames:
		case err := <-ended:
			return served, spread, fmt.Errorf("receive from %s: %w", address, err)
		case <-overdue.C:
			return served, spread, fmt.Errorf("%s: no answer within %s", address, c.cfg.AnswerTimeout)
		case <-retry.C:
			if refused == 0 || c.wrong {
				continue
			}
			if answer := c.apply(ctx, refused, h, hclog.NewNullLogger()); answer.GetAck() != nil {
				log.Info("cut is in force at last", "revision", refused)
				refused = 0
				out.send(ctx, answer)
			}
			continue
		}
		first := !began
		if first {
			began = true
			c.connected.Store(true)
			spread = spreadOf(stream)
			log.Info("subscribed")
		}
		switch m := resp.GetMessage().(type) {
		case *policyv1.SubscribeResponse_InSync:
			if err := checkInSync(m.InSync, first && len(hello.GetDigest()) > 0); err != nil {
				return served, spread, fmt.Errorf("%s: %w", address, err)
			}
			served, c.turns = true, 0
			c.mu.Lock()
			c.replica.InSync(m.InSync)
			c.wrong = false
			c.mu.Unlock()
			log.Info("in sync", "revision", m.InSync.GetRevision())
			c.owe(nil)
			answer := c.apply(ctx, m.InSync.GetRevision(), h, log) // What comes from a checkpoint may not be in force yet.
			refused = answer.GetNack().GetRevision()
			out.send(ctx, answer)
		case *policyv1.SubscribeResponse_InventoryRequest:
			held, err := c.replica.Inventory(m.InventoryRequest)
			if err != nil {
				return served, spread, fmt.Errorf("%s: %w", address, err)
			}
			if len(m.InventoryRequest.GetScopes()) == 0 {
				c.repairs.Add(1)
				log.Warn("state is not the service's present one: telling what is held, to get what differs", "held", c.replica.Digest())
			}
			out.send(ctx, &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Inventory{Inventory: held}})
		case *policyv1.SubscribeResponse_Cut:
			answer, err := c.frame(ctx, m.Cut, h, log)
			if err != nil {
				return served, spread, fmt.Errorf("%s: %w", address, err)
			}
			if answer != nil {
				served = served || !c.wrong
				refused = answer.GetNack().GetRevision()
				out.send(ctx, answer)
			}
		case *policyv1.SubscribeResponse_Release:
			h.Release(ctx, m.Release.GetEndpoints())
		case *policyv1.SubscribeResponse_Probe:
			h.Probe(ctx, m.Probe, func(r *policyv1.ProbeResult) {
				out.send(ctx, &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Probe{Probe: r}})
			})
		default:
			return served, spread, errors.New("a message that is no cut, in-sync, inventory request, release or probe")
		}
	}
}

// checkInSync says what is wrong with an InSync; due says that the service was
// asked whether a state is the present one, and has answered nothing yet.
func checkInSync(m *policyv1.InSync, due bool) error {
	switch {
	case !due:
		return errors.New("in_sync that answers no digest of a hello")
	case m.GetEpoch() == "" || m.GetRevision() == 0:
		return fmt.Errorf("in_sync with epoch %q and revision %d", m.GetEpoch(), m.GetRevision())
	}
	return nil
}

// retryInterval is how often a cut that could not be put in force is tried again.
const retryInterval = 500 * time.Millisecond

func (c *Client) hello() *policyv1.Hello {
	h := &policyv1.Hello{Node: c.cfg.Node, Version: c.cfg.Version, Probes: true}
	if c.replica.Revision() != 0 {
		h.Digest, h.Position = c.replica.Digest().Bytes(), c.replica.Position()
	}
	return h
}

// spreadOf is what the service says about reconnecting.
func spreadOf(stream grpc.ClientStream) time.Duration {
	header, err := stream.Header()
	if err != nil {
		return 0
	}
	for _, v := range header.Get(spreadHeader) {
		if ms, err := strconv.ParseUint(v, 10, 32); err == nil {
			return min(time.Duration(ms)*time.Millisecond, maxSpread)
		}
	}
	return 0
}

// errBehind ends a stream that would take this node back, while others may not.
var errBehind = errors.New("the service stands behind what this node holds; asking again elsewhere")

// mayGoBack says whether a cut may be taken over that brings a stream's first
// state. One that is behind what is held may once the other addresses have had
// their turn; at a single address, which may be several replicas', once it is so again.
func (c *Client) mayGoBack(f *policyv1.Cut, log hclog.Logger) bool {
	now, held := storage.Position(f.GetPosition().GetSources()), c.replica.Position().GetSources()
	if now.Reaches(held) {
		c.turns = 0
		return true
	}
	if c.turns == 0 {
		c.turns = 1 // Run counts on.
		return false
	}
	if c.turns < max(2, len(c.cfg.Addresses)) {
		return false
	}
	c.turns = 0
	c.rollbacks.Add(1)
	log.Warn("the service stands behind what this node held; its state is taken over all the same", "position", now, "held", held)
	return true
}

// frame takes one frame, and where it was a cut's last, returns the answer.
func (c *Client) frame(ctx context.Context, f *policyv1.Cut, h Handler, log hclog.Logger) (*policyv1.SubscribeRequest, error) {
	if f.GetEpoch() != "" && !f.GetMore() && !c.mayGoBack(f, log) {
		return nil, errBehind
	}
	c.mu.Lock()
	touched, done, err := c.replica.Apply(f)
	held := c.replica.Digest()
	want, _ := storage.DigestFromBytes(f.GetDigest())
	if done {
		c.wrong = want != held
	}
	wrong := c.wrong
	c.mu.Unlock()
	if done {
		c.owe(touched)
	}
	if err != nil {
		return nil, fmt.Errorf("bad frame: %w", err)
	}
	if !done {
		return nil, nil
	}
	if wrong {
		c.mismatches.Add(1)
		log.Error("state differs from the service's: not applied, awaiting a repair", "revision", f.GetRevision(), "held", held, "want", want)
		return nack(f.GetRevision(), held, "digest differs", nil), nil
	}
	faultpoint.Reach("shim.cut.received")
	if len(f.GetHeld()) > 0 {
		h.Hold(ctx, f.GetHeld())
	}
	return c.apply(ctx, f.GetRevision(), h, log), ctx.Err()
}

// owe adds what the Handler is to be told of.
func (c *Client) owe(touched storage.Touched) {
	if c.owed == nil {
		c.owed = make(storage.Touched)
	}
	for id, ts := range touched {
		if have := c.owed[id]; have != nil {
			have.All = have.All || ts.All
			maps.Copy(have.Keys, ts.Keys)
		} else {
			c.owed[id] = ts
		}
	}
}

// apply has what is owed put in force, and returns the answer for it. What the
// Handler refuses stays owed, over the end of the stream too.
func (c *Client) apply(ctx context.Context, revision uint64, h Handler, log hclog.Logger) *policyv1.SubscribeRequest {
	start := time.Now()
	problems, err := h.Apply(ctx, c.replica, c.owed)
	faultpoint.Reach("shim.cut.applied")
	if err == nil {
		c.owed = nil
	}
	held := c.replica.Digest()
	switch {
	case err != nil:
		log.Error("cut is not in force", "revision", revision, "err", err)
		refused := nack(revision, held, err.Error(), nil)
		refused.GetNack().Causes = problems
		return refused
	case len(problems) > 0:
		c.synced.Store(true)
		return nack(revision, held, fmt.Sprintf("%d items are not realised: %s", len(problems), problems[0].GetError()), problems)
	}
	c.synced.Store(true)
	ack := &policyv1.Ack{Revision: revision, ApplyMicros: uint64(time.Since(start).Microseconds())} // With the cut's digest, which was compared.
	return &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Ack{Ack: ack}}
}

func nack(revision uint64, held storage.Digest, msg string, items []*policyv1.ItemError) *policyv1.SubscribeRequest {
	n := &policyv1.Nack{Revision: revision, Error: msg, Items: items, Digest: held.Bytes()}
	return &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Nack{Nack: n}}
}

// sender is the one goroutine that sends on a stream.
type sender struct {
	stream   grpc.BidiStreamingClient[policyv1.SubscribeRequest, policyv1.SubscribeResponse]
	queue    chan *policyv1.SubscribeRequest
	stats    func() *policyv1.NodeStats
	counters func(after uint64) ([]*policyv1.NodeStats, uint64)
	mark     uint64 // Of the counters that were told.
	every    time.Duration
	// changed says that the stats are to be sent now.
	changed <-chan struct{}
}

// statsPause is the least time between stats that are sent for what changed.
const statsPause = 20 * time.Millisecond

func (s *sender) send(ctx context.Context, m *policyv1.SubscribeRequest) {
	select {
	case s.queue <- m:
	case <-ctx.Done():
	}
}

func (s *sender) run(ctx context.Context) {
	_ = s.stream.Send(<-s.queue) // The Hello, before all else.
	ticker := time.NewTicker(s.every)
	defer ticker.Stop()
	changed, pause := s.changed, time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case m := <-s.queue:
			_ = s.stream.Send(m) // Where it fails, Recv has the stream's own error.
			if m.GetAck() != nil {
				faultpoint.Reach("shim.cut.answered")
			}
		case <-ticker.C:
			var stats []*policyv1.NodeStats
			stats, s.mark = s.counters(s.mark)
			s.report(stats...)
		case <-changed:
			s.report(s.stats())
			changed = nil
			pause.Reset(statsPause)
		case <-pause.C:
			changed = s.changed
		case <-ctx.Done():
			return
		}
	}
}

// report sends stats; nil is none.
func (s *sender) report(list ...*policyv1.NodeStats) {
	for _, stats := range list {
		if stats != nil {
			_ = s.stream.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Stats{Stats: stats}})
		}
	}
}
