package shim

import (
	"context"
	"fmt"
	"testing"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/counters"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/shim/pipeline"
)

// loggedNode is a node whose isolations of web and client log, with a clock that
// meters go by.
func loggedNode(t *testing.T, change func(*Config)) (s *Shim, sw *tap, w *world, now *time.Time) {
	sw, w, objects := twoPods(t)
	s = newShim(t, sw, w, t.TempDir())
	change(&s.cfg)
	s.loop.config = s.cfg.compiler()
	at := time.Unix(1000, 0)
	sw.LimitMeters(func() time.Time { return at })
	s.loop.refreshPorts(context.Background())
	must(t, s.loop.apply(context.Background(), w.replica, w.cut(append(objects, deny("web", "web"), deny("client", "client"))...)).err)
	return s, sw, w, &at
}

// tallied is what records hold and losses state, by policy; empty for nobody's.
func tallied(t *testing.T, s *Shim) (kept, lost map[string]uint64) {
	t.Helper()
	s.loop.hear()
	s.log.Flush(time.Now().Add(time.Hour))
	kept, lost = make(map[string]uint64), make(map[string]uint64)
	for _, e := range s.log.Take(100000) {
		if p := e.GetPacket(); p != nil {
			for _, ref := range p.GetPolicies() {
				kept[ref.GetName()] += p.GetCount()
			}
			continue
		}
		l := e.GetLoss()
		if l.GetPolicy() != nil && (l.GetReason() != "isolation" || l.GetDirection() != policyv1.Direction_DIRECTION_INGRESS) {
			t.Errorf("the loss is %v", l)
		}
		lost[l.GetPolicy().GetName()] += l.GetCount()
		if l.GetStage() == auditv1.LossStage_LOSS_STAGE_UNKNOWN {
			lost["unknown"]++
		}
	}
	return kept, lost
}

func flood(sw *tap, n int, from, to byte) {
	p := syn(from, to)
	for i := range n {
		p.SrcPort = uint16(1 + i)
		sw.Send(p)
	}
}

// What a meter holds back is stated as its rule's, also of a rule that goes meanwhile
// and of one that comes; then its meter goes.
func TestLossesAreStatedByRule(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, sw, w, now := loggedNode(t, func(c *Config) { c.LogRate, c.RuleLogRate = 1000, 10 })
	read := func() { *now = now.Add(time.Second); s.loop.countLosses(ctx, *now) }
	read()
	flood(sw, 300, 1, 2)
	flood(sw, 8, 2, 1)
	read()
	flood(sw, 50, 1, 2) // Ten more may pass. What is over is not read yet when the rule goes.
	meters := func() int {
		stats, err := sw.MeterCounters(ctx)
		must(t, err)
		n := 0
		for _, m := range stats {
			if m.ID != pipeline.LogMeter && pipeline.IsLogMeter(m.ID) {
				n++
			}
		}
		return n
	}
	before := meters()
	gone := deny("web", "web")
	must(t, s.loop.apply(ctx, w.replica, w.receive(w.without(gone))).err)
	must(t, s.loop.apply(ctx, w.replica, w.cut(deny("next", "web"))).err)
	flood(sw, 30, 1, 2)
	for range retiredFor + 1 {
		read()
	}
	kept, lost := tallied(t, s)
	if kept["web"] != 20 || lost["web"] != 330 || kept["client"] != 8 || lost["client"] != 0 || kept["next"] != 10 || lost["next"] != 20 || lost[""] != 0 || lost["unknown"] != 0 {
		t.Errorf("kept %v, lost %v", kept, lost)
	}
	if got := meters(); got != before {
		t.Errorf("%d meters, %d before", got, before)
	}
	read()
	if _, lost := tallied(t, s); len(lost) != 0 {
		t.Errorf("stated again: %v", lost)
	}
	sw.Restart()
	must(t, s.loop.reconcile(ctx))
	read()
	if _, lost := tallied(t, s); lost["unknown"] != 1 {
		t.Errorf("after the switch began anew, %v is stated", lost)
	}
}

// All rules' limit is shared: one that reports little loses nothing for another's flood,
// and what is over the limit is stated by rule.
func TestAllRulesLimitIsShared(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, sw, _, now := loggedNode(t, func(c *Config) { c.LogRate, c.LogBurst, c.RuleLogRate = 1000, 1000, 1000 })
	s.loop.countLosses(ctx, *now)
	flood(sw, 8000, 1, 2) // A thousand pass their meter.
	flood(sw, 20, 2, 1)
	s.reports.Take(*now, 10, s.loop.record)
	s.loop.countLosses(ctx, now.Add(time.Second))
	kept, lost := tallied(t, s)
	if kept["client"] != 20 || lost["client"] != 0 || kept["web"]+lost["web"] != 8000 || lost["web"] < 7000 {
		t.Errorf("kept %v, lost %v", kept, lost)
	}
}

// A meter that others took away or changed is put right, and found by a check.
func TestMetersAreMended(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, sw, _, _ := loggedNode(t, func(*Config) {})
	must(t, s.loop.reconcile(ctx))
	var meter uint32
	for _, m := range s.loop.compiler.Meters() {
		meter = max(meter, m.ID)
	}
	if meter == 0 || !pipeline.IsLogMeter(meter) || meter == pipeline.LogMeter {
		t.Fatalf("no rule has a meter: %d", meter)
	}
	must(t, sw.Fake.Apply(ctx, bridge.Change{DeleteMeters: []uint32{meter}}))
	resp, err := s.loop.check(ctx)
	must(t, err)
	if resp.GetMissing() != 1 || len(resp.GetDifferences()) != 1 || resp.GetDifferences()[0].GetId() != meter {
		t.Errorf("a check says %v", resp)
	}
	must(t, s.loop.reconcile(ctx))
	if resp, err := s.loop.check(ctx); err != nil || len(resp.GetDifferences()) != 0 {
		t.Errorf("mended: %v, %v", resp, err)
	}
}

