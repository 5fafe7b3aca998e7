package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/counters"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage"
)

// opens lets client reach web at a TCP port.
func opens(name string, port uint16) *api.NetworkPolicy {
	p := deny(name, "web")
	p.UID = "u-" + name
	p.Ingress = []api.NetworkPolicyRule{{Ports: []api.NetworkPolicyPort{{Protocol: api.ProtocolTCP, Port: port}}}}
	return p
}

// lineOf is what a shim would report of a policy: of its only rule, or of the
// isolation by it.
func (s *Shim) lineOf(name string, isolation bool) counters.Tally {
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	for _, line := range s.counts.books.Changed(0) {
		if line.Subject.Name == name && line.Subject.Isolation == isolation {
			return line.Tally
		}
	}
	return counters.Tally{}
}

// counted holds what a rule counted to so much, and nothing to be uncounted.
func (s *Shim) counted(t *testing.T, name string, sessions, packets uint64) {
	t.Helper()
	if got, totals := s.lineOf(name, false), s.counts.totals(); got.Sessions != sessions || got.Packets != packets || totals.Lost != 0 {
		t.Errorf("counted %+v, %v uncounted: %s", got, totals.Lost, totals.Why)
	}
}

// read has the loop read the counters, and waits until that is done.
func (b *tap) read(t testing.TB, s *Shim) {
	t.Helper()
	before := s.counts.entered()
	b.until(t, "counters are read", func() bool { return s.counts.entered() > before })
}

var sourcePorts uint16 = 20000

// connect sends a SYN to web's port, and if that came, some packets of the
// connection in both directions.
func (b *tap) connect(port uint16, packets int) (bytes uint64) {
	sourcePorts++
	p := syn(1, 2)
	p.SrcPort, p.DstPort = sourcePorts, port
	b.Send(p)
	bytes = uint64(len(p.Frame()))
	for i := range packets {
		p.TCPFlags = bridge.TCPAck
		p.InPort, p.EthSrc, p.IPSrc, p.IPDst, p.SrcPort, p.DstPort = p.InPort%2+1, mac(byte(p.InPort%2+1)), p.IPDst, p.IPSrc, p.DstPort, p.SrcPort
		if i == 0 {
			p.TCPFlags |= bridge.TCPSyn
		}
		b.Send(p)
		bytes += uint64(len(p.Frame()))
	}
	return bytes
}

// counts is newShim that reads its counters often.
func counts(t testing.TB, sw *tap, w *world, dir string) *Shim {
	s := newShim(t, sw, w, dir)
	s.cfg.StatsInterval = 5 * time.Millisecond
	return s
}

func TestRulesAndIsolationsAreCounted(t *testing.T) {
	sw, w, objects := twoPods(t)
	s := counts(t, sw, w, t.TempDir())
	begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, opens("web", 80), deny("shut", "web"))...)))
	bytes := sw.connect(80, 4)
	sw.connect(81, 0)
	sw.connect(81, 0)
	sw.read(t, s)
	sw.read(t, s)
	if got, want := s.lineOf("web", false), (counters.Tally{Sessions: 1, Packets: 5, Bytes: bytes}); got != want {
		t.Errorf("the rule counted %+v, want %+v", got, want)
	}
	for _, name := range []string{"web", "shut"} {
		if got := s.lineOf(name, true); got.Packets != 2 || got.Sessions != 2 || got.Bytes == 0 {
			t.Errorf("isolation by %s counted %+v", name, got)
		}
	}
	stats, mark := s.Counters(0)
	if len(stats) != 1 || len(stats[0].GetRules()) != 3 || stats[0].GetReading() != mark || stats[0].GetUncountedMs() != 0 || stats[0].GetMore() {
		t.Errorf("first report: %v", stats)
	}
	if stats, _ := s.Counters(mark); len(stats) != 1 || len(stats[0].GetRules()) != 0 || stats[0].GetReading() != 0 {
		t.Errorf("nothing changed, and reported is %v", stats)
	}
}

