package server

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/storage"
)

var pod = struct {
	key     string
	address netip.Addr
}{storage.PodKey("ns", "new"), netip.MustParseAddr("10.0.1.1")}

func nodeScope(name string) storage.ScopeID { return storage.NewScopeID(storage.ScopeNode, name) }

// nodes puts nodes into the store, those from the second on into the group.
func (f *fixture) nodes(names ...string) {
	var changes []storage.Change
	for i, n := range names {
		changes = append(changes, storage.Change{Op: storage.OpJoin, Scope: nodeScope(n), Kind: storage.ScopeNode, Node: n})
		if i > 0 {
			changes = append(changes, storage.Change{Op: storage.OpJoin, Scope: groupID, Kind: storage.ScopeAddressGroup, Node: n})
		}
	}
	f.server.Commit(changes, nil, engine.Moves{})
}

// arrive puts the Pod on node-1 and into the group, as the engine would.
func (f *fixture) arrive(awaited ...storage.ScopeID) {
	ips := [][]byte{pod.address.AsSlice()}
	f.server.Commit([]storage.Change{
		{Op: storage.OpUpsert, Scope: nodeScope("node-1"), Kind: storage.ScopeNode, Item: storage.Encode(&policyv1.Item{Body: &policyv1.Item_Endpoint{
			Endpoint: &policyv1.Endpoint{Namespace: "ns", Name: "new", Ips: ips}}})},
		{Op: storage.OpUpsert, Scope: groupID, Kind: storage.ScopeAddressGroup, Item: storage.Encode(&policyv1.Item{Body: &policyv1.Item_Member{
			Member: &policyv1.Member{Subject: &policyv1.Member_Pod{Pod: &policyv1.PodRef{Namespace: "ns", Name: "new"}}, Ips: ips}}})},
	}, nil, engine.Moves{Arrivals: []engine.Arrival{{Node: "node-1", Key: pod.key, Addresses: []netip.Addr{pod.address}, Awaited: awaited}}})
}

// depart takes the former owner of the Pod's address out of the group.
func (f *fixture) depart() {
	f.server.Commit([]storage.Change{
		{Op: storage.OpUpsert, Scope: groupID, Kind: storage.ScopeAddressGroup, Item: storage.Encode(&policyv1.Item{Body: &policyv1.Item_Member{
			Member: &policyv1.Member{Subject: &policyv1.Member_Pod{Pod: &policyv1.PodRef{Namespace: "ns", Name: "former"}}}}})},
	}, nil, engine.Moves{})
	f.server.Commit([]storage.Change{
		{Op: storage.OpRemove, Scope: groupID, Kind: storage.ScopeAddressGroup, Item: storage.Encoded{Key: storage.PodKey("ns", "former")}},
	}, nil, engine.Moves{Departures: []engine.Departure{{Addresses: []netip.Addr{pod.address}, Scopes: []storage.ScopeID{groupID}}}})
}

// departUntold takes the former owner of the Pod's address out of the group once
// node-2 has no part in that any more.
func (f *fixture) departUntold() {
	f.server.Commit([]storage.Change{{Op: storage.OpLeave, Scope: groupID, Kind: storage.ScopeAddressGroup, Node: "node-2"}}, nil, engine.Moves{})
	f.depart()
}

// settle takes cuts and acknowledges them until the node has what the store has.
func (c *client) settle(f *fixture, node string) *policyv1.Cut {
	c.t.Helper()
	for {
		cut := c.cut()
		c.ack(cut.GetRevision(), cut.GetDigest())
		if c.replica.Digest() == f.store.Node(node).Digest {
			return cut
		}
	}
}

// released receives a Release.
func (c *client) released() []string {
	c.t.Helper()
	resp, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	if resp.GetRelease() == nil {
		c.t.Fatalf("got %v, want a release", resp)
	}
	return resp.GetRelease().GetEndpoints()
}

