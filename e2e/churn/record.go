package churn

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/weirnet/weir/services/policy"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// kinds are those that change.
var kinds = []api.Kind{api.KindNamespace, api.KindNode, api.KindPod, api.KindNetworkPolicy,
	api.KindTier, api.KindClusterGroup, api.KindAntreaClusterNetworkPolicy}

// record is the cluster's objects as an API server has them: of each kind what
// there is, and a sequence of changes that can be watched from any point on.
type record struct {
	mu       sync.Mutex // Guards what follows, and the queues of the watches.
	objects  map[api.Kind]map[api.Ref]api.Object
	sequence map[api.Kind]uint64
	watches  map[*watch]struct{}
}

func newRecord() *record {
	r := &record{objects: map[api.Kind]map[api.Ref]api.Object{}, sequence: map[api.Kind]uint64{}, watches: map[*watch]struct{}{}}
	for _, kind := range kinds {
		r.objects[kind] = map[api.Ref]api.Object{}
	}
	return r
}

// apply takes in a change and tells who watches.
func (r *record) apply(e api.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kind := e.Ref.Kind
	if e.Object == nil {
		delete(r.objects[kind], e.Ref)
	} else {
		r.objects[kind][e.Ref] = e.Object
	}
	r.sequence[kind]++
	for w := range r.watches {
		w.queues[kind] = append(w.queues[kind], e)
		select {
		case w.arrived <- struct{}{}:
		default:
		}
	}
}

// count is how many objects there are.
func (r *record) count() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.objects {
		n += len(m)
	}
	return n
}

// listLocked is all objects of a kind, as events in no order.
func (r *record) listLocked(kind api.Kind) []api.Event {
	events := make([]api.Event, 0, len(r.objects[kind]))
	for ref, o := range r.objects[kind] {
		events = append(events, api.Event{Ref: ref, Object: o})
	}
	return events
}

// watch is one reader of a record, a policy.Source, as the informers of a real
// replica are: each kind is listed whole and then followed, at its own pace.
// Changes of a kind keep their order; those of an object that wait may be
// coalesced; kinds overtake each other, and now and then one stalls.
type watch struct {
	record  *record
	rand    *rand.Rand
	stall   time.Duration // The longest.
	arrived chan struct{} // One slot.

	lists  []policy.Batch           // To be told before all else.
	queues map[api.Kind][]api.Event // Guarded by record.mu.
	told   map[api.Kind]uint64      // Sequence up to which the kind was told.
	until  map[api.Kind]time.Time   // Kinds that stall.
}

// watch begins to follow the record. Its stalls are as long as given at most.
func (r *record) watch(seed uint64, stall time.Duration) *watch {
	w := &watch{record: r, rand: rand.New(rand.NewPCG(seed, 0x7761746368)), stall: stall, arrived: make(chan struct{}, 1),
		queues: map[api.Kind][]api.Event{}, told: map[api.Kind]uint64{}, until: map[api.Kind]time.Time{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, k := range w.rand.Perm(len(kinds)) {
		kind := kinds[k]
		w.told[kind] = r.sequence[kind]
		w.lists = append(w.lists, policy.Batch{Events: r.listLocked(kind), Position: w.position(), Synced: i == len(kinds)-1})
	}
	r.watches[w] = struct{}{}
	return w
}

// position is how far the kinds have been told that were begun.
func (w *watch) position() storage.Position {
	p := storage.Position{}
	for kind, at := range w.told {
		p[kind.String()] = at
	}
	return p
}

// Run implements policy.Source: it forgets the watch when the context ends.
func (w *watch) Run(ctx context.Context) error {
	<-ctx.Done()
	w.record.mu.Lock()
	defer w.record.mu.Unlock()
	delete(w.record.watches, w)
	return nil
}

// Next implements policy.Source.
func (w *watch) Next(ctx context.Context) (policy.Batch, error) {
	if len(w.lists) > 0 {
		b := w.lists[0]
		w.lists = w.lists[1:]
		return b, nil
	}
	timer := time.NewTimer(w.pause())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return policy.Batch{}, ctx.Err()
	}
	for {
		events, next := w.take(time.Now())
		if len(events) > 0 {
			return policy.Batch{Events: events, Position: w.position(), Synced: true}, nil
		}
		timer.Reset(next)
		select {
		case <-timer.C:
		case <-w.arrived:
		case <-ctx.Done():
			return policy.Batch{}, ctx.Err()
		}
	}
}

// pause is the time that a change takes to arrive.
func (w *watch) pause() time.Duration {
	return time.Duration(w.rand.IntN(20_000)) * time.Microsecond
}

// take is what arrives at once, and where that is nothing, when to look again.
func (w *watch) take(now time.Time) (events []api.Event, next time.Duration) {
	w.record.mu.Lock()
	defer w.record.mu.Unlock()
	next = time.Hour
	for _, k := range w.rand.Perm(len(kinds)) {
		kind := kinds[k]
		queue := w.queues[kind]
		if len(queue) == 0 {
			continue
		}
		if w.rand.IntN(1000) == 0 {
			w.until[kind] = now.Add(time.Duration(w.rand.Int64N(int64(w.stall) + 1)))
		}
		if left := w.until[kind].Sub(now); left > 0 {
			next = min(next, left)
			continue
		}
		n := len(queue)
		if w.rand.IntN(4) == 0 {
			n = 1 + w.rand.IntN(n)
		}
		w.told[kind] += uint64(n)
		w.queues[kind] = slices.Clone(queue[n:])
		if w.rand.IntN(2) == 0 {
			events = append(events, coalesce(queue[:n])...)
		} else {
			events = append(events, queue[:n]...)
		}
	}
	return events, next
}

// coalesce leaves the last event of each object.
func coalesce(events []api.Event) []api.Event {
	last := make(map[api.Ref]int, len(events))
	for i, e := range events {
		last[e.Ref] = i
	}
	var out []api.Event
	for i, e := range events {
		if last[e.Ref] == i {
			out = append(out, e)
		}
	}
	return out
}

// final is a policy.Source of a record as it stands, in one batch.
type final struct{ batches chan policy.Batch }

func (r *record) final() final {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := policy.Batch{Position: storage.Position{}, Synced: true}
	for _, kind := range kinds {
		b.Events = append(b.Events, r.listLocked(kind)...)
	}
	f := final{make(chan policy.Batch, 1)}
	f.batches <- b
	return f
}

// Run implements policy.Source.
func (f final) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Next implements policy.Source.
func (f final) Next(ctx context.Context) (policy.Batch, error) {
	select {
	case b := <-f.batches:
		return b, nil
	case <-ctx.Done():
		return policy.Batch{}, ctx.Err()
	}
}
