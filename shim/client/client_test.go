package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/services/policy/server"
	"github.com/weirnet/weir/storage"
)

// handler hands every Apply to the test, which says what it returns.
type handler struct {
	calls chan call
	holds chan string // What was held and released.
	ports []*policyv1.PortState
}

// call is one Apply: what was touched, by key, and the members then held.
type call struct {
	touched map[string]bool
	members []string
	answer  chan error
}

func newHandler() *handler { return &handler{calls: make(chan call), holds: make(chan string, 8)} }

func (h *handler) Hold(_ context.Context, endpoints []string) {
	h.holds <- fmt.Sprint("held ", endpoints)
}
func (h *handler) Release(_ context.Context, endpoints []string) {
	h.holds <- fmt.Sprint("released ", endpoints)
}

func (h *handler) Apply(ctx context.Context, state *storage.Replica, touched storage.Touched) ([]*policyv1.ItemError, error) {
	c := call{touched: map[string]bool{}, answer: make(chan error, 1)}
	for id, ts := range touched {
		for key := range ts.Keys {
			c.touched[key] = true
		}
		if ts.All {
			c.touched[id.String()] = true
		}
	}
	state.Items(storage.ScopeAddressGroup, func(_ storage.ScopeID, item *policyv1.Item) {
		c.members = append(c.members, item.GetMember().GetPod().GetName())
	})
	select {
	case h.calls <- c:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case err := <-c.answer:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h *handler) Probe(_ context.Context, req *policyv1.ProbeRequest, answer func(*policyv1.ProbeResult)) {
	go answer(&policyv1.ProbeResult{Id: req.GetId(), Error: "tried"})
}

func (h *handler) Stats() *policyv1.NodeStats {
	return &policyv1.NodeStats{PacketInsLost: 7, Ports: h.ports}
}

// Counters tells of one rule in each of two messages, and which mark was given.
func (h *handler) Counters(after uint64) (out []*policyv1.NodeStats, mark uint64) {
	for _, rule := range []string{"a", "b"} {
		m := h.Stats()
		m.Reading, m.Rules, m.More = after, []*policyv1.RuleCounter{{Rule: rule}}, rule == "a"
		out = append(out, m)
	}
	return out, after + 1
}

// next waits for an Apply.
func (h *handler) next(t *testing.T) call {
	t.Helper()
	select {
	case c := <-h.calls:
		return c
	case <-time.After(10 * time.Second):
		t.Fatal("no cut came to the handler")
		return call{}
	}
}

func start(t *testing.T, cfg Config, h Handler) *Client {
	t.Helper()
	if cfg.Node == "" {
		cfg.Node = "node-1"
	}
	cfg.Version, cfg.Logger = "v1", hclog.NewNullLogger()
	if cfg.MinBackoff == 0 {
		cfg.MinBackoff, cfg.MaxBackoff = time.Millisecond, 10*time.Millisecond
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx, h) }()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

func serve(t *testing.T, register func(*grpc.Server), opts ...grpc.ServerOption) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(opts...)
	register(g)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	return l.Addr().String()
}

var (
	groupID = storage.NewScopeID(storage.ScopeAddressGroup, "g")
	otherID = storage.NewScopeID(storage.ScopeAddressGroup, "other")
)

func member(name string) storage.Encoded {
	return storage.Encode(&policyv1.Item{Body: &policyv1.Item_Member{Member: &policyv1.Member{
		Subject: &policyv1.Member_Pod{Pod: &policyv1.PodRef{Namespace: "ns", Name: name}}, Ips: [][]byte{{10, 0, 0, 1}}}}})
}

func put(s *storage.Store, id storage.ScopeID, name string) {
	s.Commit([]storage.Change{
		{Op: storage.OpJoin, Scope: id, Kind: storage.ScopeAddressGroup, Node: "node-1"},
		{Op: storage.OpUpsert, Scope: id, Kind: storage.ScopeAddressGroup, Item: member(name)},
	}, storage.Position{"manifests": 1})
}

type noModel struct{}

