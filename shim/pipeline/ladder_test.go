package pipeline

import (
	"math"
	"math/rand/v2"
	"reflect"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/order"
)

// ascending checks that a ladder's priorities follow its order, within range.
func ascending(t *testing.T, l *ladder) {
	t.Helper()
	if err := l.check(l.save()); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, lv := range l.levels {
		n += len(lv.lanes)
		if (len(lv.lanes) == 0) != lv.beyond {
			t.Fatalf("level %v has %d lanes; past the limit: %v", lv.at, len(lv.lanes), lv.beyond)
		}
	}
	if n != len(l.slots.list) {
		t.Fatalf("%d slots, where levels have %d", len(l.slots.list), n)
	}
}

func tierRule(priority float64) *rule {
	return &rule{at: precedence{Rank: 250, Priority: priority, Action: policyv1.Action_ACTION_DROP}}
}

// Whatever comes and goes, priorities stay in order, and what is past the limit
// are the last.
func TestLadderKeepsOrder(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		limit := 5 + rng.IntN(20)
		l := newLadder(1, uint16(limit+rng.IntN(20)), limit, func(*slot, uint16) {})
		held := make(map[*rule]bool)
		for range 40 {
			for r := range held {
				if rng.IntN(4) == 0 {
					delete(held, r)
					l.exit(r)
				}
			}
			for range rng.IntN(8) {
				r := tierRule(float64(rng.IntN(30)))
				r.at.Rank = uint32(250 + rng.IntN(2))
				held[r] = true
				l.enter(r)
			}
			fell, _ := l.settle()
			l.place(fell)
			ascending(t, l)
			for r := range held {
				if rng.IntN(3) == 0 && !r.level.beyond {
					l.lane(r.level, len(r.level.lanes))
				}
			}
			ascending(t, l)
			if placed := len(l.levels) - l.beyond; placed != min(len(l.levels), limit) {
				t.Fatalf("seed %d: %d of %d levels have a place, at a limit of %d", seed, placed, len(l.levels), limit)
			}
			other := newLadder(1, uint16(l.slots.high), limit, nil)
			other.restore(l.save())
			if !reflect.DeepEqual(other.save(), l.save()) {
				t.Fatalf("seed %d: saved, restored and saved again it differs", seed)
			}
		}
	}
}

// moves counts how many levels change their priority as rules of these
// priorities come, one by one.
func moves(t *testing.T, priorities func(i int) float64, n int) int {
	t.Helper()
	moved := 0
	l := newLadder(1, prioSkip-1, limitTiers, func(s *slot, to uint16) {
		if s.priority != 0 {
			moved++
		}
	})
	for i := range n {
		l.enter(tierRule(priorities(i)))
		fell, _ := l.settle()
		l.place(fell)
	}
	ascending(t, l)
	return moved
}

// What comes between others moves them rarely: not at all while there are few,
// and seldom many.
func TestLadderMovesLittle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for name, tc := range map[string]struct {
		priority func(i int) float64
		n, most  int
	}{
		"ascending, few":   {func(i int) float64 { return float64(i) }, 400, 0},
		"descending, few":  {func(i int) float64 { return -float64(i) }, 400, 0},
		"at random, few":   {func(int) float64 { return rng.Float64() }, 100, 0},
		"ascending, many":  {func(i int) float64 { return float64(i) }, 10000, 250000},
		"descending, many": {func(i int) float64 { return -float64(i) }, 10000, 250000},
		"at random, many":  {func(int) float64 { return rng.Float64() }, 10000, 250000},
		"into one gap":     {func(i int) float64 { return 1 / float64(i+1) * float64(1-2*(i%2)) }, 10000, 250000},
	} {
		got := moves(t, tc.priority, tc.n)
		t.Logf("%s: %d rules move %d", name, tc.n, got)
		if got > tc.most {
			t.Errorf("%s: %d rules move others %d times, at most %d allowed", name, tc.n, got, tc.most)
		}
	}
}

func TestLadderHoldsItsLimit(t *testing.T) {
	l := newLadder(1, prioSkip-1, limitTiers, func(*slot, uint16) {})
	for i := range limitTiers {
		l.enter(tierRule(float64(i)))
		if i%5000 == 0 {
			fell, _ := l.settle()
			l.place(fell)
		}
	}
	fell, _ := l.settle()
	l.place(fell)
	ascending(t, l)
	if l.beyond != 0 || len(l.slots.list) != limitTiers {
		t.Errorf("%d levels have a place, %d are past the limit", len(l.slots.list), l.beyond)
	}
}

