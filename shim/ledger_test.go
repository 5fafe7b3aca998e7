package shim

import (
	"context"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/packetlog"
)

// stubCollector stores events, up to a number of them, in order and once.
type stubCollector struct {
	auditv1.UnimplementedCollectorServiceServer
	addr string

	mu   sync.Mutex // Guards what follows.
	high map[string]uint64
	last map[string]int // The last stream of each boot: no other stores any more.
	room int            // For how many events more it answers.
	kept []*auditv1.Event
}

func startStubCollector(t *testing.T) *stubCollector {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c := &stubCollector{addr: listener.Addr().String(), high: make(map[string]uint64), last: make(map[string]int)}
	g := grpc.NewServer()
	auditv1.RegisterCollectorServiceServer(g, c)
	go g.Serve(listener)
	t.Cleanup(g.Stop)
	return c
}

func (c *stubCollector) Report(stream grpc.BidiStreamingServer[auditv1.ReportRequest, auditv1.ReportResponse]) error {
	hello, err := stream.Recv()
	if err != nil {
		return err
	}
	boot := hello.GetHello().GetBoot()
	c.mu.Lock()
	c.last[boot]++
	this := c.last[boot]
	c.mu.Unlock()
	for ack := true; ; {
		c.mu.Lock()
		high := c.high[boot]
		c.mu.Unlock()
		if ack {
			if err := stream.Send(&auditv1.ReportResponse{AckedSequence: high}); err != nil {
				return err
			}
		}
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		c.mu.Lock()
		if c.last[boot] != this {
			c.mu.Unlock()
			return nil
		}
		ack = c.room > 0
		for i, e := range r.GetBatch().GetEvents() {
			if seq := r.GetBatch().GetFirstSequence() + uint64(i); seq == c.high[boot]+1 && c.room > 0 {
				c.high[boot], c.room, c.kept = seq, c.room-1, append(c.kept, e)
			}
		}
		c.mu.Unlock()
	}
}

// count is how many events the collector has.
func (c *stubCollector) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.kept)
}

// serve lets the collector store so many events more.
func (c *stubCollector) serve(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.room = n
}

// events are those that are stored.
func (c *stubCollector) events() []*auditv1.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.kept)
}

// sums are of records and of losses, by policy, and how often one is not known.
func (c *stubCollector) sums() (kept, lost map[string]uint64, unknown int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept, lost = make(map[string]uint64), make(map[string]uint64)
	for _, e := range c.kept {
		if p := e.GetPacket(); p != nil {
			policy := "unattributed"
			if len(p.GetPolicies()) > 0 {
				policy = p.GetPolicies()[0].GetName()
			}
			kept[policy] += p.GetCount()
		} else if e.GetLoss().GetStage() == auditv1.LossStage_LOSS_STAGE_UNKNOWN {
			if e.GetLoss().GetReason() == "" { // Not of what is forged.
				unknown++
			}
		} else {
			lost[e.GetLoss().GetPolicy().GetName()] += e.GetLoss().GetCount()
		}
	}
	return kept, lost, unknown
}

// unknowns are the losses of the log that are not known.
func (c *stubCollector) unknowns() (out []*auditv1.LossEvent) {
	for _, e := range c.events() {
		if l := e.GetLoss(); l.GetStage() == auditv1.LossStage_LOSS_STAGE_UNKNOWN && l.GetReason() == "" {
			out = append(out, l)
		}
	}
	return out
}

// accounted is a shim with a collector, and how it dies.
func accounted(t *testing.T, sw *tap, w *world, dir string, c *stubCollector) (s *Shim, die func()) {
	s = newShim(t, sw, w, dir)
	s.ledger = newLedger(dir, s.logger)
	s.ledger.Open()
	var err error
	s.reporter, err = packetlog.NewReporter(packetlog.ReporterConfig{Addresses: []string{c.addr}, Node: "node-1", Log: s.log, Ledger: s.ledger,
		MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, Logger: hclog.NewNullLogger()})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.reporter.Run(ctx) }()
	die = func() { cancel(); <-done }
	t.Cleanup(die)
	s.loop.refreshPorts(ctx)
	return s, die
}