func TestANewPodWaitsForTheNodesThatAwaitIt(t *testing.T) {
	held := []string{pod.key}
	nack := func(c *client, cut *policyv1.Cut, items ...*policyv1.ItemError) {
		c.send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Nack{Nack: &policyv1.Nack{
			Revision: cut.GetRevision(), Digest: cut.GetDigest(), Error: "a rule is not realised", Items: items}}})
	}
	for _, tc := range []struct {
		name    string
		arrive  func(f *fixture)
		held    bool
		release func(f *fixture, peer *client) // Nil: nothing is to release it.
	}{
		{"nobody awaits it", func(f *fixture) { f.arrive() }, false, nil},
		{"a node awaits it, and has it", func(f *fixture) { f.arrive(groupID) }, true, func(f *fixture, peer *client) { peer.settle(f, "node-2") }},
		{"a node awaits it, and goes", func(f *fixture) { f.arrive(groupID) }, true, func(f *fixture, peer *client) { peer.stream.CloseSend() }},
		{"a node awaits it, and cannot realise something else", func(f *fixture) { f.arrive(groupID) }, true, func(f *fixture, peer *client) {
			nack(peer, peer.cut(), &policyv1.ItemError{Scope: groupID[:], Key: "other", Error: "unknown"})
		}},
		{"its address had another owner when a node left the group", func(f *fixture) { f.departUntold(); f.arrive() }, true, func(f *fixture, peer *client) { peer.settle(f, "node-2") }},
		{"its address has just had another owner", func(f *fixture) { f.depart(); f.arrive() }, true, func(f *fixture, peer *client) { peer.settle(f, "node-2") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t)
			f.nodes("node-1", "node-2", "node-3") // The third is not connected.
			own, peer := f.subscribe(hello("node-1")), f.subscribe(hello("node-2"))
			for name, c := range map[string]*client{"node-1": own, "node-2": peer} {
				c.settle(f, name)
				waitFor(t, func() bool { return f.server.sessions.get(name).settled() })
			}
			tc.arrive(f)
			cut := own.settle(f, "node-1")
			if got := slices.Equal(cut.GetHeld(), held); got != tc.held {
				t.Fatalf("held: %v", cut.GetHeld())
			}
			if tc.release != nil {
				tc.release(f, peer)
				if got := own.released(); !slices.Equal(got, held) {
					t.Errorf("released: %v", got)
				}
			}
			waitFor(t, func() bool { return f.server.barriers.empty() })
		})
	}
}

// A node that refuses a cut as a whole has not applied it.
func TestARefusedCutReleasesNothing(t *testing.T) {
	f := newFixture(t)
	f.nodes("node-1", "node-2")
	own, peer := f.subscribe(hello("node-1")), f.subscribe(hello("node-2"))
	own.settle(f, "node-1")
	peer.settle(f, "node-2")
	f.arrive(groupID)
	if cut := own.settle(f, "node-1"); len(cut.GetHeld()) != 1 {
		t.Fatalf("held: %v", cut.GetHeld())
	}
	cut := peer.cut()
	peer.send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Nack{Nack: &policyv1.Nack{Revision: cut.GetRevision(), Digest: cut.GetDigest(), Error: "the bridge is away"}}})
	waitFor(t, func() bool { return f.server.sessions.get("node-2").err() != "" })
	if f.server.barriers.empty() {
		t.Fatal("the refused cut was taken as applied")
	}
	peer.ack(cut.GetRevision(), cut.GetDigest()) // In force at last.
	if got := own.released(); !slices.Equal(got, []string{pod.key}) {
		t.Errorf("released: %v", got)
	}
}

// What a node that never answers holds up is given up in the end.
func TestBarriersExpire(t *testing.T) {
	f := newFixture(t)
	f.nodes("node-1", "node-2")
	own, peer := f.subscribe(hello("node-1")), f.subscribe(hello("node-2"))
	own.settle(f, "node-1")
	peer.settle(f, "node-2")
	f.depart()
	f.arrive(groupID)
	own.settle(f, "node-1")
	f.server.barriers.expire(time.Now().Add(barrierAge / 2))
	if f.server.barriers.empty() {
		t.Error("given up too early")
	}
	f.server.barriers.expire(time.Now().Add(2 * barrierAge))
	if !f.server.barriers.empty() {
		t.Error("kept for ever")
	}
	if got := own.released(); !slices.Equal(got, []string{pod.key}) {
		t.Errorf("released: %v", got)
	}
}

// The concerned node is connected to another replica, which reads later.
func TestReplicasTellEachOther(t *testing.T) {
	var listeners []net.Listener
	var addresses []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners, addresses = append(listeners, l), append(addresses, l.Addr().String())
	}
	gone, err := net.Listen("tcp", "127.0.0.1:0") // A third is not there.
	if err != nil {
		t.Fatal(err)
	}
	addresses = append(addresses, gone.Addr().String())
	gone.Close()
	var f [2]*fixture
	for i, l := range listeners {
		f[i] = newReplica(t, fmt.Sprint("epoch-", i), l, addresses, "passthrough:"+addresses[i])
		f[i].nodes("node-1", "node-2")
		waitFor(t, func() bool { return len(f[i].server.barriers.replicas.others()) == len(addresses) })
	}
	own, peer := f[0].subscribe(hello("node-1")), f[1].subscribe(hello("node-2"))
	own.settle(f[0], "node-1")
	peer.settle(f[1], "node-2")

	f[0].arrive(groupID)
	if cut := own.settle(f[0], "node-1"); len(cut.GetHeld()) != 1 {
		t.Fatalf("held: %v", cut.GetHeld())
	}
	f[1].arrive(groupID)
	cut := peer.cut()
	if f[0].server.barriers.empty() {
		t.Fatal("released before the other replica's node has answered")
	}
	peer.ack(cut.GetRevision(), cut.GetDigest())
	if got := own.released(); !slices.Equal(got, []string{pod.key}) {
		t.Errorf("released: %v", got)
	}
	waitFor(t, func() bool { return f[1].server.barriers.empty() })
	if others := f[0].server.barriers.replicas.others(); len(others) != 2 { // Itself is not asked again.
		t.Errorf("%d others", len(others))
	}
}

