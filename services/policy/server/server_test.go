package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/storage"
)

// fixture is a server on a pipe. The node that a caller may be stands in node.
type fixture struct {
	t      *testing.T
	store  *storage.Store
	server *Server
	conn   *grpc.ClientConn
	synced bool
	stop   context.CancelFunc // Ends Run, and not the gRPC server.

	mu   sync.Mutex
	node string
}

type noModel struct{}

func (noModel) Policies() []engine.PolicyInfo                          { return nil }
func (noModel) Groups(bool) []engine.GroupInfo                         { return nil }
func (noModel) Definitions(func(string) bool) []engine.GroupDefinition { return nil }
func (noModel) Conflicts() map[api.Ref][]string                        { return nil }
func (noModel) PolicyUID(api.Ref) (string, bool)                       { return "", false }
func (noModel) Explain(*policyv1.ExplainRequest, func(string) bool) (*policyv1.ExplainResponse, error) {
	return nil, errors.New("from: no such Pod")
}
func (noModel) Ends(*policyv1.ExplainRequest) (from, to End, err error) {
	return from, to, errors.New("from: no such Pod")
}

func (noModel) Names(begin func()) []api.Ref { begin(); return nil }
func (noModel) Objects([]api.Ref) []Object   { return nil }

func newFixture(t *testing.T) *fixture {
	pipe := bufconn.Listen(1 << 20)
	return newReplica(t, "epoch", pipe, nil, "passthrough:pipe",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }))
}

// newReplica is a server that knows of others.
func newReplica(t *testing.T, epoch string, listener net.Listener, replicas []string, target string, dial ...grpc.DialOption) *fixture {
	f := &fixture{t: t, store: storage.New(epoch), synced: true}
	allow := func(context.Context) error { return nil }
	s, err := New(Config{Store: f.store, Model: noModel{}, Registry: prometheus.NewRegistry(), Logger: hclog.NewNullLogger(),
		Synced:     func() bool { return f.synced },
		MayInspect: allow, MayReplicate: allow, Replicas: replicas,
		NodeOf: func(context.Context) (string, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.node == "refused" {
				return "", errors.New("no certificate")
			}
			return f.node, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	f.server = s
	g := grpc.NewServer(grpc.ForceServerCodecV2(Codec()), grpc.MaxRecvMsgSize(1<<20))
	s.Register(g)
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	t.Cleanup(cancel)
	go s.Run(ctx)
	go g.Serve(listener)
	t.Cleanup(g.Stop)
	f.conn, err = grpc.NewClient(target, append(dial, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.conn.Close() })
	return f
}

type client struct {
	t       *testing.T
	stream  grpc.BidiStreamingClient[policyv1.SubscribeRequest, policyv1.SubscribeResponse]
	replica storage.Replica
}

func (f *fixture) subscribe(hello *policyv1.Hello) *client {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	f.t.Cleanup(cancel)
	stream, err := policyv1.NewPolicyServiceClient(f.conn).Subscribe(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	c := &client{t: f.t, stream: stream}
	if hello != nil {
		c.send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Hello{Hello: hello}})
	}
	return c
}

func (c *client) send(m *policyv1.SubscribeRequest) {
	c.t.Helper()
	if err := c.stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
		c.t.Fatal(err)
	}
}

// cut receives the next cut and applies it.
func (c *client) cut() *policyv1.Cut {
	c.t.Helper()
	for {
		resp, err := c.stream.Recv()
		if err != nil {
			c.t.Fatal(err)
		}
		frame := resp.GetCut()
		if frame == nil {
			c.t.Fatalf("got %v, want a cut", resp)
		}
		_, done, err := c.replica.Apply(frame)
		if err != nil {
			c.t.Fatal(err)
		}
		if done {
			return frame
		}
	}
}

func (c *client) ack(revision uint64, digest []byte) {
	c.t.Helper()
	c.send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Ack{Ack: &policyv1.Ack{Revision: revision, Digest: digest}}})
}

// ends receives until the stream's end and checks its code.
func (c *client) ends(want codes.Code) {
	c.t.Helper()
	for {
		if _, err := c.stream.Recv(); err != nil {
			if status.Code(err) != want {
				c.t.Fatalf("the stream ends with %v, want %v", err, want)
			}
			return
		}
	}
}

var groupID = storage.NewScopeID(storage.ScopeAddressGroup, "g")

func (f *fixture) member(name string) { f.memberAt(name, 1) }