// Whatever a shim had queued, sent or not heard of when it died, and what came while
// there was none: the next life states what is not on record, as its rule's and to
// the packet. Where the switch went too, it states that it does not know.
func TestWhatDiedWithAShimIsStated(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	sw, w, objects := twoPods(t)
	dir, c := t.TempDir(), startStubCollector(t)
	at := time.Unix(1000, 0)
	sw.LimitMeters(func() time.Time { return at })
	s, die := accounted(t, sw, w, dir, c)
	must(t, s.loop.apply(ctx, w.replica, w.cut(append(objects, deny("web", "web"), deny("client", "client"))...)).err)
	s.loop.save(true)
	total := make(map[string]uint64)
	packets := func(web, client int) {
		flood(sw, web, 1, 2)
		flood(sw, client, 2, 1)
		total["web"] += uint64(web)
		total["client"] += uint64(client)
	}
	read := func() {
		at = at.Add(time.Second)
		s.loop.hear()
		s.log.Flush(at.Add(1e6 * time.Hour))
		s.loop.countLosses(ctx, at)
	}
	// converge waits until the sums are what came, or the time is up.
	converge := func(what string, wantUnknown int) {
		t.Helper()
		c.serve(1 << 20)
		deadline := time.Now().Add(10 * time.Second)
		for {
			read()
			kept, lost, unknown := c.sums()
			if kept["web"]+lost["web"] == total["web"] && kept["client"]+lost["client"] == total["client"] && lost[""] == 0 && unknown == wantUnknown {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: kept %v, lost %v, unknown %d; sent %v", what, kept, lost, unknown, total)
			}
			time.Sleep(time.Millisecond)
		}
		for range 5 { // And nothing is stated beyond.
			read()
		}
		s.log.Flush(at.Add(1e6 * time.Hour))
		if kept, lost, unknown := c.sums(); kept["web"]+lost["web"] != total["web"] || unknown != wantUnknown {
			t.Fatalf("%s, later: kept %v, lost %v, unknown %d; sent %v", what, kept, lost, unknown, total)
		}
	}
	for life := range 6 {
		c.serve(1 << 20)
		packets(700, 30) // Of one meter more than pass it.
		converge("life "+string(rune('0'+life)), 0)
		c.serve(5 * life) // Of what it gets, so much; it says nothing of the rest.
		packets(40+life, 35)
		read()
		if life%2 == 0 { // The reporter has sent what it could.
			deadline := time.Now().Add(10 * time.Second)
			for s.log.Flush(at.Add(1e6 * time.Hour)); life > 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				c.mu.Lock()
				full := c.room == 0
				c.mu.Unlock()
				if full {
					break
				}
			}
		}
		packets(3, 2) // These the loop has not even heard of.
		die()
		packets(11, 7) // And there is no shim.
		s, die = accounted(t, sw, w, dir, c)
		packets(5, 4)
	}
	converge("the last life", 0)

	die()
	sw.Restart()
	s, _ = accounted(t, sw, w, dir, c)
	must(t, s.loop.reconcile(ctx))
	packets(6, 5)
	converge("after the switch went as well", 1)
}