func (noModel) Policies() []engine.PolicyInfo                          { return nil }
func (noModel) Groups(bool) []engine.GroupInfo                         { return nil }
func (noModel) Definitions(func(string) bool) []engine.GroupDefinition { return nil }
func (noModel) Conflicts() map[api.Ref][]string                        { return nil }
func (noModel) PolicyUID(api.Ref) (string, bool)                       { return "", false }
func (noModel) Names(begin func()) []api.Ref                           { begin(); return nil }
func (noModel) Objects([]api.Ref) []server.Object                      { return nil }
func (noModel) Explain(*policyv1.ExplainRequest, func(string) bool) (*policyv1.ExplainResponse, error) {
	return nil, errors.New("from: no such Pod")
}
func (noModel) Ends(*policyv1.ExplainRequest) (from, to server.End, err error) {
	return from, to, errors.New("from: no such Pod")
}

// policyServer is the real one, which also answers what it knows of the node.
type policyServer struct {
	*server.Server
	address string
}

func realServer(t *testing.T, store *storage.Store) policyServer {
	t.Helper()
	s, err := server.New(server.Config{Store: store, Model: noModel{}, Registry: prometheus.NewRegistry(), Logger: hclog.NewNullLogger(),
		Synced:     func() bool { return true },
		MayInspect: func(context.Context) error { return nil },
		NodeOf:     func(context.Context) (string, error) { return "", nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go s.Run(ctx)
	return policyServer{s, serve(t, func(g *grpc.Server) { s.Register(g) }, grpc.ForceServerCodecV2(server.Codec()))}
}

// until asks for the node until it is as the condition says.
func (s policyServer) until(t *testing.T, what string, condition func(*policyv1.NodeSummary) bool) {
	t.Helper()
	deadline, tick := time.After(10*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := s.ListNodes(context.Background(), &policyv1.ListNodesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range resp.GetNodes() {
			if n.GetName() == "node-1" && condition(n) {
				return
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s; the service says %v", what, resp.GetNodes())
		}
	}
}

func TestSubscribeCutAck(t *testing.T) {
	store := storage.New("epoch")
	put(store, groupID, "a")
	s, h := realServer(t, store), newHandler()
	c := start(t, Config{Addresses: []string{s.address}}, h)
	first := h.next(t)
	if len(first.members) != 1 || c.Synced() {
		t.Errorf("the first cut has %v; synced %v before it is in force", first.members, c.Synced())
	}
	first.answer <- nil
	s.until(t, "acknowledged", func(n *policyv1.NodeSummary) bool { return n.GetInSync() && n.GetVersion() == "v1" })
	put(store, groupID, "b")
	second := h.next(t)
	if len(second.touched) != 1 || !second.touched[storage.PodKey("ns", "b")] || len(second.members) != 2 {
		t.Errorf("one member touches %v, and %v are held", second.touched, second.members)
	}
	second.answer <- nil
	s.until(t, "acknowledged", func(n *policyv1.NodeSummary) bool { return n.GetLag() == 0 && n.GetInSync() })
	if !c.Synced() || !c.Connected() || c.Snapshot().GetRevision() == 0 {
		t.Error("the client does not say that it is in sync")
	}
}

// A client that begins from a checkpoint gets no state again, and is in sync
// when the handler says that what it has is in force.
func TestResumesInSync(t *testing.T) {
	store := storage.New("epoch")
	put(store, groupID, "a")
	s, h := realServer(t, store), newHandler()
	held := &storage.Replica{}
	snapshot := start(t, Config{Addresses: []string{s.address}}, h)
	h.next(t).answer <- nil
	s.until(t, "acknowledged", func(n *policyv1.NodeSummary) bool { return n.GetInSync() })
	if _, _, err := held.Apply(snapshot.Snapshot()); err != nil {
		t.Fatal(err)
	}

	again := newHandler()
	c := start(t, Config{Addresses: []string{s.address}, Replica: held, MinBackoff: time.Hour, MaxBackoff: time.Hour}, again)
	confirm := again.next(t)
	if len(confirm.touched) != 0 || c.Synced() {
		t.Errorf("resuming touches %v; synced %v before the state is in force", confirm.touched, c.Synced())
	}
	confirm.answer <- nil
	put(store, groupID, "b")
	delta := again.next(t)
	if len(delta.touched) != 1 {
		t.Errorf("the first cut after resuming touches %v", delta.touched)
	}
	delta.answer <- nil
	if !c.Synced() {
		t.Error("not synced")
	}
}

// A cut that is refused is offered again until it is in force, and then
// acknowledged.
func TestRefusedCutIsAcknowledgedLater(t *testing.T) {
	store := storage.New("epoch")
	put(store, groupID, "a")
	s, h := realServer(t, store), newHandler()
	c := start(t, Config{Addresses: []string{s.address}}, h)
	h.next(t).answer <- errors.New("the bridge is away")
	s.until(t, "refused", func(n *policyv1.NodeSummary) bool { return n.GetLastError() == "the bridge is away" && !n.GetInSync() })
	if c.Synced() {
		t.Error("synced with a refused cut")
	}
	again := h.next(t)
	if !again.touched[groupID.String()] { // All of it: the scope is new.
		t.Errorf("the refused cut's items are not offered again, but %v", again.touched)
	}
	again.answer <- nil
	s.until(t, "acknowledged", func(n *policyv1.NodeSummary) bool { return n.GetInSync() && n.GetLastError() == "" })
}

// script is a policy service of which the test plays every stream.
type script struct {
	policyv1.UnimplementedPolicyServiceServer
	streams chan *played
}

// played is one stream: what the client sent, and what the test sends.
type played struct {
	requests chan *policyv1.SubscribeRequest
	stream   grpc.BidiStreamingServer[policyv1.SubscribeRequest, policyv1.SubscribeResponse]
	end      chan error
}

func (s *script) Subscribe(stream grpc.BidiStreamingServer[policyv1.SubscribeRequest, policyv1.SubscribeResponse]) error {
	p := &played{requests: make(chan *policyv1.SubscribeRequest, 64), stream: stream, end: make(chan error, 1)}
	go func() {
		defer close(p.requests)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			p.requests <- r
		}
	}()
	select {
	case s.streams <- p:
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	select {
	case err := <-p.end:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func newScript(t *testing.T) (*script, string) {
	s := &script{streams: make(chan *played)}
	return s, serve(t, func(g *grpc.Server) { policyv1.RegisterPolicyServiceServer(g, s) })
}

// next waits for a stream and its hello.
func (s *script) next(t *testing.T) (*played, *policyv1.Hello) {
	t.Helper()
	select {
	case p := <-s.streams:
		hello := p.request(t).GetHello()
		if hello.GetNode() != "node-1" {
			t.Fatalf("the first message is no hello of the node: %v", hello)
		}
		return p, hello
	case <-time.After(10 * time.Second):
		t.Fatal("no stream")
		return nil, nil
	}
}

func (p *played) request(t *testing.T) *policyv1.SubscribeRequest {
	t.Helper()
	select {
	case r, ok := <-p.requests:
		if !ok {
			t.Fatal("the client ended the stream")
		}
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("the client sends nothing")
		return nil
	}
}

// ended waits for the client to end the stream.
func (p *played) ended(t *testing.T) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case _, ok := <-p.requests:
			if !ok {
				return
			}
		case <-deadline:
			t.Fatal("the client goes on with the stream")
		}
	}
}

func (p *played) cut(t *testing.T, c *policyv1.Cut) {
	t.Helper()
	if err := p.stream.Send(&policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_Cut{Cut: c}}); err != nil {
		t.Fatal(err)
	}
}

// stateOf is a snapshot of what a replica holds after the cuts.
func stateOf(t *testing.T, cuts ...*policyv1.Cut) *policyv1.Cut {
	t.Helper()
	r := &storage.Replica{}
	for _, c := range cuts {
		if _, _, err := r.Apply(c); err != nil {
			t.Fatal(err)
		}
	}
	return r.Snapshot()
}

func scopeOf(id storage.ScopeID, names ...string) *policyv1.ScopeDelta {
	sd := &policyv1.ScopeDelta{Id: id[:], Kind: storage.ScopeAddressGroup, Reset_: true}
	for _, name := range names {
		sd.Upserts = append(sd.Upserts, &policyv1.Item{Body: &policyv1.Item_Member{Member: &policyv1.Member{
			Subject: &policyv1.Member_Pod{Pod: &policyv1.PodRef{Namespace: "ns", Name: name}}}}})
	}
	return sd
}

func cutOf(revision uint64, scopes ...*policyv1.ScopeDelta) *policyv1.Cut {
	return &policyv1.Cut{Epoch: "epoch", Revision: revision, Snapshot: true, Digest: make([]byte, 16), Scopes: scopes}
}

// A cut whose digest does not come out is refused and not applied. What the
// snapshot then does not mention, since the wrong cut took it away already, the
// handler hears of all the same.
func TestDigestMismatchAppliesNothing(t *testing.T) {
	s, address := newScript(t)
	h := newHandler()
	c := start(t, Config{Addresses: []string{address}}, h)
	p, _ := s.next(t)
	p.cut(t, stateOf(t, cutOf(1, scopeOf(groupID, "a"), scopeOf(otherID, "b"))))
	h.next(t).answer <- nil
	if ack := p.request(t).GetAck(); ack.GetRevision() != 1 {
		t.Fatalf("want an ack of 1, got %v", ack)
	}
	p.cut(t, &policyv1.Cut{Epoch: "epoch", Revision: 2, Digest: make([]byte, 16), Scopes: []*policyv1.ScopeDelta{{Id: otherID[:], Gone: true}}})
	nack := p.request(t).GetNack()
	if nack.GetRevision() != 2 || nack.GetError() != "digest differs" || c.Mismatches() != 1 {
		t.Fatalf("want a nack of 2, got %v", nack)
	}
	if c.Snapshot() != nil || c.View(func(*storage.Replica) {}) {
		t.Error("a state known to be wrong is lent")
	}
	p.cut(t, stateOf(t, cutOf(3, scopeOf(groupID, "a"))))
	right := h.next(t) // The handler was not called for the wrong cut.
	if len(right.members) != 1 || !right.touched[otherID.String()] {
		t.Errorf("the snapshot brings %v and touches %v, without the scope that is gone", right.members, right.touched)
	}
	right.answer <- nil
	if ack := p.request(t).GetAck(); ack.GetRevision() != 3 {
		t.Errorf("want an ack of 3, got %v", ack)
	}
	if c.Snapshot().GetRevision() != 3 {
		t.Error("the right state is not lent")
	}
}

// A stream that ends with a cut refused is resumed from what is held, but
// acknowledged only when that is in force.
func TestRefusedCutIsNotResumedAsInForce(t *testing.T) {
	s, address := newScript(t)
	h := newHandler()
	c := start(t, Config{Addresses: []string{address}}, h)
	p, _ := s.next(t)
	p.cut(t, stateOf(t, cutOf(1, scopeOf(groupID, "a"))))
	h.next(t).answer <- errors.New("the bridge is away")
	if p.request(t).GetNack() == nil {
		t.Fatal("not refused")
	}
	p.end <- status.Error(codes.Unavailable, "going")
	p, hello := s.next(t)
	if len(hello.GetDigest()) != 16 {
		t.Errorf("the state held is not resumed from: %v", hello)
	}
	inSync := &policyv1.InSync{Epoch: "epoch", Revision: 2}
	if err := p.stream.Send(&policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_InSync{InSync: inSync}}); err != nil {
		t.Fatal(err)
	}
	again := h.next(t)
	if !again.touched[groupID.String()] { // All of it: the scope is new.
		t.Errorf("what was refused is not offered again, but %v", again.touched)
	}
	again.answer <- errors.New("still away")
	if nack := p.request(t).GetNack(); nack.GetRevision() != 2 || c.Synced() {
		t.Errorf("want a nack of 2, got %v", nack)
	}
	h.next(t).answer <- nil
	if p.request(t).GetAck().GetRevision() != 2 || !c.Synced() {
		t.Error("not acknowledged")
	}
}

// What cannot be read ends the stream; the client keeps what it has, and comes
// again.
func TestMalformedMessageEndsTheStream(t *testing.T) {
	s, address := newScript(t)
	h := newHandler()
	start(t, Config{Addresses: []string{address}}, h)
	good := stateOf(t, cutOf(1, scopeOf(groupID, "a")))
	p, _ := s.next(t)
	p.cut(t, good)
	h.next(t).answer <- nil
	p.request(t)
	for _, test := range []struct {
		name string
		resp *policyv1.SubscribeResponse
	}{
		{"empty", &policyv1.SubscribeResponse{}},
		{"no revision", &policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_Cut{Cut: &policyv1.Cut{Epoch: "epoch", Digest: make([]byte, 16)}}}},
		{"short digest", &policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_Cut{Cut: &policyv1.Cut{Epoch: "epoch", Revision: 2, Digest: []byte{1}}}}},
		{"short scope", &policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_Cut{Cut: &policyv1.Cut{Epoch: "epoch", Revision: 2, Digest: make([]byte, 16),
			Scopes: []*policyv1.ScopeDelta{{Id: []byte{1}, Kind: storage.ScopeAddressGroup}}}}}},
		{"item without body", &policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_Cut{Cut: &policyv1.Cut{Epoch: "epoch", Revision: 2, Digest: make([]byte, 16),
			Scopes: []*policyv1.ScopeDelta{{Id: groupID[:], Kind: storage.ScopeAddressGroup, Upserts: []*policyv1.Item{{}}}}}}}},
	} {
		if err := p.stream.Send(test.resp); err != nil {
			t.Fatal(err)
		}
		p.ended(t)
		var hello *policyv1.Hello
		if p, hello = s.next(t); string(hello.GetDigest()) != string(good.GetDigest()) {
			t.Errorf("%s: the client comes again without the state that it had", test.name)
		}
	}
}