// memberAt commits a member of a group that node-1 holds.
func (f *fixture) memberAt(name string, position uint64) {
	f.store.Commit([]storage.Change{
		{Op: storage.OpJoin, Scope: groupID, Kind: storage.ScopeAddressGroup, Node: "node-1"},
		{Op: storage.OpUpsert, Scope: groupID, Kind: storage.ScopeAddressGroup, Item: storage.Encode(&policyv1.Item{Body: &policyv1.Item_Member{
			Member: &policyv1.Member{Subject: &policyv1.Member_Pod{Pod: &policyv1.PodRef{Namespace: "ns", Name: name}}, Ips: [][]byte{{10, 0, 0, 1}}}}})},
	}, storage.Position{"manifests": position})
}

func hello(node string) *policyv1.Hello { return &policyv1.Hello{Node: node} }

func TestSnapshotThenDeltasThenResume(t *testing.T) {
	f := newFixture(t)
	f.member("a")
	c := f.subscribe(hello("node-1"))
	first := c.cut()
	if !first.GetSnapshot() {
		t.Error("the first cut is no snapshot")
	}
	c.ack(first.GetRevision(), first.GetDigest())
	f.member("b")
	second := c.cut()
	if second.GetSnapshot() || len(second.GetScopes()) != 1 || len(second.GetScopes()[0].GetUpserts()) != 1 {
		t.Errorf("the delta of one member is %v", second)
	}
	if !bytes.Equal(c.replica.Digest().Bytes(), second.GetDigest()) {
		t.Error("digest differs")
	}
	c.ack(second.GetRevision(), second.GetDigest())

	again := f.subscribe(&policyv1.Hello{Node: "node-1", Digest: second.GetDigest()})
	resp, err := again.stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetInSync() == nil {
		t.Fatalf("a node in sync gets %v", resp)
	}
	if n := proto.Size(resp); n > 200 {
		t.Errorf("in sync costs %d bytes", n)
	}
}

// tell answers an inventory request out of the client's replica.
func (c *client) tell() {
	c.t.Helper()
	resp, err := c.stream.Recv()
	if err != nil || resp.GetInventoryRequest() == nil {
		c.t.Fatalf("got %v, %v; want an inventory request", resp, err)
	}
	m, err := c.replica.Inventory(resp.GetInventoryRequest())
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Inventory{Inventory: m}})
}

func TestAStaleNodeIsBroughtForward(t *testing.T) {
	f := newFixture(t)
	f.member("a")
	old := f.subscribe(hello("node-1"))
	first := old.cut()
	f.member("b")
	stale := f.subscribe(&policyv1.Hello{Node: "node-1", Digest: first.GetDigest()})
	if _, _, err := stale.replica.Apply(first); err != nil {
		t.Fatal(err)
	}
	stale.tell()
	if cut := stale.cut(); cut.GetSnapshot() || !bytes.Equal(stale.replica.Digest().Bytes(), cut.GetDigest()) {
		t.Errorf("got %v", cut)
	}
}

// A digest that is not the cut's is answered with a repair, and when that did
// not help, with a snapshot. What was under way meanwhile counts no more.
func TestWrongDigestIsRepaired(t *testing.T) {
	f := newFixture(t)
	f.member("a")
	c := f.subscribe(hello("node-1"))
	first := c.cut()
	f.member("b")
	second := c.cut()
	c.ack(first.GetRevision(), make([]byte, 16))
	c.tell()
	c.ack(second.GetRevision(), make([]byte, 16))
	repair := c.cut()
	if repair.GetSnapshot() || len(repair.GetScopes()) != 0 || !bytes.Equal(repair.GetDigest(), second.GetDigest()) {
		t.Errorf("got %v, want a repair of nothing", repair)
	}
	c.ack(repair.GetRevision(), make([]byte, 16))
	if cut := c.cut(); !cut.GetSnapshot() {
		t.Errorf("got %v, want a snapshot", cut)
	}
}

// A replica that stands behind a node waits for its sources.
func TestAReplicaThatIsBehindWaits(t *testing.T) {
	f := newFixture(t)
	f.member("a")
	before := f.subscribe(hello("node-1")).cut()
	ahead := f.subscribe(&policyv1.Hello{Node: "node-1", Digest: make([]byte, 16), Position: &policyv1.Position{Sources: storage.Position{"manifests": 2}}})
	if _, _, err := ahead.replica.Apply(before); err != nil {
		t.Fatal(err)
	}
	f.store.Commit(nil, storage.Position{"manifests": 2})
	ahead.tell()
	if cut := ahead.cut(); cut.GetPosition().GetSources()["manifests"] != 2 {
		t.Errorf("served at %v", cut.GetPosition())
	}
}

