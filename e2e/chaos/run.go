package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/weirnet/weir/e2e/chaos/invariant"
	"github.com/weirnet/weir/e2e/harness"
)

// Config of a run.
type Config struct {
	Bin     string // Folder of the built binaries, those with fault points too.
	Module  string // Folder of their code.
	Dir     string // Where the run's folder is made.
	Seed    uint64
	Rounds  int            // Of random faults. Zero: one of every fault.
	Only    *regexp.Regexp // Faults that there are to be. Nil: all.
	Command string         // That repeats the run.
	Log     func(format string, args ...any)
}

// traffic is what goes on during a run.
type traffic struct {
	journals []*journal
	streams  []*stream
	dials    dials
	readings readings
	reader   reader
	wait     sync.WaitGroup // For those that send and receive.
}

// Run does a run, and returns the folder that its evidence lies in.
func Run(ctx context.Context, cfg Config) (dir string, err error) {
	dir = filepath.Join(cfg.Dir, fmt.Sprintf("chaos-%d", cfg.Seed))
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return dir, err
	}
	w, err := startWorld(ctx, cfg.Bin, cfg.Log)
	if err != nil {
		return dir, err
	}
	defer func() { err = errors.Join(err, w.stop()) }()
	e := &invariant.Evidence{Seed: cfg.Seed, Command: cfg.Command, Begin: w.begin, Rules: rules()}
	random := rand.New(rand.NewPCG(cfg.Seed, 0))

	watched, unwatch := context.WithCancel(ctx)
	defer unwatch()
	go w.watch(watched)
	sending, cease := context.WithCancel(ctx)
	defer cease()
	t, err := startTraffic(sending, watched, w, rand.New(rand.NewPCG(cfg.Seed, 1)))
	if err != nil {
		return dir, err
	}
	changes, changed := context.WithCancel(ctx)
	defer changed()
	var changer sync.WaitGroup
	changer.Go(func() { w.turn(changes, t) })

	err = w.rounds(ctx, cfg, random)
	changed()
	changer.Wait()
	if err != nil {
		return dir, err
	}
	e.End = time.Now()
	cease()
	t.wait.Wait()
	for _, s := range t.streams {
		<-s.done
	}
	return dir, w.rest(ctx, dir, e, t)
}

// startTraffic begins all traffic, and all that is read meanwhile.
func startTraffic(sending, reading context.Context, w *World, random *rand.Rand) (*traffic, error) {
	t := new(traffic)
	for _, n := range w.Nodes {
		if err := t.readings.take(reading, n); err != nil {
			return nil, err
		}
		go t.readings.run(reading, n)
	}
	go t.reader.run(reading, w)
	for _, role := range []string{"server", "shut", "hushed"} {
		for node := range nodeNames {
			if err := serve(reading, w.Pod(podName(role, node))); err != nil {
				return nil, err
			}
		}
	}
	for i, f := range flows() {
		j, err := f.start(sending, w, i, &t.wait)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name(), err)
		}
		t.journals = append(t.journals, j)
	}
	for _, s := range []struct {
		source, target int
		v6, push       bool
	}{{0, 1, false, false}, {1, 0, true, false}, {0, 0, false, false}, {0, 1, true, true}, {1, 0, false, true}, {1, 1, true, true}} {
		from, _ := w.address("client", s.source, s.v6)
		_, to := w.address("server", s.target, s.v6)
		port, word := uint16(echoPort), "talking to"
		if s.push {
			port, word = pushPort, "listening to"
		}
		name := fmt.Sprintf("TCP %s %s %s", podName("client", s.source), word, netip.AddrPortFrom(to, port))
		stream, err := startStream(sending, name, from, netip.AddrPortFrom(to, port), invariant.Stream{Source: nodeNames[s.source], Target: nodeNames[s.target], Push: s.push})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		t.streams = append(t.streams, stream)
	}
	t.wait.Go(func() { t.dials.run(sending, w, random) })
	return t, nil
}

// turn changes policies now and then, and whenever it is asked to, and notes what
// was in force everywhere when. It alone writes manifests.
func (w *World) turn(ctx context.Context, t *traffic) {
	from, allowed := time.Now(), true
	end := func() {
		for _, j := range t.journals {
			if j.turning { // Packets of the last moments may have been judged by what follows.
				j.judged(invariant.Interval{From: from, To: time.Now().Add(-100 * time.Millisecond)}, allowed)
			}
		}
	}
	tick := time.NewTicker(3 * time.Second)
	defer tick.Stop()
	for {
		var done chan error
		select {
		case <-ctx.Done():
			end()
			return
		case <-tick.C:
		case <-w.nudged:
		case done = <-w.settle:
		}
		end()
		err := w.change()
		if err == nil {
			err = w.inForce(ctx)
		}
		from, allowed = time.Now(), !w.shut()
		if err != nil {
			from = time.Now().Add(time.Hour) // Nobody knows what is in force.
		}
		if done != nil {
			done <- err
		}
	}
}

// nudge has policies change soon.
func (w *World) nudge() {
	select {
	case w.nudged <- struct{}{}:
	default:
	}
}