// Flows of a rule that has gone go once they have been read; but for those of a
// connection that goes on, if its policy is there.
func TestRetiredFlowsAreReadAndGo(t *testing.T) {
	sw, w, objects := twoPods(t)
	s := counts(t, sw, w, t.TempDir())
	begin(t, s)
	two, one := opens("web", 80), opens("web", 80)
	two.Ingress = append(two.Ingress, opens("", 443).Ingress...)
	gone := opens("gone", 90)
	must(t, apply(t, s, w, w.cut(append(objects, two, gone, deny("shut", "web"))...)))
	ids := func() int {
		seen := make(map[uint32]bool)
		for _, f := range sw.flows(t) {
			if count, counts := pipeline.CountOf(f); counts {
				seen[count.ID] = true
			}
		}
		return len(seen)
	}
	for _, port := range []uint16{81, 80, 90, 443} {
		sw.connect(port, 0)
	}
	established := syn(1, 2)
	established.SrcPort, established.DstPort, established.TCPFlags = sourcePorts, 443, bridge.TCPAck
	w.engine.Apply(api.Event{Ref: gone.Ref()})
	must(t, apply(t, s, w, w.cut(one)))
	sw.until(t, "what is not needed goes", func() bool { return ids() == 3 }) // The rule, the one that is no more, and one isolation.
	if got := s.lineOf("gone", false); got.Sessions != 1 || got.Packets != 1 {
		t.Errorf("the policy that has gone counted %+v", got)
	}
	second := func() counters.Tally {
		s.counts.mu.Lock()
		defer s.counts.mu.Unlock()
		for _, line := range s.counts.books.Changed(0) {
			if line.Subject.Name == "web" && line.Subject.Index == 1 {
				return line.Tally
			}
		}
		return counters.Tally{}
	}
	sw.Send(established)
	sw.read(t, s)
	sw.read(t, s)
	if got := second(); got.Packets != 2 || got.Sessions != 1 {
		t.Errorf("the rule that is no more counted %+v, with a connection that goes on", got)
	}
	if got := s.lineOf("shut", true); got.Packets != 1 {
		t.Errorf("isolation counted %+v, over a change of the policies", got)
	}
}

// Without a complete state nobody knows which rules are in force: nothing goes.
func TestNothingGoesBeforeAState(t *testing.T) {
	sw, w, objects := twoPods(t)
	dir := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	s := counts(t, sw, w, dir)
	stop := begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, opens("web", 80))...)))
	sw.connect(80, 0)
	stop()
	must(t, os.Remove(s.cfg.checkpoint()))
	w.renew()
	s = counts(t, sw, w, dir)
	before := len(sw.flows(t))
	sw.addPod(t, "extra", 3) // As the bridge says at its start that there are ports.
	begin(t, s)
	for range 3 {
		sw.read(t, s)
	}
	if got := len(sw.flows(t)); got < before {
		t.Errorf("%d flows of %d are left", got, before)
	}
	must(t, apply(t, s, w, w.cut()))
	sw.connect(80, 0)
	sw.read(t, s)
	sw.read(t, s)
	if got := s.lineOf("web", false); got.Sessions != 2 {
		t.Errorf("counted %+v", got)
	}
}

// When a rule that is like another goes, what was counted until then is its own.
func TestHeirOfAnIDCountsFromThen(t *testing.T) {
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir()) // Nothing is read but for a change.
	begin(t, s)
	first, second := opens("a", 80), opens("b", 80)
	must(t, apply(t, s, w, w.cut(append(objects, first, second)...)))
	sw.connect(80, 0)
	sw.connect(80, 0)
	w.engine.Apply(api.Event{Ref: first.Ref()})
	must(t, apply(t, s, w, w.cut(pod("extra", "10.0.0.9"))))
	sw.connect(80, 0)
	s.loop.counts.mu.Lock()
	read := s.loop.counts.serial
	s.loop.counts.mu.Unlock()
	must(t, s.loop.enterReading(context.Background(), read, nil))
	if a, b := s.lineOf("a", false), s.lineOf("b", false); a.Sessions != 2 || b.Sessions != 1 {
		t.Errorf("a counted %+v, b %+v", a, b)
	}
}

// renew has the node hold nothing: the next cut brings all.
func (w *world) renew() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sub.Close()
	w.sub, w.replica = w.store.Subscribe("node-1"), &storage.Replica{}
}

