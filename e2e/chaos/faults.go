package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/weirnet/weir/e2e/chaos/invariant"
	"github.com/weirnet/weir/e2e/harness"
)

// Fault is something that is done to a World. Do returns when all that it stopped
// runs again.
type Fault struct {
	Name string
	Do   func(ctx context.Context, a *Act) error
}

// Act is one doing of a fault; what it does to whom is its journal.
type Act struct {
	*World
	*rand.Rand
	invariant.Fault
}

// What DESIGN.md promises: a dead switch is noticed within a second, its flows are
// back within another. Flows that others changed are mended at the next reading,
// every 4 s.
const (
	switchLimit = 2 * time.Second
	mendLimit   = 5 * time.Second
)

// claims are what faults that overlap must not do things to at once.
type claims struct {
	mu sync.Mutex // Guards of.
	of map[string]*sync.Mutex
}

// claim waits until nobody else has any of the names, which are of one fault.
func (c *claims) claim(names ...string) (release func()) {
	slices.Sort(names)
	var held []*sync.Mutex
	for _, name := range names {
		c.mu.Lock()
		m := c.of[name]
		if m == nil {
			m = new(sync.Mutex)
			c.of[name] = m
		}
		c.mu.Unlock()
		m.Lock()
		held = append(held, m)
	}
	return func() {
		for _, m := range held {
			m.Unlock()
		}
	}
}

// claimed says whether a fault has a name now.
func (c *claims) claimed(name string) bool {
	c.mu.Lock()
	m := c.of[name]
	c.mu.Unlock()
	if m == nil || !m.TryLock() {
		return m != nil
	}
	m.Unlock()
	return false
}

// node chooses one.
func (a *Act) node() *harness.Node { return a.Nodes[nodeNames[a.IntN(len(nodeNames))]] }

// between chooses how long something lasts.
func (a *Act) between(from, to time.Duration) time.Duration {
	return from + time.Duration(a.Int64N(int64(to-from)))
}

// last lets a fault last.
func (a *Act) last(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func (a *Act) tell(format string, args ...any) { a.Detail = fmt.Sprintf(format, args...) }

// starts is when the fault begins, once it has claimed what it needs.
func (a *Act) starts() { a.Interval.From = time.Now() }

// do does a fault, and keeps its journal.
func (w *World) do(ctx context.Context, f Fault, random *rand.Rand) {
	a := &Act{World: w, Rand: random, Fault: invariant.Fault{Name: f.Name}}
	a.starts()
	if err := f.Do(ctx, a); err != nil {
		a.Error = err.Error()
	}
	a.Interval.To = time.Now()
	w.log("%7.2fs %s %s, for %s %s", a.Interval.From.Sub(w.begin).Seconds(), a.Name, a.Detail, a.Interval.To.Sub(a.Interval.From).Round(time.Millisecond), a.Error)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, a.Fault)
}

// faultsOf are all that there are, of processes with these fault points, whose
// names match.
func faultsOf(p points, only *regexp.Regexp) []Fault {
	all := slices.Concat(shimFaults(), checkpointFaults(), policyFaults(), collectorFaults(), switchFaults(), pointFaults(p))
	return slices.DeleteFunc(all, func(f Fault) bool { return only != nil && !only.MatchString(f.Name) })
}

// combined are two faults that overlap.
func combined(ctx context.Context, w *World, all []Fault, random *rand.Rand) {
	var wait sync.WaitGroup
	for _, i := range random.Perm(len(all))[:min(2, len(all))] {
		own := rand.New(rand.NewPCG(random.Uint64(), uint64(i)))
		wait.Go(func() { w.do(ctx, all[i], own) })
	}
	wait.Wait()
}