// A cut whose stream ends between two frames leaves nothing behind.
func TestHalfACutIsForgotten(t *testing.T) {
	s, address := newScript(t)
	h := newHandler()
	start(t, Config{Addresses: []string{address}}, h)
	p, _ := s.next(t)
	p.cut(t, &policyv1.Cut{Epoch: "epoch", Revision: 1, Snapshot: true, More: true, Scopes: []*policyv1.ScopeDelta{scopeOf(groupID, "half")}})
	p.end <- status.Error(codes.Unavailable, "going")
	p, _ = s.next(t)
	p.cut(t, stateOf(t, cutOf(2, scopeOf(otherID, "whole"))))
	got := h.next(t)
	got.answer <- nil
	if len(got.members) != 1 || got.members[0] != "whole" {
		t.Errorf("the state is %v", got.members)
	}
	p.request(t)
}

// Two shims of one node do not throw each other out in turns: the one that was
// replaced waits the longest pause.
func TestReplacedClientBacksOff(t *testing.T) {
	s, address := newScript(t)
	const pause = 300 * time.Millisecond
	start(t, Config{Addresses: []string{address}, MinBackoff: time.Millisecond, MaxBackoff: pause}, newHandler())
	p, _ := s.next(t)
	ended := time.Now()
	p.end <- status.Error(codes.Aborted, "replaced by a newer stream of this node")
	p, _ = s.next(t)
	if waited := time.Since(ended); waited < pause {
		t.Errorf("replaced, the client comes again after %v", waited)
	}
	ended = time.Now()
	p.end <- status.Error(codes.Unavailable, "going")
	if s.next(t); time.Since(ended) >= pause {
		t.Error("another end of the stream is waited for as long")
	}
}

