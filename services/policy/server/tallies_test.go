package server

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

func counter(policy, rule int, n uint64) *policyv1.RuleCounter {
	return &policyv1.RuleCounter{Policy: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY, Namespace: "x", Name: fmt.Sprint("p", policy)}, Uid: fmt.Sprint("u", policy),
		Direction: policyv1.Direction_DIRECTION_INGRESS, Index: uint32(rule), Sessions: n, Packets: 2 * n, Bytes: 100 * n}
}

func told(reading uint64, rules ...*policyv1.RuleCounter) []*policyv1.NodeStats {
	return []*policyv1.NodeStats{{Reading: reading, CountedSinceMs: 5, Rules: rules}}
}

func key(policy int) tallyKey {
	return keyOf(counter(policy, 0, 0).GetPolicy(), fmt.Sprint("u", policy))
}

func (t *tallies) sessions(policy, rule int) uint64 {
	return t.of(key(policy), 0).cells[ruleKey{direction: policyv1.Direction_DIRECTION_INGRESS, index: uint32(rule)}].sessions
}

// pull is what learnTalliesOf does, without a wire.
func (t *tallies) pull(from *tallies, mark uint64) uint64 {
	reports, mark := from.changed(mark)
	for node, report := range reports {
		for i, m := range report {
			report[i] = proto.Clone(m).(*policyv1.NodeStats)
		}
		t.report(node, report, false, time.Time{})
	}
	return mark
}

// Nodes report to any replica and move between them; replicas restart, and ask
// each other now and then. Once they have, all have the sums of what nodes counted.
func TestAllReplicasHaveTheSums(t *testing.T) {
	const nodes, policies, replicas = 5, 4, 3
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		type node struct {
			at      int // Which replica it is connected to.
			first   bool
			reading uint64
			counted [policies][2]uint64
			changed [policies][2]bool
		}
		var all [nodes]node
		var at [replicas]*tallies
		var marks [replicas][replicas]uint64
		for i := range at {
			at[i] = newTallies()
		}
		for i := range all {
			all[i].first = true
		}
		pull := func() {
			for i := range at {
				for j := range at {
					if i != j {
						marks[i][j] = at[i].pull(at[j], marks[i][j])
					}
				}
			}
		}
		report := func(i int) {
			n := &all[i]
			n.reading++
			var rules []*policyv1.RuleCounter
			for p := range policies {
				for r := range 2 {
					if n.counted[p][r] > 0 && (n.first || n.changed[p][r]) {
						rules = append(rules, counter(p, r, n.counted[p][r]))
					}
				}
			}
			n.first, n.changed = false, [policies][2]bool{}
			at[n.at].report(fmt.Sprint("n", i), told(n.reading, rules...), true, time.Time{})
		}
		for range 200 {
			i := rnd.IntN(nodes)
			n := &all[i]
			switch rnd.IntN(8) {
			case 0:
				n.at, n.first = rnd.IntN(replicas), true
			case 1:
				pull()
			case 2:
				if rnd.IntN(4) == 0 { // A replica restarts: its nodes come again, and the others' marks are of its former life.
					gone := rnd.IntN(replicas)
					at[gone] = newTallies()
					for j := range at {
						marks[gone][j], marks[j][gone] = 0, 0
					}
					for k := range all {
						if all[k].at == gone {
							all[k].at, all[k].first = rnd.IntN(replicas), true
						}
					}
				}
			case 3, 4, 5:
				p, r := rnd.IntN(policies), rnd.IntN(2)
				n.counted[p][r] += uint64(rnd.IntN(10))
				n.changed[p][r] = true
			default:
				report(i)
			}
		}
		for i := range all {
			report(i)
		}
		pull()
		for p := range policies {
			for r := range 2 {
				want := uint64(0)
				for _, n := range all {
					want += n.counted[p][r]
				}
				for i := range at {
					if got := at[i].sessions(p, r); got != want {
						t.Fatalf("seed %d: replica %d has %d of p%d rule %d, want %d", seed, i, got, p, r, want)
					}
				}
			}
		}
		for i := range at { // Nobody has anything new, and nobody is told of it.
			for j := range at {
				if i != j {
					marks[i][j] = at[i].pull(at[j], marks[i][j])
				}
			}
		}
		for j := range at {
			if reports, _ := at[j].changed(marks[(j+1)%replicas][j]); len(reports) > 0 {
				t.Fatalf("seed %d: replica %d still has something new: %v", seed, j, reports)
			}
		}
	}
}

// A report replaces what a node told before, and an older one that comes by
// another replica does not; a node that is gone stays in the sum.
func TestReportsReplaceEachOther(t *testing.T) {
	a := newTallies()
	a.report("n1", told(10, counter(0, 0, 5), counter(0, 1, 1)), true, time.Time{})
	a.report("n2", told(10, counter(0, 0, 7)), true, time.Time{})
	a.report("n1", told(20, counter(0, 0, 6)), true, time.Time{})
	a.report("n1", told(15, counter(0, 0, 5)), false, time.Time{})
	a.report("n1", nil, true, time.Time{})
	if got := a.sessions(0, 0); got != 13 || a.sessions(0, 1) != 1 {
		t.Errorf("%d and %d sessions, want 13 and 1", got, a.sessions(0, 1))
	}
	if got := a.of(key(0), 0); got.nodes != 2 || got.since != 5 {
		t.Errorf("of %d nodes since %d", got.nodes, got.since)
	}
	a.report("n1", told(3, counter(0, 0, 2)), true, time.Time{}) // Its accounts were lost.
	if got := a.sessions(0, 0); got != 9 {
		t.Errorf("%d sessions after accounts were lost, want 9", got)
	}
	b := newTallies()
	b.report("n1", told(20, counter(0, 0, 6)), true, time.Time{})
	b.pull(a, 0)
	if got := b.sessions(0, 0); got != 9 {
		t.Errorf("another replica has %d sessions, want 9", got)
	}
}

