package server

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/storage"
)

// barriers know which nodes have yet to apply that an address has come or gone,
// and so whose ports are to stay closed:
//
//	commit: an endpoint arrives ──► its node's cut says that it is held
//	        the nodes that await it, or have to
//	        forget its address's former owner
//	ack, ack, ack … of these nodes ─┐
//	the other replicas: done at ours ┴► its node's stream gets a Release
//
// Nodes that are not connected are not waited for, and nothing is waited for
// longer than barrierAge: a shim gives up before. So what is kept is bounded by
// the moves of that time.
type barriers struct {
	store    *storage.Store
	sessions *sessions
	replicas *replicas // The others; nil for none.
	settled  prometheus.Histogram
	expired  prometheus.Counter

	waiting atomic.Int32 // Nodes in waits; an ack looks no further where there are none.

	mu       sync.Mutex                       // Taken before Store's and sessions' own.
	arrivals map[string]map[string]*arrival   // Unsettled, by node and endpoint key.
	vacated  map[netip.Addr]*barrier          // Addresses that their owner gave up.
	waits    map[string]map[*barrier]struct{} // By node, what waits for it.
	changed  chan struct{}                    // Closed when an arrival is there or settled; nil while nobody watches.
}

// barrierAge is how long a move is remembered.
const barrierAge = time.Minute

// barrier waits for nodes.
type barrier struct {
	born    time.Time
	waiting map[string]uint64 // The revision that each has to apply.
	of      *arrival          // Nil: addresses that were given up.
	vacated []netip.Addr
}

type arrival struct {
	barrier
	engine.Arrival
	remote int  // Replicas that have not said that it is settled with them.
	told   bool // Its node was told to hold it.
}

func newBarriers(store *storage.Store, sessions *sessions) *barriers {
	return &barriers{
		store: store, sessions: sessions,
		arrivals: make(map[string]map[string]*arrival), vacated: make(map[netip.Addr]*barrier),
		waits: make(map[string]map[*barrier]struct{}),
		settled: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weir_policy_peer_barrier_seconds",
			Help: "Time until the nodes concerned had applied a new endpoint's address.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
		expired: prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_policy_peer_barriers_expired_total",
			Help: "New endpoints whose address some connected node concerned had not applied within a minute."}),
	}
}

// Commit commits what the engine changed, and begins to wait for what moved
// before any stream can tell of it.
func (s *Server) Commit(changes []storage.Change, position storage.Position, moves engine.Moves) (revision uint64) {
	if len(moves.Arrivals)+len(moves.Departures) == 0 {
		return s.cfg.Store.Commit(changes, position)
	}
	return s.barriers.commit(changes, position, moves, time.Now())
}

func (b *barriers) commit(changes []storage.Change, position storage.Position, moves engine.Moves, now time.Time) (revision uint64) {
	b.waiting.Add(1) // An ack of this commit must not overtake it.
	defer b.waiting.Add(-1)
	b.mu.Lock()
	defer b.mu.Unlock()
	holders := make([][]string, len(moves.Departures)) // The commit may end the scopes.
	for i, d := range moves.Departures {
		holders[i] = b.store.Followed(d.Scopes)
	}
	revision = b.store.Commit(changes, position)
	for i, d := range moves.Departures {
		gone := &barrier{born: now, waiting: make(map[string]uint64), vacated: d.Addresses}
		for _, node := range holders[i] {
			b.wait(gone, node, revision)
		}
		for _, a := range d.Addresses {
			if former := b.vacated[a]; former != nil {
				for node, rev := range former.waiting {
					b.wait(gone, node, rev)
				}
			}
			if len(gone.waiting) > 0 || b.replicas != nil {
				b.vacated[a] = gone
			}
		}
	}
	var others map[string]*grpc.ClientConn
	if b.replicas != nil {
		others = b.replicas.others()
	}
	var ask []*arrival
	for i := range moves.Arrivals {
		a := &arrival{Arrival: moves.Arrivals[i]}
		a.barrier = barrier{born: now, waiting: make(map[string]uint64), of: a}
		if b.begin(a, revision, len(others)) {
			ask = append(ask, a)
		}
	}
	if len(ask) > 0 {
		b.replicas.ask(others, ask, b)
	}
	b.announce()
	return revision
}

// begin registers an arrival where anyone has to be waited for; ask says that
// the other replicas are among them.
func (b *barriers) begin(a *arrival, revision uint64, others int) (ask bool) {
	concerned := len(a.Awaited) > 0
	for _, node := range b.store.Followed(a.Awaited) {
		b.wait(&a.barrier, node, revision)
	}
	for _, address := range a.Addresses {
		if gone := b.vacated[address]; gone != nil {
			concerned = true
			for node, rev := range gone.waiting {
				b.wait(&a.barrier, node, rev)
			}
		}
	}
	b.forget(&a.barrier, a.Node) // What it is sent of both comes in one cut, or in their order.
	if concerned {
		a.remote = others
	}
	if len(a.waiting) == 0 && a.remote == 0 {
		return false
	}
	if b.arrivals[a.Node] == nil {
		b.arrivals[a.Node] = make(map[string]*arrival)
	}
	if former := b.arrivals[a.Node][a.Key]; former != nil {
		b.drop(former)
		a.told = former.told // Whoever holds the former, holds this one.
	}
	b.arrivals[a.Node][a.Key] = a
	return a.remote > 0
}