// A node in sync that stood ahead of a replica is told so at once, and gets
// nothing of what lies between: it has been through that.
func TestANodeInSyncIsNotTakenBack(t *testing.T) {
	f := newFixture(t)
	f.member("a")
	f.store.Commit([]storage.Change{{Op: storage.OpJoin, Scope: groupID, Kind: storage.ScopeAddressGroup, Node: "node-2"}}, storage.Position{"manifests": 1})
	held := f.subscribe(hello("node-1")).cut()
	witness := f.subscribe(hello("node-2"))
	witness.cut()
	ahead := f.subscribe(&policyv1.Hello{Node: "node-1", Digest: held.GetDigest(), Position: &policyv1.Position{Sources: storage.Position{"manifests": 3}}})
	if resp, err := ahead.stream.Recv(); err != nil || resp.GetInSync() == nil {
		t.Fatalf("got %v, %v; want to be in sync", resp, err)
	}
	if _, _, err := ahead.replica.Apply(held); err != nil {
		t.Fatal(err)
	}
	ahead.ack(held.GetRevision(), held.GetDigest())
	f.memberAt("between", 2)
	witness.cut() // It is on its way to whom it concerns.
	f.store.Commit([]storage.Change{{Op: storage.OpRemove, Scope: groupID, Item: storage.Encoded{Key: storage.PodKey("ns", "between")}}}, storage.Position{"manifests": 3})
	f.memberAt("later", 4)
	for ahead.replica.Item(groupID, storage.PodKey("ns", "later")) == nil {
		ahead.cut()
		if ahead.replica.Item(groupID, storage.PodKey("ns", "between")) != nil {
			t.Fatal("the node is taken back to a member that is gone")
		}
	}
}

// goneStream is of a caller who has gone after its hello, as gRPC has it.
type goneStream struct {
	subscribeStream
	ctx context.Context
}

func (s goneStream) Context() context.Context { return s.ctx }
func (s goneStream) Recv() (*policyv1.SubscribeRequest, error) {
	return &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Hello{Hello: hello("node-1")}}, nil
}
func (s goneStream) SetHeader(metadata.MD) error {
	return status.Error(codes.Internal, "transport: SendHeader called multiple times")
}

func TestACallerWhoHasGoneIsNoFailure(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := f.server.Subscribe(goneStream{ctx: ctx}); status.Code(err) != codes.Canceled {
		t.Errorf("the call ends with %v", err)
	}
}

func TestANodeMayNotHoldManyStreams(t *testing.T) {
	f := newFixture(t)
	se := f.server.sessions.get("node-1")
	for range maxCalls {
		if !se.enter() {
			t.Fatal("refused too early")
		}
	}
	f.subscribe(hello("node-1")).ends(codes.ResourceExhausted)
	se.leave()
	f.subscribe(hello("node-1")).cut()
}

// Unacknowledged cuts are bounded; what changes meanwhile comes as one.
func TestASlowNodeGetsCoalescedCuts(t *testing.T) {
	f := newFixture(t)
	c := f.subscribe(hello("node-1"))
	cuts := []*policyv1.Cut{c.cut()}
	for i := range 100 {
		f.member(string(rune('a'+i%26)) + string(rune('a'+i/26)))
		if i == 0 {
			cuts = append(cuts, c.cut())
		}
	}
	c.ack(cuts[0].GetRevision(), cuts[0].GetDigest())
	third := c.cut()
	if n := len(third.GetScopes()[0].GetUpserts()); n != 99 {
		t.Errorf("the third cut has %d members, want the 99 that came meanwhile", n)
	}
}

func TestTheNewerStreamOfANodeReplacesTheOlder(t *testing.T) {
	f := newFixture(t)
	old := f.subscribe(hello("node-1"))
	old.cut()
	f.subscribe(hello("node-1")).cut()
	old.ends(codes.Aborted)
}

// A replica that stops gives its streams back at once, so that no node waits
// at it for changes that it does not read any more.
func TestStreamsEndWhenTheServerStops(t *testing.T) {
	f := newFixture(t)
	f.member("m1")
	c := f.subscribe(hello("node-1"))
	c.cut()
	f.stop()
	c.ends(codes.Unavailable)
}