func TestPrecedenceOrder(t *testing.T) {
	const allow, drop, reject, pass = policyv1.Action_ACTION_ALLOW, policyv1.Action_ACTION_DROP, policyv1.Action_ACTION_REJECT, policyv1.Action_ACTION_PASS
	admin, cluster := policyv1.PolicyKind_POLICY_KIND_ADMIN_NETWORK_POLICY, policyv1.PolicyKind_POLICY_KIND_CLUSTER_NETWORK_POLICY
	inOrder := []precedence{
		{Rank: 50, Priority: 9, Action: allow},
		{Rank: 250, Priority: 1, Index: 7, Action: allow},
		{Rank: 250, Priority: 1.5, Action: drop},
		{Rank: 250, Priority: 1.5, Action: reject},
		{Rank: 250, Priority: 1.5, Action: pass},
		{Rank: 250, Priority: 1.5, Action: allow},
		{Rank: 250, Priority: 1.5, Action: allow, Quiet: true},
		{Rank: 250, Priority: 1.5, Index: 1, Action: drop},
		{Rank: order.RankAdmin, Kind: admin, Index: 3, Action: allow},
		{Rank: order.RankAdmin, Kind: cluster, Action: drop},
		{Rank: order.RankAdmin, Priority: 1, Kind: admin, Action: drop},
	}
	for i, a := range inOrder {
		for j, b := range inOrder {
			if got := a.compare(b); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("%v against %v: %d", a, b, got)
			}
		}
	}
}

func TestPrecedenceRefuses(t *testing.T) {
	const drop, pass = policyv1.Action_ACTION_DROP, policyv1.Action_ACTION_PASS
	for _, at := range []precedence{
		{Rank: 255, Action: drop}, {Rank: 250}, {Rank: 250, Action: 9}, {Rank: order.RankK8s, Action: drop},
		{Rank: order.RankBaseline, Action: pass}, {Rank: order.RankUpstreamBaseline, Action: pass},
		{Rank: 250, Priority: math.NaN(), Action: drop}, {Rank: 250, Priority: math.Inf(1), Action: drop},
	} {
		if at.check() == nil {
			t.Errorf("%v is taken", at)
		}
	}
}

func TestDecodeAssignmentRefusesDisorder(t *testing.T) {
	first, second := precedence{Rank: 250, Action: policyv1.Action_ACTION_DROP}, precedence{Rank: 250, Priority: 1, Action: policyv1.Action_ACTION_DROP}
	good := func() Assignment {
		return Assignment{Next: 1, Levels: map[uint8][]LevelPlace{TableAntreaPolicyEgressRule: {{At: first, Priorities: []uint16{9, 8}}, {At: second, Priorities: []uint16{7}}}}}
	}
	if _, err := DecodeAssignment(good().Encode()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(p []LevelPlace){
		"levels out of order":     func(p []LevelPlace) { p[0].At, p[1].At = p[1].At, p[0].At },
		"priorities out of order": func(p []LevelPlace) { p[1].Priorities[0] = 8 },
		"a priority out of range": func(p []LevelPlace) { p[1].Priorities[0] = 0 },
		"no priority":             func(p []LevelPlace) { p[0].Priorities = nil },
		"a rank of another table": func(p []LevelPlace) { p[1].At.Rank = order.RankBaseline },
	} {
		a := good()
		spoil(a.Levels[TableAntreaPolicyEgressRule])
		if _, err := DecodeAssignment(a.Encode()); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for name, place := range map[string]RulePlace{"an id that was not given": {Conj: 9}, "a lane of a direct rule": {Conj: 3, Lane: 1, Direct: true}} {
		a := good()
		a.Next, a.Rules = 9, map[string]RulePlace{"rule": place}
		if _, err := DecodeAssignment(a.Encode()); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	a := good()
	a.Levels[TableEgressRule] = a.Levels[TableAntreaPolicyEgressRule]
	if _, err := DecodeAssignment(a.Encode()); err == nil {
		t.Error("levels of a table that has none are taken")
	}
}
