package server

import (
	"maps"
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
// What moves in one commit and in one scope waits for the same nodes, once: so
// a commit costs what it moves and the spans of the scopes that it touches, and
// not their product.
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

	mu       sync.Mutex                     // Taken before Store's and sessions' own.
	arrivals map[string]map[string]*arrival // Unsettled, by node and endpoint key.
	vacated  map[netip.Addr]*departure      // Addresses that their owner gave up.
	waits    map[string]map[*wait]struct{}  // By node, what waits for it.
	leaving  []*wait                        // For nodes that a scope was taken from: until then they may enforce what it said last.
	changed  chan struct{}                  // Closed when an arrival is there or settled; nil while nobody watches.
}

// barrierAge is how long a move is remembered.
const barrierAge = time.Minute

// wait is the nodes of a scope that have to apply a revision.
type wait struct {
	born     time.Time
	revision uint64
	nodes    map[string]struct{} // That have not.
	arrivals map[*arrival]struct{}
}

// over says that nobody but the given node is waited for: what a node is sent of
// its own endpoint and of a group comes in one cut, or in their order.
func (w *wait) over(but string) bool {
	_, own := w.nodes[but]
	return len(w.nodes) == 0 || own && len(w.nodes) == 1
}

// ended says that nobody is waited for.
func (w *wait) ended() bool { return len(w.nodes) == 0 }

// departure is an address that was given up.
type departure struct {
	born  time.Time
	waits []*wait
}

type arrival struct {
	engine.Arrival
	born   time.Time
	waits  map[*wait]struct{} // That are not over.
	remote int                // Replicas that have not said that it is settled with them.
	told   bool               // Its node was told to hold it.
}

func newBarriers(store *storage.Store, sessions *sessions) *barriers {
	return &barriers{
		store: store, sessions: sessions,
		arrivals: make(map[string]map[string]*arrival), vacated: make(map[netip.Addr]*departure),
		waits: make(map[string]map[*wait]struct{}),
		settled: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weir_policy_peer_barrier_seconds",
			Help: "Time until the nodes concerned had applied a new endpoint's address.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
		expired: prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_policy_peer_barriers_expired_total",
			Help: "New endpoints whose address some connected node concerned had not applied within a minute."}),
	}
}

// Commit commits what the engine changed, and begins to wait for what moved
// before any stream can tell of it.
func (s *Server) Commit(changes []storage.Change, position storage.Position, moves engine.Moves) (revision uint64) {
	now := time.Now()
	if len(moves.Arrivals)+len(moves.Departures) == 0 && !slices.ContainsFunc(changes, takesScope) {
		revision = s.cfg.Store.Commit(changes, position)
	} else {
		revision = s.barriers.commit(changes, position, moves, now)
	}
	s.commits.add(revision, now)
	return revision
}

// takesScope says whether nodes lose a scope by a change.
func takesScope(c storage.Change) bool { return c.Op == storage.OpLeave || c.Op == storage.OpDrop }

func (b *barriers) commit(changes []storage.Change, position storage.Position, moves engine.Moves, now time.Time) (revision uint64) {
	b.waiting.Add(1) // An ack of this commit must not overtake it.
	defer b.waiting.Add(-1)
	b.mu.Lock()
	defer b.mu.Unlock()
	left := make(map[storage.ScopeID]*wait) // Of the nodes before the commit, which may end the scopes.
	for _, d := range moves.Departures {
		for _, id := range d.Scopes {
			if left[id] == nil {
				left[id] = b.begin(now, id)
			}
		}
	}
	leaving := b.leave(changes, now)
	revision = b.store.Commit(changes, position)
	for _, w := range left {
		w.revision = revision
	}
	leaving.revision = revision
	for _, d := range moves.Departures {
		b.depart(d, left, now)
	}
	var others map[string]*grpc.ClientConn
	if b.replicas != nil {
		others = b.replicas.others()
	}
	var ask []*arrival
	awaited := make(map[storage.ScopeID]*wait)
	for _, moved := range moves.Arrivals {
		for _, id := range moved.Awaited {
			if awaited[id] == nil {
				awaited[id] = b.begin(now, id)
				awaited[id].revision = revision
			}
		}
		if a := b.arrive(moved, awaited, len(others), now); a != nil && a.remote > 0 {
			ask = append(ask, a)
		}
	}
	if len(ask) > 0 {
		b.replicas.ask(others, ask, b)
	}
	b.announce()
	return revision
}

// leave waits for the nodes that changes take scopes from. Whoever goes from a
// group after that is not told to them.
func (b *barriers) leave(changes []storage.Change, now time.Time) *wait {
	of := make(map[storage.ScopeID]struct{})
	for _, c := range changes {
		switch c.Op {
		case storage.OpLeave:
			of[storage.NewScopeID(storage.ScopeNode, c.Node)] = struct{}{}
		case storage.OpDrop:
			of[c.Scope] = struct{}{}
		}
	}
	w := b.begin(now, slices.Collect(maps.Keys(of))...)
	b.leaving = append(slices.DeleteFunc(b.leaving, (*wait).ended), w)
	return w
}