// settled waits until a change is in force everywhere.
func (w *World) settled(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case w.settle <- done:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rounds does faults, and lets all come to rest after each round.
func (w *World) rounds(ctx context.Context, cfg Config, random *rand.Rand) error {
	points, err := findPoints(cfg.Module)
	if err != nil {
		return err
	}
	all := faultsOf(points, cfg.Only)
	if cfg.Rounds == 0 {
		for _, i := range random.Perm(len(all)) {
			w.do(ctx, all[i], random)
		}
		combined(ctx, w, all, random)
		return w.settled(ctx)
	}
	for round := range cfg.Rounds {
		for range 1 + random.IntN(3) {
			if random.IntN(3) == 0 {
				combined(ctx, w, all, random)
			} else {
				w.do(ctx, all[random.IntN(len(all))], random)
			}
		}
		if err := w.settled(ctx); err != nil {
			w.log("round %d: %v", round+1, err)
		}
		w.log("round %d of %d, %s", round+1, cfg.Rounds, time.Since(w.begin).Round(time.Second))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// rest lets all come to rest, gathers the evidence and saves it.
func (w *World) rest(ctx context.Context, dir string, e *invariant.Evidence, t *traffic) error {
	for _, j := range t.journals {
		if !j.turning {
			j.judged(invariant.Interval{From: w.begin, To: time.Now()}, j.allowed)
		}
		e.Flows = append(e.Flows, j.flow)
	}
	for _, s := range t.streams {
		e.Streams = append(e.Streams, s.Stream)
	}
	e.Dials = t.dials.list
	e.Final = invariant.Final{Check: make(map[string]string), Touched: make(map[string]string)}
	if err := w.inForce(ctx); err != nil {
		e.Final.NotInSync = err.Error()
	}
	if err := w.restart(ctx, e); err != nil {
		return err
	}
	for name, n := range w.Nodes {
		found, err := n.Check(ctx)
		if err != nil {
			return err
		}
		e.Final.Check[name] = found
	}
	// Losses are stated once they have lasted for some readings; files are written
	// once windows have ended.
	gather := func() error { return w.gather(ctx, dir, e, t) }
	err := harness.Eventually(ctx, settleLimit, func() error {
		if err := gather(); err != nil {
			return err
		}
		loaded, err := invariant.Load(dir)
		if err != nil {
			return err
		}
		if n := invariant.Violations(invariant.Judge(loaded)); n > 0 {
			return errViolated
		}
		return nil
	})
	if errors.Is(err, errViolated) {
		return nil
	}
	return err
}

var errViolated = errors.New("invariants are violated")

// gather reads what there is by now, and saves it.
func (w *World) gather(ctx context.Context, dir string, e *invariant.Evidence, t *traffic) (err error) {
	for _, n := range w.Nodes {
		if err := t.readings.take(ctx, n); err != nil {
			return err
		}
	}
	if e.Records, err = records(ctx, w); err != nil {
		return err
	}
	e.Final.Unwritten = unwritten(ctx, w)
	e.Readings, e.Seen = t.readings.all(), t.reader.all()
	w.mu.Lock()
	e.Faults, e.Final.Ended = w.faults, w.ended
	w.mu.Unlock()
	if err := os.RemoveAll(filepath.Join(dir, invariant.AuditDir)); err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(dir, invariant.AuditDir), os.DirFS(filepath.Join(w.Dir, "audit"))); err != nil {
		return err
	}
	logs := filepath.Join(dir, invariant.LogsDir)
	if err := errors.Join(os.RemoveAll(logs), os.MkdirAll(logs, 0o755)); err != nil {
		return err
	}
	for name, p := range w.Processes() {
		text, err := os.ReadFile(p.Log)
		if err == nil {
			err = os.WriteFile(filepath.Join(logs, name+".log"), text, 0o644)
		}
		if err != nil {
			return err
		}
	}
	for name, n := range w.Nodes {
		for _, daemon := range []string{"ovs-vswitchd", "ovsdb-server"} {
			text, err := os.ReadFile(filepath.Join(n.OVS.Dir, daemon+".log"))
			if err == nil {
				err = os.WriteFile(filepath.Join(logs, daemon+"-"+name+".log"), text, 0o644)
			}
			if err != nil {
				return err
			}
		}
	}
	return invariant.Save(dir, e)
}

// restart kills the shims once more, when nothing changes, and notes what flows
// their next lives touch. The flow that settles a bundle is put in anew on purpose.
func (w *World) restart(ctx context.Context, e *invariant.Evidence) error {
	for name, n := range w.Nodes {
		before, err := dump(ctx, n)
		if err != nil {
			return err
		}
		since := time.Now()
		f := invariant.Fault{Name: "shim-kill", Detail: name + ", at rest", Shims: []string{name}}
		f.Interval.From = since
		w.Stop(n.Shim, (*harness.Process).Kill)
		if err := w.Start(n.Shim); err != nil {
			return err
		}
		if err := w.inForce(ctx); err != nil {
			e.Final.NotInSync = err.Error()
		}
		after, err := dump(ctx, n)
		if err != nil {
			return err
		}
		f.Interval.To = time.Now()
		w.mu.Lock()
		w.faults = append(w.faults, f)
		w.mu.Unlock()
		e.Final.Touched[name] = strings.Join(touched(before, after, time.Since(since)), "\n")
	}
	return nil
}