// What meters counted that others take away, while a shim is there or is not, goes with
// them: that is stated as not known, once, and from there on all is exact again, over the
// lives that follow.
func TestLossesAreExactAfterMetersWereTaken(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	sw, w, objects := twoPods(t)
	dir, c := t.TempDir(), startStubCollector(t)
	c.serve(1 << 20)
	s, die := accounted(t, sw, w, dir, c)
	must(t, s.loop.apply(ctx, w.replica, w.cut(append(objects, deny("web", "web"))...)).err)
	must(t, s.loop.reconcile(ctx))
	s.loop.save(true)
	at, total := time.Unix(1000, 0), uint64(0)
	packets := func(n int) {
		flood(sw, n, 1, 2)
		total += uint64(n)
	}
	read := func() {
		at = at.Add(time.Second)
		s.loop.hear()
		s.log.Flush(at.Add(1e6 * time.Hour))
		s.loop.countLosses(ctx, at)
	}
	// exact reads until losses have lasted, and what was sent is accounted for.
	exact := func(what string, wantUnknown int) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for n := 0; ; n++ {
			read()
			kept, lost, unknown := c.sums()
			if n > 9 && kept["web"]+lost["web"] == total && unknown == wantUnknown {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: kept %v, lost %v, unknown %d, not %d; sent %d", what, kept, lost, unknown, wantUnknown, total)
			}
			time.Sleep(time.Millisecond)
		}
	}
	taken := func() {
		state, err := sw.Fake.Read(ctx)
		must(t, err)
		must(t, sw.Fake.Apply(ctx, bridge.Change{DeleteMeters: slices.Sorted(maps.Keys(state.Meters))}))
		sw.look(func() { sw.older += 2 * packetlog.BornSlack }) // What is put is another, by its birth too.
	}
	next := func() { // The next life, and there was none for a while.
		die()
		packets(20)
		s, die = accounted(t, sw, w, dir, c)
	}
	packets(700)
	exact("at first", 0)
	next()
	packets(30)
	exact("the second life", 0)

	taken()
	must(t, s.loop.reconcile(ctx))
	exact("they were taken", 1)
	packets(5)
	exact("they are there again", 1)
	next()
	exact("after that life", 1)

	taken()
	exact("they are missed", 2)
	must(t, s.loop.reconcile(ctx))
	packets(5)
	exact("they were missed", 3) // What their flows reported meanwhile, nobody counted.
	if unknowns := c.unknowns(); unknowns[2].GetFrom().AsTime().After(unknowns[1].GetTo().AsTime()) {
		t.Errorf("nothing is stated of between %v and %v", unknowns[1], unknowns[2])
	}
	next()
	exact("after that life", 3)

	die()
	taken()
	s, die = accounted(t, sw, w, dir, c)
	must(t, s.loop.reconcile(ctx))
	packets(6)
	exact("they were taken between lives", 4)
	next()
	exact("after that life", 4)
}

// A life without a checkpoint gives its rules other meters than the one before. What a
// meter counted is on record or stated as whose it was, and nobody is given it before.
func TestMetersOfAFormerLifeAreSettledAsWhoseTheyWere(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	sw, w, objects := twoPods(t)
	dir, c := t.TempDir(), startStubCollector(t)
	at := time.Unix(1000, 0)
	sw.LimitMeters(func() time.Time { return at })
	s, die := accounted(t, sw, w, dir, c)
	must(t, s.loop.apply(ctx, w.replica, w.cut(append(objects, deny("web", "web"))...)).err)
	meterOf := func(policy string) (meter uint32) {
		for _, m := range s.loop.compiler.Meters() {
			if of := s.loop.compiler.MeterSubject(m.ID); of != nil && of.Name == policy && !slices.Contains(s.loop.compiler.RetiredMeters(), m.ID) {
				meter = m.ID
			}
		}
		return meter
	}
	total := make(map[string]uint64)
	packets := func(web, client int) {
		flood(sw, web, 1, 2)
		flood(sw, client, 2, 1)
		total["web"] += uint64(web)
		total["client"] += uint64(client)
		maps.DeleteFunc(total, func(_ string, n uint64) bool { return n == 0 })
	}
	read := func() {
		at = at.Add(time.Second)
		s.loop.hear()
		s.log.Flush(at.Add(1e6 * time.Hour))
		s.loop.countLosses(ctx, at)
	}
	converge := func(what string) {
		t.Helper()
		c.serve(1 << 20)
		deadline := time.Now().Add(10 * time.Second)
		for {
			read()
			kept, lost, unknown := c.sums()
			if maps.Equal(total, summed(kept, lost)) && unknown == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: kept %v, lost %v, unknown %d; sent %v", what, kept, lost, unknown, total)
			}
			time.Sleep(time.Millisecond)
		}
	}
	packets(700, 0)
	converge("the first life")
	former := meterOf("web")
	if former == 0 {
		t.Fatal("the rule has no meter")
	}
	packets(250, 0) // These die with the shim.
	die()
	packets(30, 0) // And there is none.
	must(t, os.RemoveAll(s.cfg.checkpoint()))
	w.renew()
	s, _ = accounted(t, sw, w, dir, c)
	packets(20, 0) // Reported by the former life's flows, with no state.
	converge("without a state")
	for _, e := range c.events() {
		if p := e.GetPacket(); p != nil && (len(p.GetPolicies()) != 1 || p.GetReason() != "isolation" || p.GetAction() != policyv1.Action_ACTION_DROP || p.GetTable() != "IngressDefaultRule" || p.GetDirection() != policyv1.Direction_DIRECTION_INGRESS) {
			t.Errorf("on record is %v", p)
		}
	}
	for range retiredFor + 2 {
		read()
	}
	if !slices.Contains(s.loop.compiler.RetiredMeters(), former) {
		t.Errorf("meter %d is dropped while flows name it", former)
	}
	packets(15, 0)
	must(t, s.loop.apply(ctx, w.replica, w.cut(append(objects, deny("client", "client"), deny("web", "web"))...)).err)
	must(t, s.loop.reconcile(ctx))
	if web, client := meterOf("web"), meterOf("client"); web == former || client == former || web == client || web*client == 0 {
		t.Errorf("web has meter %d, client %d; web had %d", web, client, former)
	}
	packets(40, 60)
	converge("with the state")
	for deadline := time.Now().Add(10 * time.Second); slices.Contains(s.loop.compiler.RetiredMeters(), former); time.Sleep(time.Millisecond) { // Once all of it has arrived.
		if read(); time.Now().After(deadline) {
			t.Fatalf("meter %d stays", former)
		}
	}
	packets(5, 6)
	converge("later")
}