// A shim that is stopped while it reads meters takes them for no others.
func TestStopWhileMetersAreRead(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, sw, _, now := loggedNode(t, func(*Config) {})
	clock := s.counts.now
	s.counts.now = func() counters.Stamp {
		at := clock()
		at.Up += sw.older
		return at
	}
	for _, stops := range []int{0, 1, meterTries - 1, 0} {
		sw.metered = func() {
			if stops > 0 {
				stops, sw.older = stops-1, sw.older+2*packetlog.BornSlack // Of the switch too that time has passed.
			}
		}
		flood(sw, 7, 1, 2)
		*now = now.Add(time.Second)
		s.loop.countLosses(ctx, *now)
	}
	if kept, lost := tallied(t, s); kept["web"] != 28 || len(lost) != 0 {
		t.Errorf("kept %v, lost %v", kept, lost)
	}
}

// A shim that starts finds meters as they are: what they counted before is no loss of its
// life, and it changes none.
func TestRestartTakesMetersUp(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	sw, w, objects := twoPods(t)
	dir := t.TempDir()
	first := newShim(t, sw, w, dir)
	first.loop.refreshPorts(ctx)
	must(t, first.loop.apply(ctx, w.replica, w.cut(append(objects, deny("web", "web"))...)).err)
	at := time.Unix(1000, 0)
	sw.LimitMeters(func() time.Time { return at })
	flood(sw, 500, 1, 2)
	first.loop.save(true)
	second := newShim(t, sw, w, dir)
	n := len(sw.bundles())
	second.loop.refreshPorts(ctx)
	for _, c := range sw.bundles()[n:] {
		if len(c.PutMeters)+len(c.DeleteMeters) > 0 {
			t.Errorf("meters change: %v, %v", c.PutMeters, c.DeleteMeters)
		}
	}
	flood(sw, 100, 1, 2)
	for i := range 5 {
		second.loop.countLosses(ctx, at.Add(time.Duration(i+1)*time.Second))
	}
	if kept, lost := tallied(t, second); kept["web"]+lost["web"] != 100 || lost["unknown"] != 0 {
		t.Errorf("kept %v, lost %v of 100", kept, lost)
	}
}

// Samples say who, in which direction and what became of it; with none asked for there is
// nothing to make them.
func TestObserved(t *testing.T) {
	t.Parallel()
	for _, observe := range []string{"", "x", "*", "y"} {
		t.Run(fmt.Sprintf("%q", observe), func(t *testing.T) {
			sw, w, _ := twoPods(t)
			s := newShim(t, sw, w, t.TempDir())
			if observe != "" {
				s.cfg.Observe = []string{observe}
			}
			s.loop.config = s.cfg.compiler()
			s.loop.refreshPorts(context.Background())
			objects := []api.Object{&api.Namespace{Name: "x"}, pod("client", "10.0.0.1"), pod("web", "10.0.0.2"), deny("client", "client")}
			must(t, s.loop.apply(context.Background(), w.replica, w.cut(objects...)).err)
			for range 3 { // The second and third are of a connection that is there.
				if walk := sw.Send(syn(1, 2)); len(walk.Ports()) != 1 || walk.Ports()[0] != 2 {
					t.Fatalf("an allowed packet goes to %v", walk.Ports())
				}
			}
			flood(sw, 2, 2, 1)
			s.loop.hear()
			s.log.Flush(time.Now().Add(time.Hour))
			got := make(map[string]uint64)
			for _, e := range s.log.Take(100) {
				p := e.GetPacket()
				got[fmt.Sprintf("%s %s %s %s %d %s %d", p.GetReason(), p.GetDirection(), p.GetAction(), p.GetAppliedTo(), len(p.GetPolicies()), p.GetPeer(), p.GetDestinationPort())] += p.GetCount()
			}
			want := map[string]uint64{
				"observed DIRECTION_EGRESS ACTION_ALLOW x/client 0 x/web 80":  1,
				"observed DIRECTION_INGRESS ACTION_ALLOW x/web 0 x/client 80": 1,
				"observed DIRECTION_EGRESS ACTION_ALLOW x/web 0 x/client 80":  2, // Let out, and denied at the other end.
				"observed DIRECTION_INGRESS ACTION_DROP x/client 0 x/web 80":  2,
			}
			if observe == "" || observe == "y" {
				want = map[string]uint64{}
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("got %v\nwant %v", got, want)
			}
			state, err := sw.Fake.Read(context.Background())
			must(t, err)
			flows := 0
			for _, f := range state.Flows {
				if kind, _, _ := pipeline.ParseCookie(f.Cookie); kind == pipeline.KindObserve {
					flows++
				}
			}
			if _, meter := state.Meters[pipeline.ObserveMeter]; meter != (observe != "") || (flows > 0) != (len(want) > 0) {
				t.Errorf("%d flows observe, their meter: %v", flows, meter)
			}
		})
	}
}