// begin waits for the nodes that follow scopes.
func (b *barriers) begin(now time.Time, ids ...storage.ScopeID) *wait {
	w := &wait{born: now, nodes: make(map[string]struct{}), arrivals: make(map[*arrival]struct{})}
	for _, node := range b.store.Followed(ids) {
		w.nodes[node] = struct{}{}
		if b.waits[node] == nil {
			b.waits[node] = make(map[*wait]struct{})
			b.waiting.Add(1)
		}
		b.waits[node][w] = struct{}{}
	}
	return w
}

// depart remembers who has to forget addresses.
func (b *barriers) depart(d engine.Departure, left map[storage.ScopeID]*wait, now time.Time) {
	var waits []*wait
	add := func(w *wait) {
		if !w.ended() && !slices.Contains(waits, w) {
			waits = append(waits, w)
		}
	}
	for _, id := range d.Scopes {
		add(left[id])
	}
	for _, w := range b.leaving {
		add(w)
	}
	for _, a := range d.Addresses {
		if former := b.vacated[a]; former != nil {
			for _, w := range former.waits {
				add(w)
			}
		}
	}
	if len(waits) == 0 && b.replicas == nil {
		return
	}
	for _, a := range d.Addresses {
		b.vacated[a] = &departure{born: now, waits: waits}
	}
}

// arrive registers an arrival where anyone has to be waited for; nil where nobody.
func (b *barriers) arrive(moved engine.Arrival, awaited map[storage.ScopeID]*wait, others int, now time.Time) *arrival {
	a := &arrival{Arrival: moved, born: now, waits: make(map[*wait]struct{})}
	add := func(w *wait) {
		if !w.over(a.Node) {
			a.waits[w], w.arrivals[a] = struct{}{}, struct{}{}
		}
	}
	concerned := len(a.Awaited) > 0
	for _, id := range a.Awaited {
		add(awaited[id])
	}
	for _, address := range a.Addresses {
		if gone := b.vacated[address]; gone != nil {
			concerned = true
			for _, w := range gone.waits {
				add(w)
			}
		}
	}
	if concerned {
		a.remote = others
	}
	if len(a.waits) == 0 && a.remote == 0 {
		return nil
	}
	if b.arrivals[a.Node] == nil {
		b.arrivals[a.Node] = make(map[string]*arrival)
	}
	if former := b.arrivals[a.Node][a.Key]; former != nil {
		a.told = former.told // Whoever holds the former, holds this one.
		for w := range former.waits {
			delete(w.arrivals, former)
		}
	}
	b.arrivals[a.Node][a.Key] = a
	return a
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
	for w := range b.waits[node] {
		if w.revision <= revision {
			b.forget(w, node)
		}
	}
}

// forget waits for a node no more.
func (b *barriers) forget(w *wait, node string) {
	delete(w.nodes, node)
	delete(b.waits[node], w)
	if len(b.waits[node]) == 0 {
		delete(b.waits, node)
		b.waiting.Add(-1)
	}
	if len(w.nodes) > 1 {
		return
	}
	for a := range w.arrivals {
		if w.over(a.Node) {
			delete(w.arrivals, a)
			delete(a.waits, w)
			b.settle(a)
		}
	}
}

// settle lets an arrival go where nothing holds it any more.
func (b *barriers) settle(a *arrival) {
	if len(a.waits) > 0 || b.arrivals[a.Node][a.Key] != a {
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
	for w := range a.waits {
		delete(w.arrivals, a)
	}
	delete(b.arrivals[a.Node], a.Key)
	if len(b.arrivals[a.Node]) == 0 {
		delete(b.arrivals, a.Node)
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

// expire gives up what is too old, and forgets addresses for which nobody is
// waited any more.
func (b *barriers) expire(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := func(born time.Time) bool { return now.Sub(born) > barrierAge }
	for _, ofNode := range b.arrivals {
		for _, a := range ofNode {
			if old(a.born) {
				b.drop(a)
				b.expired.Inc()
				b.release(a)
			}
		}
	}
	for node, waits := range b.waits {
		for w := range waits {
			if old(w.born) {
				b.forget(w, node)
			}
		}
	}
	b.leaving = slices.DeleteFunc(b.leaving, (*wait).ended)
	for address, d := range b.vacated {
		d.waits = slices.DeleteFunc(slices.Clone(d.waits), (*wait).ended)
		if old(d.born) || len(d.waits) == 0 && b.replicas == nil {
			delete(b.vacated, address)
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
	if own := b.arrivals[a.GetNode()][a.GetKey()]; own != nil && len(own.waits) > 0 {
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
