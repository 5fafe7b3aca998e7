package churn

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config of a Run. All fields but Logf are required.
type Config struct {
	Seed    uint64
	Shims   int
	Changes int
	Rate    int // Changes a second.

	Disturbances int           // Of connections, a second.
	Hold         time.Duration // How long reads of a connection are held back, mostly at most.
	Stall        time.Duration // How long a replica's reading of a kind stalls, at most.
	ShimLife     time.Duration // How often a shim is started anew.
	ReplicaLife  time.Duration // How often a replica is stopped, on average.
	Sample       int           // Bridges that are compared flow by flow.

	Dir  string // Of the checkpoints.
	Logf Logf   // Of progress, and of the services' errors. Nil: none.
}

// Logf shows a line. As a Writer it is what the services log to.
type Logf func(format string, args ...any)

// Write implements io.Writer.
func (f Logf) Write(p []byte) (int, error) {
	f("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// Usage is what the process held when all was at rest.
type Usage struct {
	Objects    int
	Heap       uint64 // Bytes, after collection.
	Goroutines int
}

// Report is what a Run did and found.
type Report struct {
	Changes      int
	Took         time.Duration // Of the changes, without the rests.
	Disturbances Disturbances
	Connections  uint64 // That shims made.
	ShimStarts   int    // Beyond the first.
	ReplicaLives int    // Beyond the first.
	Flows        int    // Compared.

	Quarter, End Usage
	Counters     counts // Of all shims and replicas, by metric.
}

// run is a Run under way.
type run struct {
	cfg      Config
	cluster  *cluster
	record   *record
	network  *network
	replicas []*replica
	nodes    []*node
	done     atomic.Int64 // Changes.
	began    time.Time
}

// Run lets a cluster change, and says what came of it. An error is a fault: of
// what is tested, or of the test's own.
func Run(ctx context.Context, cfg Config) (report Report, err error) {
	r := newRun(cfg)
	defer func() { err = errors.Join(err, r.stop()) }()
	defer func() { r.count(&report) }()
	if err := r.begin(ctx); err != nil {
		return report, err
	}
	r.progress("begun")
	quarter := r.cfg.Changes / 4
	for _, phase := range []struct {
		changes int
		usage   *Usage
		name    string
	}{{quarter, &report.Quarter, "first quarter"}, {r.cfg.Changes - quarter, &report.End, "end"}} {
		start := time.Now()
		if err := r.churn(ctx, phase.changes); err != nil {
			return report, err
		}
		report.Took += time.Since(start)
		if err := r.settle(ctx); err != nil {
			return report, err
		}
		*phase.usage = r.usage(ctx, report.Quarter)
		r.progress(phase.name)
	}
	report.Flows, err = r.verify(ctx)
	return report, err
}

func newRun(cfg Config) *run {
	if cfg.Logf == nil {
		cfg.Logf = func(string, ...any) {}
	}
	r := &run{cfg: cfg, cluster: newCluster(cfg.Seed, cfg.Shims), record: newRecord(), network: newNetwork(cfg.Seed, cfg.Hold), began: time.Now()}
	for i := range 2 {
		r.replicas = append(r.replicas, newReplica(i, cfg, r.record, r.network))
	}
	for i, s := range r.cluster.nodes {
		r.nodes = append(r.nodes, newNode(i, s.name, cfg.Dir, r.replicas, r.network))
	}
	return r
}

// begin starts everything, and waits until all is in force.
func (r *run) begin(ctx context.Context) error {
	first, err := r.cluster.begin()
	if err != nil {
		return err
	}
	if err := r.enter(first); err != nil {
		return err
	}
	for _, replica := range r.replicas {
		if err := replica.start(); err != nil {
			return err
		}
	}
	for _, n := range r.nodes {
		if err := n.start(); err != nil {
			return err
		}
	}
	return r.settle(ctx)
}

// enter takes changes over: first what happens on the nodes, then what is
// told of it.
func (r *run) enter(changes []change) error {
	for _, c := range changes {
		for _, p := range c.ports {
			if err := r.nodes[p.node].do(p); err != nil {
				return err
			}
		}
		r.record.apply(c.event)
	}
	return nil
}

// churn makes so many changes, and disturbs everything meanwhile. Then it sees
// to it that nothing is disturbed any more.
func (r *run) churn(ctx context.Context, changes int) error {
	g, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g.Go(func() error { defer cancel(); return r.change(ctx, changes) })
	g.Go(func() error { return r.disturb(ctx) })
	g.Go(func() error { return r.restartShims(ctx) })
	g.Go(func() error { return r.restartReplicas(ctx) })
	g.Go(func() error { return r.tell(ctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	r.network.heal()
	for _, replica := range r.replicas {
		if err := replica.start(); err != nil {
			return err
		}
	}
	return nil
}

// every calls fn at once and then at intervals, until the context ends.
func every(ctx context.Context, interval func() time.Duration, fn func() error) error {
	for {
		if err := fn(); err != nil {
			return err
		}
		select {
		case <-time.After(interval()):
		case <-ctx.Done():
			return nil
		}
	}
}

// steady is always the same interval.
func steady(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// change makes changes at the rate.
func (r *run) change(ctx context.Context, changes int) error {
	const tick = 10 * time.Millisecond
	start, made := time.Now(), 0
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return every(ctx, steady(tick), func() error {
		due := min(changes, 1+int(time.Since(start).Seconds()*float64(r.cfg.Rate)))
		for made < due {
			next, err := r.cluster.next()
			if err != nil {
				return err
			}
			if err := r.enter(next); err != nil {
				return err
			}
			made += len(next)
			r.done.Add(int64(len(next)))
		}
		if made >= changes {
			cancel()
		}
		return nil
	})
}

func (r *run) disturb(ctx context.Context) error {
	return every(ctx, steady(time.Second/time.Duration(r.cfg.Disturbances)), func() error {
		r.network.disturb()
		return nil
	})
}

func (r *run) restartShims(ctx context.Context) error {
	random := rand.New(rand.NewPCG(r.cfg.Seed, 0x7368696d))
	return every(ctx, steady(r.cfg.ShimLife), func() error {
		return r.nodes[random.IntN(len(r.nodes))].restart()
	})
}

// restartReplicas stops a replica, gracefully or not, and starts it again
// after a while. The other one serves meanwhile.
func (r *run) restartReplicas(ctx context.Context) error {
	random := rand.New(rand.NewPCG(r.cfg.Seed, 0x7265706c))
	around := func(d time.Duration) func() time.Duration {
		return func() time.Duration { return d/2 + time.Duration(random.Int64N(int64(d))) }
	}
	var down *replica
	return every(ctx, around(r.cfg.ReplicaLife/2), func() error {
		if down != nil {
			up := down
			down = nil
			return up.start()
		}
		down = r.replicas[random.IntN(len(r.replicas))]
		return down.stop(random.IntN(2) == 0)
	})
}

// A connection that is not answered any more is noticed after 30 s.
const (
	leaveTimeout = 40 * time.Second
	lookInterval = 20 * time.Millisecond
)

// tell shows progress.
func (r *run) tell(ctx context.Context) error {
	started := false
	return every(ctx, steady(30*time.Second), func() error {
		if started {
			r.progress("under way")
		}
		started = true
		return nil
	})
}

func (r *run) progress(what string) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	d, connections := r.network.counted()
	lives := 0
	for _, replica := range r.replicas {
		lives += replica.counted(counts{}) - 1
	}
	r.cfg.Logf("%s, %s: %d changes, %d objects, %d connections made (%d cut, %d truncated, %d held), %d replica restarts, heap %d MB, %d goroutines",
		time.Since(r.began).Round(time.Second), what, r.done.Load(), r.record.count(), connections, d.Cut, d.Truncated, d.Held, lives, m.HeapAlloc>>20, runtime.NumGoroutine())
}

// usage is taken when connections that ended have gone from both ends: when
// the number of goroutines falls no more, and is as low as it was at a former
// rest, or will not be.
func (r *run) usage(ctx context.Context, former Usage) Usage {
	u := Usage{Objects: r.record.count(), Goroutines: runtime.NumGoroutine()}
	looks, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	same := 0
	_ = every(looks, steady(lookInterval), func() error {
		if n := runtime.NumGoroutine(); n < u.Goroutines {
			u.Goroutines, same = n, 0
		} else if same++; same >= 10 && (former.Goroutines == 0 || u.Goroutines <= former.Goroutines) {
			cancel()
		}
		return nil
	})
	runtime.GC()
	runtime.GC() // What had a finalizer.
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u.Heap = m.HeapAlloc
	return u
}

func (r *run) count(report *Report) {
	report.Changes, report.Counters = int(r.done.Load()), counts{}
	report.Disturbances, report.Connections = r.network.counted()
	for _, n := range r.nodes {
		report.ShimStarts += n.counted(report.Counters) - 1
	}
	for _, replica := range r.replicas {
		report.ReplicaLives += replica.counted(report.Counters) - 1
	}
}

// stop ends whatever runs.
func (r *run) stop() error {
	var g errgroup.Group
	g.SetLimit(16)
	for _, n := range r.nodes {
		g.Go(n.stop)
	}
	err := g.Wait()
	for _, replica := range r.replicas {
		err = errors.Join(err, replica.stop(false))
	}
	return errors.Join(err, os.RemoveAll(r.cfg.Dir))
}
