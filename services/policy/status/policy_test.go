package status

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

func at(s int) time.Time { return time.Unix(int64(1000+s), 0) }

// policy is of ten nodes, and in force but for what change says.
func policy(change func(*Policy)) *Policy {
	p := &Policy{Ref: api.Ref{Kind: api.KindAntreaNetworkPolicy, Namespace: "ns", Name: "p"}, UID: "u", Generation: 1, Nodes: 10, Realized: 10}
	if change != nil {
		change(p)
	}
	realized := Condition{Type: TypeRealized, Status: p.Realized == p.Nodes && !p.Unfaithful, Reason: "R"}
	if !realized.Status {
		realized.Reason, realized.Message = "N", "not on some"
	}
	p.Conditions = append([]Condition{{Type: "Realizable", Status: !p.Unfaithful && p.Refused == 0}, realized}, p.Conditions...)
	return p
}

func late(n int) func(*Policy)    { return func(p *Policy) { p.Realized, p.Late = 10-n, n } }
func waiting(n int) func(*Policy) { return func(p *Policy) { p.Realized, p.Waiting = 10-n, n } }
func unknown(n int) func(*Policy) { return func(p *Policy) { p.Realized, p.Unknown = 10-n, n } }

func realizedOf(s *antreav1beta1.PolicyStatus) (status metav1.ConditionStatus, since time.Time) {
	for _, c := range s.Conditions {
		if c.Type == TypeRealized {
			return c.Status, c.LastTransitionTime.Time
		}
	}
	return "", time.Time{}
}