func TestAwaitRefusesBadRequests(t *testing.T) {
	f := newFixture(t)
	good := &policyv1.Arrival{Node: "node-1", Key: pod.key, Ips: [][]byte{{10, 0, 0, 1}}}
	for _, tc := range []struct {
		name string
		req  *policyv1.AwaitRequest
		want codes.Code
	}{
		{"itself", &policyv1.AwaitRequest{Epoch: "epoch", Arrivals: []*policyv1.Arrival{good}}, codes.FailedPrecondition},
		{"no addresses", &policyv1.AwaitRequest{Arrivals: []*policyv1.Arrival{{Node: "node-1", Key: pod.key}}}, codes.InvalidArgument},
		{"too many", &policyv1.AwaitRequest{Arrivals: slices.Repeat([]*policyv1.Arrival{good}, maxArrivals+1)}, codes.InvalidArgument},
		{"an endpoint that never comes", &policyv1.AwaitRequest{Arrivals: []*policyv1.Arrival{good}}, codes.DeadlineExceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			answer, err := policyv1.NewReplicaServiceClient(f.conn).Await(ctx, tc.req)
			if err == nil {
				_, err = answer.Recv()
			}
			if status.Code(err) != tc.want {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}

// empty says that nothing is waited for.
func (b *barriers) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.arrivals) == 0 && len(b.waits) == 0 && (b.replicas != nil || len(b.vacated) == 0)
}

// settled says that the node has answered whatever it was sent.
func (se *session) settled() bool {
	se.mu.Lock()
	defer se.mu.Unlock()
	return se.stream != nil && len(se.stream.outstanding) == 0 && se.acked > 0
}

func (se *session) err() string {
	se.mu.Lock()
	defer se.mu.Unlock()
	return se.lastErr
}

// What moves in one commit waits for the nodes of a scope once, and not each for
// itself: a Namespace that goes must not cost its Pods times the cluster's nodes.
func TestMovesOfACommitWaitTogether(t *testing.T) {
	store := storage.New("epoch")
	var changes []storage.Change
	for i := range 100 {
		node := fmt.Sprint("node-", i)
		changes = append(changes, storage.Change{Op: storage.OpJoin, Scope: groupID, Kind: storage.ScopeAddressGroup, Node: node})
		store.Subscribe(node)
	}
	store.Commit(changes, nil)
	b := newBarriers(store, &sessions{byNode: make(map[string]*session)})
	var moves engine.Moves
	for i := range 1000 {
		address := []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}
		moves.Departures = append(moves.Departures, engine.Departure{Addresses: address, Scopes: []storage.ScopeID{groupID}})
		moves.Arrivals = append(moves.Arrivals, engine.Arrival{Node: "elsewhere", Key: fmt.Sprint(i), Addresses: address, Awaited: []storage.ScopeID{groupID}})
	}
	revision := b.commit([]storage.Change{{Op: storage.OpUpsert, Scope: groupID, Kind: storage.ScopeAddressGroup, Item: storage.Encode(
		&policyv1.Item{Body: &policyv1.Item_Member{Member: &policyv1.Member{Subject: &policyv1.Member_Pod{Pod: &policyv1.PodRef{Namespace: "ns", Name: "new"}}}}})}}, nil, moves, time.Now())
	waits := 0
	for _, of := range b.waits {
		waits += len(of)
	}
	if waits != 2*100 { // Who has to forget, and who awaits.
		t.Errorf("%d waits of 100 nodes", waits)
	}
	if held := len(b.held("elsewhere")); held != 1000 {
		t.Errorf("%d of 1000 are held", held)
	}
	for i := range 100 {
		if i == 99 && len(b.held("elsewhere")) != 1000 {
			t.Error("some are released before the last node has answered")
		}
		b.applied(fmt.Sprint("node-", i), revision)
	}
	if held := len(b.held("elsewhere")); held != 0 {
		t.Errorf("%d of 1000 are held in the end", held)
	}
	b.expire(time.Now())
	if !b.empty() {
		t.Error("something is left")
	}
}
