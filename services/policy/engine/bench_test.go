package engine

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// liveHeap is the heap after a collection, in bytes.
func liveHeap() float64 {
	runtime.GC()
	runtime.GC() // Sweeps what the first one found, and pools.
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// BenchmarkColdStart is a policy service that reads a whole cluster: engine
// and store, from objects that are there to every node's first cut being
// ready. The CPU time is the process's, with the garbage collections that fall
// into it; collected-cpu-s has a whole one more, which leaves none of the garbage
// to others. The heap is what stays: the objects, the engine and the store.
func BenchmarkColdStart(b *testing.B) {
	for _, tc := range workloads {
		b.Run(tc.name, func(b *testing.B) {
			var total, collected, engine time.Duration
			var heap, inputs, engineHeap float64
			for range b.N {
				b.StopTimer()
				before := liveHeap()
				w := newWorkload(tc.make)
				made := liveHeap()
				b.StartTimer()

				start := cpuTime()
				e, store := New(), storage.New("bench")
				w.apply(e)
				changes := e.Flush()
				flushed := cpuTime()
				store.Commit(changes, nil)
				total += cpuTime() - start
				engine += flushed - start
				changes = nil
				runtime.GC()
				collected += cpuTime() - start

				b.StopTimer()
				all := liveHeap()
				w.check(b, e, store)
				runtime.KeepAlive(e)
				e = nil
				rest := liveHeap()
				runtime.KeepAlive(w)
				runtime.KeepAlive(store)
				heap, inputs, engineHeap = heap+all-before, inputs+made-before, engineHeap+all-rest
				b.StartTimer()
			}
			n := float64(b.N)
			b.ReportMetric(total.Seconds()/n, "cpu-s/op")
			b.ReportMetric(collected.Seconds()/n, "collected-cpu-s/op")
			b.ReportMetric(engine.Seconds()/n, "engine-cpu-s/op")
			b.ReportMetric(heap/n/1e6, "heap-MB")
			b.ReportMetric(inputs/n/1e6, "inputs-MB")
			b.ReportMetric(engineHeap/n/1e6, "engine-MB")
		})
	}
}

// world is a workload that an engine and a store have taken in.
type world struct {
	*workload
	engine *Engine
	store  *storage.Store
}

func newWorld(fill func(*workload)) *world {
	w := &world{workload: newWorkload(fill), engine: New(), store: storage.New("bench")}
	w.apply(w.engine)
	w.store.Commit(w.engine.Flush(), nil)
	runtime.GC()
	return w
}

// The least number of events that percentiles are taken from.
const minEvents = 4000

// events measures single events: each is applied, flushed and committed by
// itself. It must change one endpoint and one member.
func (w *world) events(b *testing.B, next func() api.Event) {
	n := max(b.N, minEvents)
	took := make([]time.Duration, 0, n)
	endpoints, members := 0, 0
	count := func(changes []storage.Change) {
		for i := range changes {
			if op := changes[i].Op; op == storage.OpUpsert || op == storage.OpRemove {
				switch changes[i].Kind {
				case storage.ScopeNode:
					endpoints++
				case storage.ScopeAddressGroup:
					members++
				}
			}
		}
	}
	evs := make([]api.Event, n)
	for i := range evs {
		evs[i] = next()
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range evs {
		start := time.Now()
		w.engine.Apply(evs[i])
		changes := w.engine.Flush()
		w.store.Commit(changes, nil)
		took = append(took, time.Since(start))
		count(changes)
	}
	b.StopTimer()
	runtime.ReadMemStats(&after)
	if endpoints != n || members != n {
		b.Fatalf("%d events changed %d endpoints and %d members", n, endpoints, members)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[n/2].Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(took[n*99/100].Nanoseconds()), "p99-ns")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(n), "B/op")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(n), "allocs/op")
}

// BenchmarkPodEvent is one Pod that comes, goes, or changes its address or its
// labels, in a cluster of a workload's size.
func BenchmarkPodEvent(b *testing.B) {
	for _, tc := range workloads {
		var w *world
		var next func() api.Event
		b.Run(tc.name, func(b *testing.B) {
			if w == nil {
				w = newWorld(tc.make)
				next = w.podEvents()
			}
			w.events(b, next)
		})
	}
}

// podEvents gives random events, each of which changes one endpoint and one
// member: every Pod is a member of one address group, and of none under the
// labels that it gets.
func (w *world) podEvents() func() api.Event {
	rng := rand.New(rand.NewPCG(2, 2))
	idle := api.Labels{{Key: "idle", Value: "true"}}
	changed := map[int]bool{} // Pods that are not as in the workload.
	address := netip.MustParseAddr("10.128.0.0")
	return func() api.Event {
		i := rng.IntN(len(w.pods))
		original := w.pods[i]
		if changed[i] {
			delete(changed, i)
			return upsert(original)
		}
		changed[i] = true
		next := *original
		switch rng.IntN(3) {
		case 0:
			return api.Event{Ref: original.Ref()}
		case 1:
			address = address.Next()
			next.IPs = []netip.Addr{address}
		default:
			next.Labels = idle
		}
		return upsert(&next)
	}
}

// BenchmarkGroupMember is one member that comes into a group of a size, or
// leaves it.
func BenchmarkGroupMember(b *testing.B) {
	for _, size := range []int{100, 10000, 100000} {
		var w *world
		var next func() api.Event
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			if w == nil {
				w = newWorld(groupOf(size))
				next = w.memberEvents()
			}
			w.events(b, next)
		})
	}
}

func (w *world) memberEvents() func() api.Event {
	rng := rand.New(rand.NewPCG(3, 3))
	var in *api.Pod
	count := 0
	return func() api.Event {
		if in != nil {
			ref := in.Ref()
			in = nil
			return api.Event{Ref: ref}
		}
		count++
		p := *w.pods[0]
		p.Name, p.Node = "extra-"+strconv.Itoa(count), w.nodes[rng.IntN(len(w.nodes))].Name
		p.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 200, byte(count >> 8), byte(count)})}
		in = &p
		return upsert(in)
	}
}
