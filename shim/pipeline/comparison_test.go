package pipeline

import (
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