func TestANodeReadsItsOwnSpanOnly(t *testing.T) {
	f := newFixture(t)
	f.node = "node-2"
	f.subscribe(hello("node-1")).ends(codes.PermissionDenied)
	f.mu.Lock()
	f.node = "refused"
	f.mu.Unlock()
	f.subscribe(hello("node-1")).ends(codes.PermissionDenied)
}

func TestNobodyIsServedBeforeTheSourcesAreRead(t *testing.T) {
	f := newFixture(t)
	f.synced = false
	f.subscribe(hello("node-1")).ends(codes.Unavailable)
	_, err := policyv1.NewInspectionServiceClient(f.conn).ListNodes(context.Background(), &policyv1.ListNodesRequest{})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("ListNodes: %v", err)
	}
}

func TestBadMessagesEndTheirOwnStreamOnly(t *testing.T) {
	f := newFixture(t)
	good := f.subscribe(hello("node-1"))
	good.cut()
	ack := func(rev uint64, digest []byte) *policyv1.SubscribeRequest {
		return &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Ack{Ack: &policyv1.Ack{Revision: rev, Digest: digest}}}
	}
	for name, tc := range map[string]struct {
		messages []*policyv1.SubscribeRequest
		want     codes.Code
	}{
		"no hello":              {[]*policyv1.SubscribeRequest{ack(1, make([]byte, 16))}, codes.InvalidArgument},
		"empty":                 {[]*policyv1.SubscribeRequest{{}}, codes.InvalidArgument},
		"hello without node":    {[]*policyv1.SubscribeRequest{{Message: &policyv1.SubscribeRequest_Hello{Hello: &policyv1.Hello{}}}}, codes.InvalidArgument},
		"hello of short digest": {[]*policyv1.SubscribeRequest{{Message: &policyv1.SubscribeRequest_Hello{Hello: &policyv1.Hello{Node: "n", Digest: []byte{1}}}}}, codes.InvalidArgument},
		"second hello":          {[]*policyv1.SubscribeRequest{{Message: &policyv1.SubscribeRequest_Hello{Hello: hello("n")}}, {Message: &policyv1.SubscribeRequest_Hello{Hello: hello("n")}}}, codes.InvalidArgument},
		"ack of short digest":   {[]*policyv1.SubscribeRequest{{Message: &policyv1.SubscribeRequest_Hello{Hello: hello("n")}}, ack(1, []byte{1})}, codes.InvalidArgument},
		"ack of the future":     {[]*policyv1.SubscribeRequest{{Message: &policyv1.SubscribeRequest_Hello{Hello: hello("n")}}, ack(1<<60, make([]byte, 16))}, codes.InvalidArgument},
		"unasked inventories":   {[]*policyv1.SubscribeRequest{{Message: &policyv1.SubscribeRequest_Hello{Hello: hello("n")}}, {Message: &policyv1.SubscribeRequest_Inventory{}}, {Message: &policyv1.SubscribeRequest_Inventory{}}}, codes.InvalidArgument},
		"nack without error":    {[]*policyv1.SubscribeRequest{{Message: &policyv1.SubscribeRequest_Hello{Hello: hello("n")}}, {Message: &policyv1.SubscribeRequest_Nack{Nack: &policyv1.Nack{Revision: 1}}}}, codes.InvalidArgument},
		"oversized":             {[]*policyv1.SubscribeRequest{{Message: &policyv1.SubscribeRequest_Hello{Hello: hello(string(make([]byte, 2<<20)))}}}, codes.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			c := f.subscribe(nil)
			for _, m := range tc.messages {
				c.send(m)
			}
			c.ends(tc.want)
		})
	}
	t.Run("not protobuf", func(t *testing.T) {
		stream, err := f.conn.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
			policyv1.PolicyService_Subscribe_FullMethodName, grpc.ForceCodecV2(rawCodec{}))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg([]byte{0xff, 0xff, 0xff}); err != nil {
			t.Fatal(err)
		}
		var b []byte
		if err := stream.RecvMsg(&b); status.Code(err) != codes.Internal {
			t.Errorf("the stream ends with %v", err)
		}
	})
	f.member("a") // The good stream has seen nothing of it.
	if cut := good.cut(); len(cut.GetScopes()) != 1 {
		t.Errorf("got %v", cut)
	}
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (rawCodec) Unmarshal(d mem.BufferSlice, v any) error { *v.(*[]byte) = d.Materialize(); return nil }
func (rawCodec) Name() string                             { return "proto" }

var _ encoding.CodecV2 = rawCodec{}