func TestStatsAreSent(t *testing.T) {
	s, address := newScript(t)
	start(t, Config{Addresses: []string{address}, StatsInterval: time.Millisecond}, newHandler())
	for range 2 { // On a new stream all is told anew.
		p, _ := s.next(t)
		for mark := range uint64(3) {
			for _, rule := range []string{"a", "b"} {
				got := p.request(t).GetStats()
				if got.GetPacketInsLost() != 7 || got.GetReading() != mark || got.GetRules()[0].GetRule() != rule || got.GetMore() != (rule == "a") {
					t.Errorf("stats: %v, want rule %s after mark %d", got, rule, mark)
				}
			}
		}
		p.end <- status.Error(codes.Unavailable, "going")
	}
}

// Where only open ports have addresses, a stream begins with the Hello alone: a
// reconnect is short.
func TestOpenPortsAreToldLater(t *testing.T) {
	s, address := newScript(t)
	h := newHandler()
	h.ports = []*policyv1.PortState{{Interface: "if-web", Ips: [][]byte{{10, 0, 0, 1}}, Open: true}}
	changed := make(chan struct{}, 1)
	start(t, Config{Addresses: []string{address}, StatsInterval: time.Hour, StatsChanged: changed}, h)
	p, _ := s.next(t)
	select {
	case got := <-p.requests:
		t.Errorf("after the Hello: %v", got)
	case <-time.After(50 * time.Millisecond):
	}
	changed <- struct{}{}
	if got := p.request(t).GetStats(); len(got.GetPorts()) != 1 {
		t.Errorf("a change: %v", got)
	}
}

