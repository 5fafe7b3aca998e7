package pipeline

import (
	"fmt"
	"slices"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// logMetersOf are the meters of the log that flows name, with who has each.
func logMetersOf(t *testing.T, c *Compiler) map[uint32][]uint64 {
	t.Helper()
	named := make(map[uint32][]uint64)
	for _, f := range c.Desired() {
		for _, a := range f.Actions.List() {
			if to, is := a.(openflow.Controller); is && to.ControllerID == LogController {
				if MeterOf([]byte(to.UserData)) != to.MeterID {
					t.Errorf("flow %v says of itself that its meter is %d", f, MeterOf([]byte(to.UserData)))
				}
				if !slices.Contains(named[to.MeterID], f.Cookie) {
					named[to.MeterID] = append(named[to.MeterID], f.Cookie)
				}
			}
		}
	}
	return named
}

// logging is a policy of the application tier whose rule logs.
func logging(name string, i int) *policyv1.Policy {
	p := tier(name, float64(i), drop)
	p.Rules[0].Log, p.Rules[0].Name = true, "rule-of-"+name
	return p
}

// Each rule that logs has a meter of its own, which says whose it is. What goes leaves its
// meter retired, and nobody gets it before it is dropped.
func TestEachRuleThatLogsHasAMeter(t *testing.T) {
	w := newTierWorld(t)
	c := New(config, Assignment{})
	for i := range 5 {
		w.add(logging(fmt.Sprint("p", i), i))
	}
	put := w.bring(c).PutMeters
	named := logMetersOf(t, c)
	delete(named, LogMeter) // Of what no rule decides.
	if len(named) != 5 || len(put) != 5 {
		t.Fatalf("%d meters are put, flows name %v", len(put), named)
	}
	meterOf := make(map[string]uint32)
	for meter, flows := range named {
		s := c.MeterSubject(meter)
		if len(flows) != 1 || s == nil || s.Rule != "rule-of-"+s.Name || s.Direction != ingress || !slices.Contains(put, openflow.Meter{ID: meter, Rate: 100, Burst: 100}) {
			t.Fatalf("meter %d of %v, of flows %x", meter, s, flows)
		}
		meterOf[s.Name] = meter
	}
	if again := New(config, c.Assignment()); text(func() []openflow.Flow { w.update(again, Whole(w.replica), w.localPorts()); return again.Desired() }()) != text(c.Desired()) {
		t.Error("a shim that starts gives other meters")
	}

	delete(w.policies, "p2")
	w.bring(c)
	w.add(logging("p5", 5))
	if put := w.bring(c).PutMeters; len(put) != 1 || slices.Contains(slices.Sorted(mapValues(meterOf)), put[0].ID) {
		t.Errorf("the new rule's meter is %v, of %v", put, meterOf)
	}
	was := meterOf["p2"]
	if got := c.RetiredMeters(); !slices.Equal(got, []uint32{was}) || c.MeterSubject(was) == nil || c.MeterSubject(was).Name != "p2" ||
		!slices.ContainsFunc(c.Meters(), func(m openflow.Meter) bool { return m.ID == was }) {
		t.Errorf("retired are %v of %v; want %d", got, c.MeterSubject(was), was)
	}
	c.DropMeters([]uint32{was, meterOf["p1"]}) // The other is not retired.
	if slices.ContainsFunc(c.Meters(), func(m openflow.Meter) bool { return m.ID == was }) || c.MeterSubject(was) != nil || c.MeterSubject(meterOf["p1"]) == nil {
		t.Error("what was dropped is there, or what was not is gone")
	}
	w.add(logging("p6", 6))
	if put := w.bring(c).PutMeters; len(put) != 1 || put[0].ID != was {
		t.Errorf("the next rule has meter %v, want %d", put, was)
	}
}

// Meters of a former life are nobody's until they are dropped, but for those that the
// assignment has.
func TestRetiredMetersOfAFormerLife(t *testing.T) {
	w := newTierWorld(t)
	w.add(logging("p0", 0))
	c := New(config, Assignment{})
	w.bring(c)
	was := &Subject{Name: "was"}
	again := New(config, c.Assignment())
	again.RetireMeters(map[uint32]*Subject{LogMeter: was, firstLogMeter: was, firstLogMeter + 1: was, firstLogMeter + 2: nil, firstLogMeter + mostLogMeters: was})
	w.add(logging("p1", 1))
	w.update(again, Whole(w.replica), w.localPorts())
	put := w.bring(again).PutMeters
	if got := again.RetiredMeters(); !slices.Equal(got, []uint32{firstLogMeter + 1, firstLogMeter + 2}) || again.MeterSubject(firstLogMeter+1) != was || again.MeterSubject(firstLogMeter+2) != nil ||
		again.MeterSubject(firstLogMeter).Name != "p0" || len(put) != 1 || put[0].ID != firstLogMeter+3 {
		t.Errorf("retired are %v, put is %v", got, put)
	}
}

// A flow says of its reports what the compiler that made it would say.
func TestReporterOf(t *testing.T) {
	w := newTierWorld(t)
	all := config
	all.LogIsolationAll = true
	c := New(all, Assignment{})
	actions := make(map[string]policyv1.Action)
	for _, action := range []policyv1.Action{allow, drop, reject, pass} {
		for _, dir := range bothDirections {
			p := logging(fmt.Sprint(action, dir), len(w.policies))
			p.Rules[0].Action, p.Rules[0].Direction = action, dir
			w.add(p)
			actions[p.GetRef().GetName()] = action
		}
	}
	quiet := tier("quiet", 99, drop)
	w.add(quiet)
	w.bring(c)
	seen := make(map[string]bool)
	for _, f := range c.Desired() {
		r, reports := ReporterOf(f)
		subjects := c.Subjects(r.ID)
		if !reports || len(subjects) == 0 {
			continue
		}
		s := subjects[0]
		if r.Action != actions[s.Name] || r.Meter == LogMeter || c.MeterSubject(r.Meter) == nil || *c.MeterSubject(r.Meter) != s {
			t.Errorf("%v of %v reports as %v", f, s, r)
		}
		seen[s.Name] = true
	}
	if len(seen) != 2*4 || seen["quiet"] {
		t.Errorf("what reports is %v", seen)
	}
}

func mapValues(m map[string]uint32) func(func(uint32) bool) {
	return func(yield func(uint32) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// Where the switch has few meters, rules share them, and none of these is said to be
// one rule's.
func TestFewMetersAreShared(t *testing.T) {
	w := newTierWorld(t)
	few := config
	few.MeterLimit = firstLogMeter + 2
	c := New(few, Assignment{})
	for i := range 10 {
		w.add(logging(fmt.Sprint("p", i), i))
	}
	put := w.bring(c).PutMeters
	named := logMetersOf(t, c)
	delete(named, LogMeter)
	if len(put) != 3 || len(named) != 3 {
		t.Fatalf("%v are put, flows name %v", put, named)
	}
	for meter, flows := range named {
		if len(flows) < 2 || c.MeterSubject(meter) != nil {
			t.Errorf("meter %d is shared by %d, and said to be %v", meter, len(flows), c.MeterSubject(meter))
		}
	}
	for i := range 9 {
		delete(w.policies, fmt.Sprint("p", i))
	}
	w.bring(c)
	if retired := c.RetiredMeters(); len(retired) != 2 || c.MeterSubject(retired[0]) != nil {
		t.Errorf("retired are %v", retired)
	}
	none := config
	none.MeterLimit = 0
	c = New(none, Assignment{})
	if w.update(c, Whole(w.replica), w.localPorts()); len(logMetersOf(t, c)) != 1 {
		t.Errorf("without meters flows name %v", logMetersOf(t, c))
	}
}

// What is to be put again with a meter is all that names it, and nothing else.
func TestMetered(t *testing.T) {
	w := newTierWorld(t)
	c := New(config, Assignment{})
	for i := range 3 {
		w.add(logging(fmt.Sprint("p", i), i))
	}
	w.bring(c)
	const meter = firstLogMeter + 1
	flows := c.Metered(map[uint32]bool{meter: true, meter + 1000: true})
	if len(flows) == 0 {
		t.Fatal("no flow has the meter")
	}
	for _, f := range c.Desired() {
		names := slices.ContainsFunc(f.Actions.List(), func(a openflow.Action) bool {
			to, is := a.(openflow.Controller)
			return is && to.MeterID == meter
		})
		if found := slices.ContainsFunc(flows, func(g openflow.Flow) bool { return g.Key() == f.Key() }); found != names {
			t.Errorf("%v: found %t, names it %t", f, found, names)
		}
	}
}