// kill is what kill -9 does: what a shim does when it is stopped leaves no trace.
func (s *Shim) kill(t *testing.T, stop func()) {
	t.Helper()
	files := make(map[string][]byte)
	s.counts.writing.Lock() // The files are as they are at one moment.
	for _, name := range []string{countersName, journalName, filepath.Base(s.cfg.checkpoint())} {
		content, err := os.ReadFile(filepath.Join(s.cfg.StateDir, name))
		if err == nil {
			files[name] = content
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	s.counts.writing.Unlock()
	stop()
	must(t, os.RemoveAll(s.cfg.StateDir))
	must(t, os.Mkdir(s.cfg.StateDir, 0o700))
	for name, content := range files {
		must(t, os.WriteFile(filepath.Join(s.cfg.StateDir, name), content, 0o600))
	}
}

// Through kills at any moment, new rules, rules that go, and a journal or accounts
// only, the sums are what was sent.
func TestSumsSurviveKills(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	sw, w, objects := twoPods(t)
	dir := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	want := make(map[string]counters.Tally)
	live := make(map[uint16]*api.NetworkPolicy)
	var s *Shim
	for life := range 12 {
		s = counts(t, sw, w, dir)
		w.renew()
		stop := begin(t, s)
		if life > 0 {
			objects = []api.Object{pod("client", fmt.Sprintf("10.0.0.%d", 1)), &api.Namespace{Name: "x", LogPolicies: life%2 == 0}}
		}
		port := uint16(1000 + life)
		p := opens(fmt.Sprint("p", port), port)
		live[port] = p
		objects = append(objects, p)
		if life%4 == 3 {
			old := opens(fmt.Sprint("p", port-2), port-2)
			delete(live, port-2)
			w.engine.Apply(api.Event{Ref: old.Ref()})
		}
		must(t, apply(t, s, w, w.cut(objects...)))
		for port, p := range live {
			n := rnd.IntN(4)
			had := want[p.Name]
			bytes := sw.connect(port, n)
			want[p.Name] = counters.Tally{Sessions: had.Sessions + 1, Packets: had.Packets + uint64(n) + 1, Bytes: had.Bytes + bytes}
		}
		for range rnd.IntN(3) {
			sw.read(t, s)
		}
		if life%3 == 2 {
			stop()
		} else {
			s.kill(t, stop)
		}
	}
	s = counts(t, sw, w, dir)
	w.renew()
	begin(t, s)
	must(t, apply(t, s, w, w.cut()))
	sw.read(t, s)
	for name, tally := range want {
		if got := s.lineOf(name, false); got != tally {
			t.Errorf("%s counted %+v, want %+v", name, got, tally)
		}
	}
	if lost := s.counts.totals().Lost; lost != 0 {
		t.Errorf("%v are uncounted", lost)
	}
}

// Where a reading is entered beside what the loop reads back, the newer counts.
func TestReadingsAreEnteredInOrder(t *testing.T) {
	sw, w, objects := twoPods(t)
	dir := t.TempDir()
	s := counts(t, sw, w, dir)
	stop := begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, opens("web", 80))...)))
	sw.connect(80, 0)
	sw.read(t, s)
	stop()
	s = newShim(t, sw, w, dir)
	var beside atomic.Uint64
	sw.look(func() {
		sw.beside = func() {
			sw.connect(80, 0)
			if err := s.loop.enterReading(context.Background(), s.counts.entered(), nil); err != nil {
				t.Error(err)
			}
			beside.Add(1)
		}
	})
	stop = begin(t, s)
	must(t, apply(t, s, w, w.cut(opens("more", 90))))
	stop()
	sent := 1 + beside.Load()
	if got := s.lineOf("web", false); got.Sessions != sent || sent < 3 || s.counts.totals().Lost != 0 {
		t.Errorf("counted %+v of %d sent, %v uncounted", got, sent, s.counts.totals().Lost)
	}
}

// A switch that restarts takes counters with it: what was read is kept, and the
// time from then is stated, once.
func TestSwitchRestartIsStated(t *testing.T) {
	sw, w, objects := twoPods(t)
	s := counts(t, sw, w, t.TempDir())
	begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, opens("web", 80), opens("more", 90))...)))
	sw.connect(80, 0)
	sw.until(t, "the flows have an age", func() bool {
		for _, f := range sw.flows(t) {
			if _, counts := pipeline.CountOf(f); counts && f.Age > time.Second/5 {
				return true
			}
		}
		return false
	})
	sw.read(t, s)
	sw.read(t, s)
	sw.look(func() { sw.noCount = errors.New("busy") })
	before := s.counts.totals().Last
	sw.connect(80, 0)
	sw.Restart()
	sw.until(t, "the flows are back", func() bool { return len(sw.flows(t)) > 10 && delivered(sw, 1, 2) })
	back := time.Now()
	sw.connect(80, 0)
	sw.look(func() { sw.noCount = nil })
	sw.read(t, s)
	sw.read(t, s)
	totals := s.counts.totals()
	if got := s.lineOf("web", false); got.Sessions < 2 || got.Sessions > 3 {
		t.Errorf("counted %+v", got)
	}
	if len(totals.Uncounted) != 1 || totals.Uncounted[0].From.After(back) || totals.Uncounted[0].From.Before(before) {
		t.Errorf("uncounted: %v, last read at %v, back at %v", totals.Uncounted, before, back)
	}
}