// What is known of policies that do not exist goes, after a while; of nodes that
// do not exist only the sums stay, where they are too many.
func TestTalliesAreBounded(t *testing.T) {
	a := newTallies()
	a.report("n1", told(10, counter(0, 0, 5), counter(1, 0, 1)), true, time.Time{})
	now := time.Unix(1000, 0)
	exists := func(k tallyKey) bool { return k.name == "p1" }
	a.prune(exists, nil, now)
	a.prune(exists, nil, now.Add(doubtTime-1))
	if a.sessions(0, 0) != 5 {
		t.Error("it went at once")
	}
	a.prune(exists, nil, now.Add(doubtTime))
	if a.sessions(0, 0) != 0 || a.sessions(1, 0) != 1 || len(a.policies) != 1 {
		t.Errorf("%d policies are left", len(a.policies))
	}
	for i := range maxGoneNodes + 10 {
		a.report(fmt.Sprint("gone-", i), told(10, counter(1, 0, 2)), true, now.Add(time.Duration(i)))
	}
	before := a.sessions(1, 0)
	a.prune(exists, []string{"n1"}, now)
	if len(a.nodes) != maxGoneNodes+1 || a.of(key(1), 0).nodes != maxGoneNodes+1 || a.nodes["n1"] == nil || a.nodes["gone-9"] != nil {
		t.Errorf("%d nodes are known", len(a.nodes))
	}
	if got := a.sessions(1, 0); got != before || got != 1+2*(maxGoneNodes+10) {
		t.Errorf("%d sessions, and before %d", got, before)
	}
	for i := range maxRules + 5 {
		a.report("n1", told(11, counter(1, i, 1)), true, now)
	}
	if n := len(a.policies[key(1)].sums); n != maxRules {
		t.Errorf("%d rules of a policy are counted", n)
	}
}

// Uncounted time before a policy was there is none of its.
func TestUncountedCountsFromThePolicysBeginning(t *testing.T) {
	list := []*policyv1.Interval{{FromMs: 10_000, ToMs: 12_000}, {FromMs: 20_000, ToMs: 25_000}}
	for _, test := range []struct {
		created int64
		all     uint64
		want    time.Duration
	}{{0, 7000, 7 * time.Second}, {11, 7000, 6 * time.Second}, {15, 9000, 5 * time.Second}, {30, 7000, 0}, {0, 9000, 9 * time.Second}, {9, 9000, 9 * time.Second}} {
		n := &nodeTally{uncounted: list, uncountedMs: test.all}
		if got := n.uncountedSince(test.created * 1000); got != test.want {
			t.Errorf("created at %d, with %d ms in all: %v, want %v", test.created, test.all, got, test.want)
		}
	}
}

// A long report to another replica comes in several messages, and is taken whole.
func TestLongReportsAreTakenWhole(t *testing.T) {
	a, b := newTallies(), newTallies()
	var rules []*policyv1.RuleCounter
	for i := range talliesPerMessage + 10 {
		rules = append(rules, counter(i, 0, 1))
	}
	a.report("n1", told(10, rules...), true, time.Time{})
	reports, _ := a.changed(0)
	if got := reports["n1"]; len(got) != 2 || !got[0].GetMore() || got[1].GetMore() {
		t.Fatalf("%d messages", len(got))
	}
	if b.pull(a, 0); len(b.policies) != len(rules) {
		t.Errorf("%d policies came", len(b.policies))
	}
	se, st := &session{node: "n"}, &stream{}
	se.stream = st
	if whole := se.report(st, reports["n1"][0], nil); whole != nil {
		t.Error("half of a report was taken")
	}
	if whole := se.report(st, &policyv1.NodeStats{}, nil); whole != nil { // Of ports, in between.
		t.Error("what tells of no counters was taken for the end")
	}
	if whole := se.report(st, reports["n1"][1], nil); len(whole) != 2 {
		t.Errorf("%d messages of 2 were taken", len(whole))
	}
}

// BenchmarkTallies has 1,000 nodes report 200 rules, of which a tenth changed.
func BenchmarkTallies(b *testing.B) {
	a := newTallies()
	full := make([]*policyv1.RuleCounter, 200)
	for n := range 1000 {
		for i := range full {
			full[i] = counter(i, 0, 1)
		}
		a.report(fmt.Sprint("n", n), told(1, full...), true, time.Time{})
	}
	reading := uint64(1)
	for b.Loop() {
		reading++
		for i := range 20 {
			full[i] = counter(i, 0, reading)
		}
		a.report(fmt.Sprint("n", reading%1000), told(reading, full[:20]...), true, time.Time{})
	}
	if a.sessions(100, 0) != 1000 {
		b.Fatal("not all nodes have reported")
	}
}