func TestListNodesTellsLagAndErrors(t *testing.T) {
	f := newFixture(t)
	f.member("a")
	inspect := policyv1.NewInspectionServiceClient(f.conn)
	node := func() *policyv1.NodeSummary {
		resp, err := inspect.ListNodes(context.Background(), &policyv1.ListNodesRequest{})
		if err != nil || len(resp.GetNodes()) != 1 {
			t.Fatalf("%v, %v", resp, err)
		}
		return resp.GetNodes()[0]
	}
	if n := node(); n.GetConnected() || n.GetLag() == 0 {
		t.Errorf("before it connects: %v", n)
	}
	c := f.subscribe(hello("node-1"))
	cut := c.cut()
	c.send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Nack{Nack: &policyv1.Nack{Revision: cut.GetRevision(), Error: "bridge is away", Digest: cut.GetDigest()}}})
	waitFor(t, func() bool { n := node(); return n.GetLastError() == "bridge is away" && !n.GetInSync() })
	f.member("b")
	cut = c.cut()
	c.ack(cut.GetRevision(), cut.GetDigest())
	waitFor(t, func() bool { n := node(); return n.GetLastError() == "" && n.GetInSync() && n.GetLag() == 0 })
}

// A policy says on which nodes an item of it is not enforced, and why; others
// of the same cut are realised, where the rest of it is in force.
func TestPoliciesSayWhatNodesRefuse(t *testing.T) {
	for name, tc := range map[string]struct {
		nack     func(*policyv1.ItemError) *policyv1.Nack
		realized uint32 // Of the policy that nothing is wrong with.
	}{
		"an item fails by itself":      {func(e *policyv1.ItemError) *policyv1.Nack { return &policyv1.Nack{Items: []*policyv1.ItemError{e}} }, 1},
		"the cut fails because of one": {func(e *policyv1.ItemError) *policyv1.Nack { return &policyv1.Nack{Causes: []*policyv1.ItemError{e}} }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			scope := storage.NewScopeID(storage.ScopePolicies, "policies")
			f.store.Commit([]storage.Change{{Op: storage.OpJoin, Scope: scope, Kind: storage.ScopePolicies, Node: "node-1"}}, nil)
			policy := func(name string) engine.PolicyInfo {
				item := storage.Encode(&policyv1.Item{Body: &policyv1.Item_Policy{Policy: &policyv1.Policy{
					Ref: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: name}}}})
				f.store.Commit([]storage.Change{{Op: storage.OpUpsert, Scope: scope, Kind: storage.ScopePolicies, Item: item}}, nil)
				return engine.PolicyInfo{Wire: &policyv1.Policy{Ref: &policyv1.PolicyRef{Name: name}}, Items: []engine.ItemPlace{{Scope: scope, Key: item.Key}}}
			}
			bad, good := policy("bad"), policy("good")
			known := func(p engine.PolicyInfo) *Realization {
				return &f.server.gather(t.Context(), newReach(f.store, []engine.PolicyInfo{p}), false)[0]
			}
			failures := func(p engine.PolicyInfo) []engine.Fault { return known(p).faults() }
			c := f.subscribe(hello("node-1"))
			cut := c.cut()
			nack := tc.nack(&policyv1.ItemError{Scope: scope[:], Key: bad.Items[0].Key, Error: "no room"})
			nack.Revision, nack.Error, nack.Digest = cut.GetRevision(), "not all of it", cut.GetDigest()
			c.send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Nack{Nack: nack}})
			waitFor(t, func() bool { return len(failures(bad)) == 1 })
			if got := failures(bad)[0]; got != (engine.Fault{Reason: "RefusedByNode", Message: "node node-1: no room", Widens: true}) {
				t.Errorf("%+v", got)
			}
			if r := known(bad); r.Nodes != 1 || r.Realized() != 0 {
				t.Errorf("realised on %d of %d nodes", r.Realized(), r.Nodes)
			}
			if r := known(good); r.Realized() != int(tc.realized) || len(r.faults()) != 0 {
				t.Errorf("the other is realised on %d nodes, %v", r.Realized(), r.faults())
			}
			f.member("a") // Another cut, which succeeds.
			cut = c.cut()
			c.ack(cut.GetRevision(), cut.GetDigest())
			waitFor(t, func() bool { return len(failures(bad)) == 0 })
		})
	}
}

// waitFor asks until the answer is yes; each question goes over the wire.
func waitFor(t *testing.T, yes func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if yes() {
			return
		}
	}
	t.Fatal("it did not come about")
}
