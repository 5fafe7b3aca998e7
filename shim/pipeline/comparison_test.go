package pipeline

import (
	"cmp"
	"slices"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// A comparison finds what differs, and nothing else; what others change meanwhile,
// and what was touched since the last Update, does not deceive it.
func TestComparisonFindsWhatDiffers(t *testing.T) {
	c := New(Config{RuleLogRate: 1, Observe: []string{"*"}}, Assignment{})
	w := newTierWorld(t)
	w.add(tier("p", 1, policyv1.Action_ACTION_ALLOW))
	w.bring(c)
	all := c.Desired()
	if len(all) < 20 {
		t.Fatalf("%d flows", len(all))
	}
	w.add(tier("q", 2, policyv1.Action_ACTION_DROP))
	c.Unlisted()
	if ch := w.update(c, w.touched(), w.localPorts()); len(ch.Upsert) != 0 || len(c.Desired()) <= len(all) {
		t.Errorf("%d flows are listed, and there are %d after %d", len(ch.Upsert), len(c.Desired()), len(all))
	}
	all = c.Desired()
	w.add(tier("r", 3, policyv1.Action_ACTION_DROP))
	if ch := w.update(c, w.touched(), w.localPorts()); len(ch.Upsert) < len(c.Desired())-len(all) || len(c.Desired()) <= len(all) {
		t.Errorf("%d flows are listed, and there are %d after %d", len(ch.Upsert), len(c.Desired()), len(all))
	}
	all = c.Desired()
	c.LetEstablished(true) // Touches flows, ahead of the next Update.
	for range 2 {
		cmp := c.Compare()
		if got := cmp.Rest().Len(); got != len(all) || got != c.FlowCount() {
			t.Errorf("%d flows are to be met, %d are counted, want %d", got, c.FlowCount(), len(all))
		}
		for i, f := range all {
			other := f
			switch i % 4 {
			case 0:
				f.Packets, f.Age = 7, 8 // As it is read.
				if !cmp.Meets(f) {
					t.Errorf("%v is not met", f)
				}
			case 1:
				other.Cookie++
			case 2:
				other.Priority += 1000
			case 3:
				other.Actions = openflow.NewActions(openflow.OutputPort(77))
			}
			if i%4 != 0 && cmp.Meets(other) {
				t.Errorf("%v is met by %v", f, other)
			}
		}
		want := make(map[openflow.FlowKey]openflow.Flow)
		for i, f := range all {
			if i%4 != 0 {
				want[f.Key()] = f
			}
		}
		rest := listOf(cmp.Rest())
		if !slices.IsSortedFunc(rest, func(a, b openflow.Flow) int { return CompareKeys(a.Key(), b.Key()) }) || cmp.Met() != len(all)-len(rest) {
			t.Errorf("%d flows are met of %d, and the rest, %d, must be in order", cmp.Met(), len(all), len(rest))
		}
		for _, f := range rest {
			if w, is := want[f.Key()]; !is || !w.Same(f) {
				t.Errorf("%v is said to be missing", f)
			}
		}
		if len(rest) != len(want) {
			t.Errorf("%d flows are missing, want %d", len(rest), len(want))
		}
	}
}

// Steps put in what is missing from the highest priority down, and then take out what
// is not wanted from the lowest up, changed clauses with it. What that is good for,
// TestRepairInSteps of e2e/differential shows.
func TestStepsAreInOrder(t *testing.T) {
	c := New(Config{RuleLogRate: 1}, Assignment{})
	w := newTierWorld(t)
	for i, action := range []policyv1.Action{policyv1.Action_ACTION_ALLOW, policyv1.Action_ACTION_DROP, policyv1.Action_ACTION_PASS} {
		w.add(tier(string(rune('p'+i)), float64(i+1), action))
	}
	w.bring(c)
	comparison := c.Compare()
	var others []openflow.FlowKey
	changed := make(map[openflow.FlowKey]bool)
	for i, f := range c.Desired() {
		other := f
		switch i % 3 {
		case 0:
			other.Priority += 5
			others = append(others, other.Key())
		case 1:
			other.Actions = openflow.Drop()
			changed[f.Key()] = slices.ContainsFunc(f.Actions.List(), func(a openflow.Action) bool { _, clause := a.(openflow.Conjunction); return clause })
		}
		comparison.Meets(other)
	}
	const each = 4
	left := comparison.Rest().Len() + len(others)
	falling := func(a, b openflow.FlowKey) int {
		return cmp.Or(cmp.Compare(b.Table, a.Table), cmp.Compare(b.Priority, a.Priority))
	}
	rising := func(a, b openflow.FlowKey) int {
		return cmp.Or(cmp.Compare(b.Table, a.Table), cmp.Compare(a.Priority, b.Priority))
	}
	var puts, gone []openflow.FlowKey // The latter with changed clauses.
	for i, step := range comparison.Steps(others, each) {
		n := step.More.Len() + len(step.Delete)
		if left -= n; n > each {
			t.Errorf("step %d has %d flows", i, n)
		}
		var puttings, removals []openflow.FlowKey
		for _, f := range listOf(step.More) {
			if changed[f.Key()] {
				removals = append(removals, f.Key())
			} else {
				puttings = append(puttings, f.Key())
			}
		}
		removals = append(removals, step.Delete...)
		// Within a step there is no order.
		slices.SortFunc(puttings, falling)
		slices.SortFunc(removals, rising)
		if len(puttings) > 0 && len(gone) > 0 {
			t.Errorf("step %d puts flows in after others were taken out", i)
		}
		puts, gone = append(puts, puttings...), append(gone, removals...)
	}
	if left != 0 || len(gone) < 2*each || len(puts) < 2*each {
		t.Errorf("%d flows are put in and %d taken out or clauses, %d are left", len(puts), len(gone), left)
	}
	if !slices.IsSortedFunc(puts, falling) || !slices.IsSortedFunc(gone, rising) {
		t.Errorf("flows are put in in the order %v, and taken out in the order %v", puts, gone)
	}
}

func listOf(flows *Flows) (out []openflow.Flow) {
	for i := range flows.Len() {
		out = append(out, flows.At(i))
	}
	return out
}

// Very many flows that change at once are told in order, each once, as a few are.
func TestManyFlowsChange(t *testing.T) {
	s := newFlowSet()
	conj := func(i int) membership { return membership{conj: uint32(i), clause: 1, clauses: 3} }
	key := func(i int) openflow.FlowKey {
		return openflow.FlowKey{Table: 7, Priority: 9, Match: openflow.NewMatch(openflow.Reg(3, uint32(i), 0xffffffff))}
	}
	check := func(want int) {
		t.Helper()
		upsert, more, remove := s.take()
		if upsert != nil || more == nil || more.Len() != want || len(remove) != 0 {
			t.Fatalf("%d flows are listed beside %v, and %d removed; want %d told otherwise", len(upsert), more, len(remove), want)
		}
		list := listOf(more)
		if !slices.IsSortedFunc(list, func(a, b openflow.Flow) int { return CompareKeys(a.Key(), b.Key()) }) {
			t.Error("they are in no order")
		}
		for _, f := range list {
			if is, _ := s.flows[f.Key()].flow(f.Key()); !is.Same(f) {
				t.Fatalf("%v is told, and %v is wanted", f, is)
			}
		}
	}
	for i := range listed + 1 {
		s.join(key(i), conj(i))
	}
	check(listed + 1)
	for i := range listed + 1 { // Every second is as it was in the end.
		s.join(key(i), conj(i+i%2))
	}
	for i := range listed + 1 {
		s.leave(key(i), conj(i))
	}
	check(listed / 2)
	s.join(key(0), conj(1))
	if upsert, more, remove := s.take(); len(upsert) != 1 || more != nil || remove != nil {
		t.Errorf("one change puts %v and %v, and removes %v", upsert, more, remove)
	}
}