func TestPhases(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Policy)
		want   string
	}{
		"in force":            {nil, PhaseRealized},
		"applies to nothing":  {func(p *Policy) { p.Nodes, p.Realized = 0, 0 }, PhaseRealized},
		"a node is late":      {late(1), PhaseRealizing},
		"one is away":         {unknown(3), PhaseRealizing},
		"one refuses":         {func(p *Policy) { p.Realized, p.Refused = 9, 1 }, PhaseFailed},
		"refused and late":    {func(p *Policy) { p.Realized, p.Refused, p.Late = 8, 1, 1 }, PhaseRealizing},
		"not as it is":        {func(p *Policy) { p.Unfaithful = true }, PhaseFailed},
		"without its tier":    {func(p *Policy) { p.Unfaithful, p.Absent, p.Nodes, p.Realized = true, true, 0, 0 }, PhasePending},
		"not yet, nor as is":  {func(p *Policy) { p.Unfaithful, p.Realized, p.Late = true, 8, 2 }, PhaseRealizing},
		"a moment is missing": {waiting(10), PhaseRealizing},
	} {
		if got := policy(tc.change).phase(); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// A condition's time moves when its truth does, and at no other time, whatever
// happens meanwhile: replicas that are not heard, nodes that come anew, a holder that
// has just begun and knows only what the API server has.
func TestNothingFlaps(t *testing.T) {
	var s *antreav1beta1.PolicyStatus
	for i, step := range []struct {
		name   string
		change func(*Policy)
		urgent urgency
		want   metav1.ConditionStatus
		since  int // Of the condition.
	}{
		{"new, on its way", waiting(10), nothing, "", 0},
		{"in force", nil, truths, "True", 1},
		{"the same", nil, nothing, "True", 1},
		{"nothing is known of some", unknown(4), nothing, "True", 1},
		{"nothing is known of any", unknown(10), nothing, "True", 1},
		{"nodes come anew", waiting(6), nothing, "True", 1},
		{"in force, as ever", nil, nothing, "True", 1},
		{"a Pod on a further node", func(p *Policy) { p.Nodes, p.Realized = 11, 11 }, numbers, "True", 1},
		{"changed, on its way", func(p *Policy) { p.Generation, p.Realized, p.Waiting = 2, 3, 7 }, nothing, "True", 1},
		{"the change is in force", func(p *Policy) { p.Generation = 2 }, truths, "True", 1},
		{"a node is late", func(p *Policy) { p.Generation = 2; late(1)(p) }, truths, "False", 10},
		{"another, too", func(p *Policy) { p.Generation = 2; late(2)(p) }, numbers, "False", 10},
		{"of whom one is away", func(p *Policy) { p.Generation = 2; unknown(1)(p) }, nothing, "False", 10},
		{"in force again", func(p *Policy) { p.Generation = 2 }, truths, "True", 13},
		{"refused", func(p *Policy) { p.Generation, p.Realized, p.Refused = 2, 9, 1 }, truths, "False", 14},
		{"refused, and one is away", func(p *Policy) { p.Generation, p.Realized, p.Refused, p.Unknown = 2, 8, 1, 1 }, truths, "False", 14},
	} {
		next, urgent := policy(step.change).next(s, at(i))
		if urgent != step.urgent {
			t.Errorf("%s: urgency %d, want %d", step.name, urgent, step.urgent)
		}
		if next != nil {
			got, since := realizedOf(next)
			if got != step.want || !since.Equal(at(step.since)) {
				t.Errorf("%s: %s since %v, want %s since %v", step.name, got, since, step.want, at(step.since))
			}
			if step.urgent != nothing && next.ObservedGeneration != policy(step.change).Generation {
				t.Errorf("%s: generation %d", step.name, next.ObservedGeneration)
			}
		}
		s = next
		if s != nil { // As it comes back from the API server.
			text, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			s = new(antreav1beta1.PolicyStatus)
			if err := json.Unmarshal(text, s); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A policy of which nothing was told yet is not in force as long as a node is not
// known to enforce it: there is no former word that would stand.
func TestAFirstStatusDoesNotWaitForNodesThatMayNeverCome(t *testing.T) {
	s, urgent := policy(unknown(2)).next(nil, at(0))
	if urgent != truths || s.Phase != PhaseRealizing || s.CurrentNodesRealized != 8 {
		t.Errorf("%+v", s)
	}
}

// What held and holds no more is told as such.
func TestAConditionThatEndsIsFalse(t *testing.T) {
	conflicting := Condition{Type: "Conflicting", Status: true, Reason: "EqualPrecedence", Message: "with q"}
	s, _ := policy(func(p *Policy) { p.Conditions = []Condition{conflicting} }).next(nil, at(0))
	s, urgent := policy(nil).next(s, at(5))
	if urgent != truths || len(s.Conditions) != 3 || s.Conditions[2].Status != "False" || s.Conditions[2].Message != "" || !s.Conditions[2].LastTransitionTime.Time.Equal(at(5)) {
		t.Errorf("%+v", s)
	}
	if again, urgent := policy(nil).next(s, at(6)); urgent != nothing {
		t.Errorf("%+v", again)
	}
}

// An object is written once a second at the most, its numbers every five; a look
// writes a hundred, truths first; and what failed is tried later and later.
func TestWritesAreSpaced(t *testing.T) {
	rs := records{}
	plan := func(now int, p *Policy) []write { return rs.plan([]Policy{*p}, nil, at(now)) }
	w := plan(0, policy(late(1)))
	if len(w) != 1 {
		t.Fatalf("%v", w)
	}
	w[0].written(at(0))
	if w := rs.plan([]Policy{*policy(nil)}, nil, at(1).Add(-time.Millisecond)); len(w) != 0 {
		t.Error("written twice within a second")
	}
	if w := plan(1, policy(late(2))); len(w) != 0 {
		t.Error("numbers were written after a second")
	}
	if w := plan(5, policy(late(2))); len(w) != 1 || w[0].urgent != numbers {
		t.Error("numbers were not written after five seconds")
	}
	if w = plan(1, policy(nil)); len(w) != 1 || w[0].urgent != truths {
		t.Fatal("a truth was not written after a second")
	}
	for _, wait := range []int{1, 2, 4} {
		w[0].failed(at(10))
		if early := plan(10+wait-1, policy(nil)); len(early) != 0 {
			t.Errorf("tried again before %d s", wait)
		}
		if w = plan(10+wait, policy(nil)); len(w) != 1 {
			t.Fatalf("not tried again after %d s", wait)
		}
	}
	if patch, err := w[0].patch(); err != nil || json.Unmarshal(patch, &[]map[string]any{}) != nil {
		t.Errorf("%s, %v", patch, err)
	}
	if rs.plan(nil, nil, at(20)); len(rs) != 0 {
		t.Error("an object that is gone is remembered")
	}
	var many []Policy
	for i := range 3 * maxWrites {
		p := policy(nil)
		p.Ref.Name, p.UID = time.Duration(i).String(), time.Duration(i).String()
		many = append(many, *p)
	}
	written := 0
	for now := 30; now < 33; now++ {
		w := rs.plan(many, nil, at(now))
		for i := range w {
			w[i].written(at(now))
		}
		written += len(w)
		if len(w) != maxWrites {
			t.Errorf("%d writes", len(w))
		}
	}
	if written != len(many) || len(rs.plan(many, nil, at(40))) != 0 {
		t.Errorf("%d of %d were written", written, len(many))
	}
}

func TestGroups(t *testing.T) {
	ref, other := api.Ref{Kind: api.KindClusterGroup, Name: "g"}, api.Ref{Kind: api.KindClusterGroup, Name: "h"}
	if all := refused([]Group{{Ref: ref, Computed: true}}, map[api.Ref]Problem{ref: {}, other: {}, {Kind: api.KindTier, Name: "t"}: {}}); len(all) != 2 || !all[0].Computed || all[1].Computed || all[1].Ref != other {
		t.Errorf("%+v", all)
	}
	g := &Group{Computed: true}
	s, urgent := g.next(nil, at(0))
	if urgent != truths || s.Conditions[0].Status != "True" {
		t.Errorf("%+v", s)
	}
	if _, urgent = g.next(s, at(1)); urgent != nothing {
		t.Error("written again")
	}
	g.Computed = false
	if s, urgent = g.next(s, at(2)); urgent != truths || s.Conditions[0].Status != "False" || !s.Conditions[0].LastTransitionTime.Time.Equal(at(2)) {
		t.Errorf("%+v", s)
	}
}

// BenchmarkPlan is what it costs to find what is to be written of 1,000 policies:
// nothing, or one (writes/op), with its patch.
func BenchmarkPlan(b *testing.B) {
	for _, changes := range []int{0, 1} {
		b.Run([]string{"quiet", "one"}[changes], func(b *testing.B) {
			rs, policies := records{}, make([]Policy, 1000)
			for i := range policies {
				policies[i] = *policy(nil)
				policies[i].Ref.Name, policies[i].UID = fmt.Sprint(i), fmt.Sprint(i)
			}
			look := func(now int) (writes int) {
				for _, w := range rs.plan(policies, nil, at(now)) {
					if _, err := w.patch(); err != nil {
						b.Fatal(err)
					}
					w.written(at(now))
					writes++
				}
				return writes
			}
			now := 0
			for look(now) > 0 {
				now++
			}
			writes := 0
			for b.Loop() {
				now += 10
				if changes > 0 {
					policies[now%1000].Generation++
				}
				writes += look(now)
			}
			if writes != changes*b.N {
				b.Errorf("%d writes in %d looks", writes, b.N)
			}
			b.ReportMetric(float64(writes)/float64(b.N), "writes/op")
		})
	}
}