// Accounts that cannot be used begin with what the flows have counted, and that
// is stated.
func TestTornAccountsAreStated(t *testing.T) {
	sw, w, objects := twoPods(t)
	dir := t.TempDir()
	s := counts(t, sw, w, dir)
	stop := begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, opens("web", 80))...)))
	sw.connect(80, 0)
	sw.read(t, s)
	stop()
	if c := openCounting(dir, "node-2", s.logger); len(c.totals().Uncounted) != 1 || !c.totals().Last.IsZero() {
		t.Errorf("accounts of another node: %+v", c.totals())
	}
	must(t, os.Truncate(filepath.Join(dir, countersName), 60))
	s = counts(t, sw, w, dir)
	begin(t, s)
	must(t, apply(t, s, w, nil))
	sw.read(t, s)
	if got := s.lineOf("web", false); got.Sessions != 1 {
		t.Errorf("counted %+v", got)
	}
	if n := len(s.counts.totals().Uncounted); n != 1 {
		t.Errorf("%d intervals are uncounted", n)
	}
}

// A checkpoint may be older than that flows were taken out: then they come again
// by the id that they had.
func TestFlowsComeAgainByTheirID(t *testing.T) {
	sw, w, objects := twoPods(t)
	dir := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	s := counts(t, sw, w, dir)
	stop := begin(t, s)
	again := opens("again", 80)
	must(t, apply(t, s, w, w.cut(append(objects, again)...)))
	var checkpoint []byte
	sw.until(t, "the state is kept", func() (kept bool) {
		var err error
		checkpoint, err = os.ReadFile(s.cfg.checkpoint())
		return err == nil
	})
	sw.connect(80, 1)
	sw.read(t, s)
	sw.read(t, s)
	gone := false
	sw.look(func() {
		sw.applied = func(c bridge.Change) {
			for _, key := range c.Delete {
				if key.Table == pipeline.TableIngressMetric {
					gone, sw.noCount = true, errors.New("it ends before it reads again")
				}
			}
		}
	})
	w.engine.Apply(api.Event{Ref: again.Ref()})
	must(t, apply(t, s, w, w.cut()))
	sw.until(t, "what counted goes", func() (yes bool) { sw.look(func() { yes = gone }); return yes })
	s.kill(t, stop)
	must(t, os.WriteFile(s.cfg.checkpoint(), checkpoint, 0o600))
	sw.look(func() { sw.applied, sw.noCount = nil, nil })
	s = counts(t, sw, w, dir)
	begin(t, s)
	must(t, apply(t, s, w, nil))
	sw.connect(80, 0)
	sw.read(t, s)
	sw.read(t, s)
	s.counted(t, "again", 2, 3)
}

// A switch may do what a shim asked for after that has ended, and its successor
// has read it back.
func TestLateBundleIsCounted(t *testing.T) {
	sw, w, objects := twoPods(t)
	dir := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	s := counts(t, sw, w, dir)
	stop := begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, deny("shut", "web"))...)))
	sw.until(t, "the state is kept", func() bool { _, err := os.Stat(s.cfg.checkpoint()); return err == nil })
	sw.look(func() { sw.fail = errors.New("it takes long") })
	late := opens("late", 90)
	if err := apply(t, s, w, w.cut(late)); err == nil {
		t.Fatal("it was in force at once")
	}
	s.kill(t, stop)
	var change bridge.Change
	sw.look(func() { sw.fail, change = nil, sw.failed[0] })
	w.engine.Apply(api.Event{Ref: late.Ref()})
	w.store.Commit(w.engine.Flush(), nil)
	s = counts(t, sw, w, dir)
	w.renew()
	begin(t, s)
	must(t, apply(t, s, w, w.cut(pod("extra", "10.0.0.9"))))
	sw.read(t, s)
	must(t, sw.Fake.Apply(context.Background(), change))
	sw.connect(90, 2)
	sw.read(t, s)
	sw.read(t, s)
	sw.Reconnect() // It is read back.
	sw.until(t, "what came late goes", func() bool {
		return !slices.ContainsFunc(change.Upsert, func(f openflow.Flow) bool {
			_, there := sw.flows(t)[f.Key()]
			return there && f.Cookie>>40&0xff == uint64(pipeline.KindRule)
		})
	})
	sw.read(t, s)
	s.counted(t, "late", 1, 3)
}