// summed are two sums in one.
func summed(a, b map[string]uint64) map[string]uint64 {
	out := maps.Clone(a)
	for policy, n := range b {
		out[policy] += n
	}
	maps.DeleteFunc(out, func(_ string, n uint64) bool { return n == 0 })
	return out
}

// A shim that dies before it ever looked at meters leaves no doubt, nor does one whose
// checkpoint is lost: whose the losses are is then not known, how many is.
func TestLossesOfLivesThatEndAtOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	sw, w, objects := twoPods(t)
	dir, c := t.TempDir(), startStubCollector(t)
	at := time.Unix(1000, 0)
	sw.LimitMeters(func() time.Time { return at })
	c.serve(1 << 20)
	var total uint64
	web, client := deny("web", "web"), deny("client", "client")
	for life, change := range []func() [][]byte{
		func() [][]byte { return w.frames(append(objects, web)...) },
		func() [][]byte { return w.frames(client) },
		func() [][]byte { return w.without(web) },
		func() [][]byte { return w.frames(web) },
	} {
		s, die := accounted(t, sw, w, dir, c)
		must(t, s.loop.apply(ctx, w.replica, w.receive(change())).err)
		if life != 2 {
			flood(sw, 700, 1, 2)
			total += 700
		}
		if life > 0 {
			flood(sw, 30, 2, 1)
			total += 30
		}
		s.loop.hear()
		s.log.Flush(at.Add(1e6 * time.Hour))
		if life == 1 {
			at = at.Add(time.Second)
			s.loop.countLosses(ctx, at)
		}
		for deadline := time.Now().Add(10 * time.Second); c.count() <= life; time.Sleep(time.Millisecond) { // Something of it is on record.
			if time.Now().After(deadline) {
				t.Fatal("nothing arrives")
			}
		}
		die()
		os.Remove(filepath.Join(dir, "checkpoint"))
	}
	s, _ := accounted(t, sw, w, dir, c)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		at = at.Add(time.Second)
		s.loop.hear()
		s.log.Flush(at.Add(1e6 * time.Hour))
		s.loop.countLosses(ctx, at)
		kept, lost, unknown := c.sums()
		var sum uint64
		for _, m := range []map[string]uint64{kept, lost} {
			for _, n := range m {
				sum += n
			}
		}
		if sum == total && unknown == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("kept %v, lost %v, unknown %d; reported %d", kept, lost, unknown, total)
		}
	}
}