func (b *barriers) wait(on *barrier, node string, revision uint64) {
	on.waiting[node] = max(on.waiting[node], revision)
	if b.waits[node] == nil {
		b.waits[node] = make(map[*barrier]struct{})
		b.waiting.Add(1)
	}
	b.waits[node][on] = struct{}{}
}

// forget waits for a node no more.
func (b *barriers) forget(on *barrier, node string) {
	if _, waits := on.waiting[node]; !waits {
		return
	}
	delete(on.waiting, node)
	delete(b.waits[node], on)
	if len(b.waits[node]) == 0 {
		delete(b.waits, node)
		b.waiting.Add(-1)
	}
}

// applied says that a node has a revision in force.
func (b *barriers) applied(node string, revision uint64) { b.pass(node, revision) }

// left says that a node is connected no more.
func (b *barriers) left(node string) { b.pass(node, ^uint64(0)) }

func (b *barriers) pass(node string, revision uint64) {
	if b.waiting.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for on := range b.waits[node] {
		if on.waiting[node] > revision {
			continue
		}
		b.forget(on, node)
		if on.of != nil {
			b.settle(on.of)
		} else if len(on.waiting) == 0 && b.replicas == nil {
			b.recall(on)
		}
	}
}

// settle lets an arrival go where nothing holds it any more.
func (b *barriers) settle(a *arrival) {
	if len(a.waiting) > 0 || b.arrivals[a.Node][a.Key] != a {
		return
	}
	b.announce() // It is settled here, whatever the others say.
	if a.remote > 0 {
		return
	}
	b.drop(a)
	b.settled.Observe(time.Since(a.born).Seconds())
	b.release(a)
}

// release has an arrival's node told, where it was told to hold it.
func (b *barriers) release(a *arrival) {
	if a.told {
		b.sessions.get(a.Node).release(a.Key)
	}
}

// drop forgets an arrival.
func (b *barriers) drop(a *arrival) {
	for node := range a.waiting {
		b.forget(&a.barrier, node)
	}
	delete(b.arrivals[a.Node], a.Key)
	if len(b.arrivals[a.Node]) == 0 {
		delete(b.arrivals, a.Node)
	}
}

// recall forgets addresses that were given up.
func (b *barriers) recall(gone *barrier) {
	for node := range gone.waiting {
		b.forget(gone, node)
	}
	for _, a := range gone.vacated {
		if b.vacated[a] == gone {
			delete(b.vacated, a)
		}
	}
}

// settledElsewhere says that another replica has no reason to hold arrivals.
func (b *barriers) settledElsewhere(arrivals ...*arrival) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range arrivals {
		a.remote--
		b.settle(a)
	}
}

// held are the endpoints of a node whose ports are to stay closed. The node is
// about to be told.
func (b *barriers) held(node string) (keys []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, a := range b.arrivals[node] {
		a.told = true
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// expire gives up what is too old.
func (b *barriers) expire(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, gone := range b.vacated {
		if now.Sub(gone.born) > barrierAge {
			b.recall(gone)
		}
	}
	for _, waits := range b.waits { // Also for those whose addresses were given up again since.
		for on := range waits {
			if on.of == nil && now.Sub(on.born) > barrierAge {
				b.recall(on)
			}
		}
	}
	for _, ofNode := range b.arrivals {
		for _, a := range ofNode {
			if now.Sub(a.born) > barrierAge {
				b.drop(a)
				b.expired.Inc()
				b.release(a)
			}
		}
	}
}

// watch returns a channel that is closed when an answer of here may differ.
func (b *barriers) watch() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return b.changed
}

func (b *barriers) announce() {
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

// here says that this replica knows an arrival of another, and none of its own
// nodes has to be waited for.
func (b *barriers) here(a *policyv1.Arrival) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if own := b.arrivals[a.GetNode()][a.GetKey()]; own != nil && len(own.waiting) > 0 {
		return false
	}
	body, ok := b.store.Item(storage.NewScopeID(storage.ScopeNode, a.GetNode()), a.GetKey())
	if !ok {
		return false
	}
	item := &policyv1.Item{}
	if err := proto.Unmarshal([]byte(body), item); err != nil {
		return false
	}
	return slices.EqualFunc(item.GetEndpoint().GetIps(), a.GetIps(), slices.Equal)
}