// Ids are above those of flows that a checkpoint does not know of.
func TestIDsAreNotGivenTwice(t *testing.T) {
	sw, w, objects := twoPods(t)
	dir := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	stop := begin(t, newShim(t, sw, w, dir))
	stop()
	s := newShim(t, sw, w, dir)
	stop = begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, opens("web", 80))...)))
	s.kill(t, stop) // There is no checkpoint, or one without the rule.
	highest := uint32(0)
	for _, f := range sw.flows(t) {
		if count, counts := pipeline.CountOf(f); counts {
			highest = max(highest, count.ID)
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, countersName), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, journalName), nil, 0o600))
	s = newShim(t, sw, w, dir)
	begin(t, s)
	must(t, apply(t, s, w, w.cut(opens("other", 90))))
	for _, f := range sw.flows(t) {
		if count, counts := pipeline.CountOf(f); counts && count.ID <= highest && !slices.ContainsFunc(s.loop.compiler.Subjects(count.ID), func(p pipeline.Subject) bool { return p.Name == "web" }) {
			t.Errorf("the id %d of %d was given again", count.ID, highest)
		}
	}
}

// Neither are those of flows that have gone.
func TestIDsOfFlowsThatWentAreNotGivenAgain(t *testing.T) {
	sw, w, objects := twoPods(t)
	dir := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	s := counts(t, sw, w, dir)
	stop := begin(t, s)
	gone := opens("gone", 90)
	must(t, apply(t, s, w, w.cut(append(objects, opens("web", 80))...)))
	must(t, apply(t, s, w, w.cut(gone)))
	had := s.counts.next()
	w.engine.Apply(api.Event{Ref: gone.Ref()})
	must(t, apply(t, s, w, w.cut()))
	sw.until(t, "what counted for it goes", func() bool {
		return !slices.ContainsFunc(slices.Collect(maps.Values(sw.flows(t))), func(f openflow.Flow) bool {
			count, counts := pipeline.CountOf(f)
			return counts && slices.ContainsFunc(s.counts.subjects(count.ID), func(p pipeline.Subject) bool { return p.Name == "gone" })
		})
	})
	s.kill(t, stop)
	_ = os.Remove(s.cfg.checkpoint())
	s = counts(t, sw, w, dir)
	if next := s.counts.next(); next < had {
		t.Errorf("%d is given next, and %d was", next, had)
	}
}

// Many counters go in several messages, each with the ports.
func TestReportsAreBounded(t *testing.T) {
	c := openCounting(t.TempDir(), "node-1", newShim(t, newTap(), newWorld(t), t.TempDir()).logger)
	var flows []counters.Flow
	for id := range uint32(2*reportedRules + 1) {
		c.learn(id+1, []pipeline.Subject{{Kind: policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY, Namespace: "x", Name: fmt.Sprintf("p%05d", id)}})
		flows = append(flows, counters.FlowOf(openflow.Flow{Table: 13, Priority: uint16(id), Packets: 1}, pipeline.Count{ID: id + 1, Packets: true}))
	}
	must(t, c.enter(0, counters.Reading{Began: c.now(), Ended: c.now(), Flows: flows}, false))
	list, mark := c.report(0, func() *policyv1.NodeStats {
		return &policyv1.NodeStats{Ports: []*policyv1.PortState{{Interface: "if"}}}
	})
	var sizes []string
	for i, m := range list {
		sizes = append(sizes, fmt.Sprint(len(m.GetRules()), m.GetMore()))
		if len(m.GetPorts()) != 1 || m.GetReading() != mark || m.GetRules()[0].GetPolicy().GetName() != fmt.Sprintf("p%05d", i*reportedRules) {
			t.Errorf("message %d: reading %d of %d, ports %v", i, m.GetReading(), mark, m.GetPorts())
		}
	}
	if got := strings.Join(sizes, " "); got != "2000 true 2000 true 1 false" {
		t.Error(got)
	}
}