// Stats with addresses of closed ports go with a stream's Hello, and again at once when they
// change; what changes many times in a moment goes once or twice.
func TestPortsAreToldAtOnce(t *testing.T) {
	s, address := newScript(t)
	h := newHandler()
	h.ports = []*policyv1.PortState{{Interface: "if-web", Ips: [][]byte{{10, 0, 0, 1}}}}
	changed := make(chan struct{}, 1)
	start(t, Config{Addresses: []string{address}, StatsInterval: time.Hour, StatsChanged: changed}, h)
	p, _ := s.next(t)
	if got := p.request(t).GetStats(); len(got.GetPorts()) != 1 {
		t.Fatalf("first after Hello: %v", got)
	}
	began := time.Now()
	for range 3 {
		changed <- struct{}{}
		if got := p.request(t).GetStats(); len(got.GetPorts()) != 1 {
			t.Fatalf("a change: %v", got)
		}
	}
	if took := time.Since(began); took < 2*statsPause {
		t.Errorf("three reports in %v", took)
	}
}

// What the service holds is held before the cut is put in force, and released
// once the node concerned has applied it.
func TestHoldAndRelease(t *testing.T) {
	store := storage.New("epoch")
	put(store, groupID, "a")
	store.Commit([]storage.Change{{Op: storage.OpJoin, Scope: otherID, Kind: storage.ScopeAddressGroup, Node: "node-2"}}, nil)
	s, own, peer := realServer(t, store), newHandler(), newHandler()
	start(t, Config{Addresses: []string{s.address}}, own)
	start(t, Config{Addresses: []string{s.address}, Node: "node-2"}, peer)
	own.next(t).answer <- nil
	peer.next(t).answer <- nil
	key, at := storage.PodKey("ns", "b"), func(id storage.ScopeID) storage.Change {
		return storage.Change{Op: storage.OpUpsert, Scope: id, Kind: storage.ScopeAddressGroup, Item: member("b")}
	}
	s.Commit([]storage.Change{at(groupID), at(otherID)}, nil, engine.Moves{Arrivals: []engine.Arrival{
		{Node: "node-1", Key: key, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Awaited: []storage.ScopeID{otherID}}}})
	own.told(t, "held ["+key+"]")
	own.next(t).answer <- nil
	select {
	case got := <-own.holds:
		t.Fatalf("%s before the other node has answered", got)
	default:
	}
	peer.next(t).answer <- nil
	own.told(t, "released ["+key+"]")
}

func (h *handler) told(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-h.holds:
		if got != want {
			t.Fatalf("told %q, want %q", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("never told %q", want)
	}
}
