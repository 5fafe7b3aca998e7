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
		if got := len(cmp.Rest()); got != len(all) || got != c.FlowCount() {
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
		rest := cmp.Rest()
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
