package pipeline

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/order"
	"github.com/weirnet/weir/storage"
)

// check sends a packet and holds what becomes of it to the interpreter.
func (n *node) check(fake *bridge.Fake, c *Compiler, p bridge.Packet, from, to *testPod) error {
	var judged []traffic
	var want []decision
	judge := func(t traffic) { judged, want = append(judged, t), append(want, n.judge(t, enforced)) }
	out := openflow.PortLocal
	if from != nil && from.port != 0 {
		judge(traffic{egress, from, p.IPDst, p})
	}
	if to != nil && to.port != 0 {
		out = to.port
		if len(want) == 0 || want[0].allowed {
			judge(traffic{ingress, to, p.IPSrc, p})
		}
	}
	for i, t := range judged {
		end := map[policyv1.Direction]uint32{egress: p.InPort, ingress: out}[t.dir]
		h := Hit{Src: p.IPSrc, Dst: p.IPDst, Proto: p.IPProto, SrcPort: p.SrcPort, DstPort: p.DstPort, ICMPType: p.ICMPType, ICMPCode: p.ICMPCode}
		for range 2 { // The second time it remembers.
			if got := c.Judge(t.dir, end, h); got != want[i].allowed {
				return fmt.Errorf("judged %v in %s, while %+v is right", got, t.dir, want[i])
			}
		}
	}
	w := fake.Walk(p, bridge.WalkOptions{CtNext: []uint32{}})
	if slices.ContainsFunc(w.Ambiguous, untied) {
		return fmt.Errorf("ambiguous: %v", w.Ambiguous)
	}
	passes := len(want) == 0 || want[len(want)-1].allowed
	if got := w.Ports(); passes != (len(got) == 1 && got[0] == out) || !passes && len(got) > 0 {
		return fmt.Errorf("leaves by %v, while %v is right: %+v", got, passes, want)
	}
	// The flows that decided mean the rules that decided.
	var hits []bridge.Hit
	for _, h := range w.Trail {
		kind, id, _ := ParseCookie(h.Flow.Cookie)
		if kind == KindIsolation || kind == KindRule && c.byConj[id].body.action != pass {
			hits = append(hits, h)
		}
	}
	for _, d := range want {
		if d.rule == nil && !d.isolated {
			continue
		}
		if len(hits) == 0 {
			return fmt.Errorf("nothing that decided was hit: %+v", d)
		}
		h := hits[0]
		hits = hits[1:]
		a, ok := c.Attribute(Hit{Table: h.Table, Cookie: h.Flow.Cookie, InPort: p.InPort, OutPort: out, Src: p.IPSrc, Dst: p.IPDst,
			Proto: p.IPProto, SrcPort: p.SrcPort, DstPort: p.DstPort, ICMPType: p.ICMPType, ICMPCode: p.ICMPCode})
		switch {
		case !ok || a.Isolation != d.isolated:
			return fmt.Errorf("attributed to %+v instead of %+v", a, d)
		case !d.decides(a.Policies):
			return fmt.Errorf("attributed to %v instead of %+v", a.Policies, d)
		case !d.isolated && (a.Action != d.rule.GetAction() || d.policy.GetRank() != order.RankK8s && a.Rule != d.rule.GetName()):
			return fmt.Errorf("attributed to %+v instead of %+v", a, d)
		}
	}
	if len(hits) > 0 {
		return fmt.Errorf("hits too much: %v", hits)
	}
	if err := n.checkCounts(c, w, judged, want); err != nil {
		return err
	}
	if err := n.checkAnswers(w, judged); err != nil {
		return err
	}
	return n.checkRecord(c, w, judged)
}

// untied says whether it matters which of two flows is taken.
func untied(pair [2]openflow.Flow) bool { return !Tied(pair[0], pair[1]) }

// checkCounts holds what a packet counts for to what decided it: once in each
// direction, a connection that begins too, and beside it what passed it on.
func (n *node) checkCounts(c *Compiler, w bridge.Walk, judged []traffic, want []decision) error {
	begins := len(want) > 0 && want[len(want)-1].allowed
	for i, t := range judged {
		d := want[i]
		rules, isolated, sessions := make(map[policyv1.Action]int), []*policyv1.Policy(nil), 0
		for _, h := range w.Trail {
			count, counts := CountOf(h.Flow)
			if !counts {
				continue
			}
			for _, s := range c.Subjects(count.ID) {
				p := n.policies[s.Name]
				if s.Direction != t.dir || p.GetStaged() {
					continue
				}
				if count.Sessions && !count.Packets {
					sessions++
					continue
				}
				if s.Isolation {
					isolated = append(isolated, p)
					continue
				}
				r := n.ruleOf(s)
				rules[r.GetAction()]++
				of := d.candidate
				if r.GetAction() == pass {
					of = d.passed
				}
				if p.GetRank() != of.policy.GetRank() || p.GetPriority() != of.policy.GetPriority() || r.GetAction() != of.rule.GetAction() {
					return fmt.Errorf("counted for %v while %+v decides", s, d)
				}
			}
		}
		expect := make(map[policyv1.Action]int)
		if d.passed.rule != nil {
			expect[pass]++
		}
		begun := 0
		if d.rule != nil {
			expect[d.rule.GetAction()]++
			if begins && d.rule.GetAction() == allow {
				begun = 1
			}
		}
		if !maps.Equal(rules, expect) || sessions != begun {
			return fmt.Errorf("counted for rules of %v and %d sessions while %+v decides", rules, sessions, d)
		}
		slices.SortFunc(isolated, func(a, b *policyv1.Policy) int { return strings.Compare(a.GetRef().GetName(), b.GetRef().GetName()) })
		if d.isolated != (len(isolated) > 0) || d.isolated && !slices.Equal(isolated, d.policies) {
			return fmt.Errorf("counted for the isolation of %v instead of %+v", isolated, d)
		}
	}
	return nil
}

// ruleOf is the rule that a subject names.
func (n *node) ruleOf(s Subject) *policyv1.Rule {
	for _, r := range n.policies[s.Name].GetRules() {
		if r.GetDirection() == s.Direction && r.GetName() == s.Rule && (s.Rule != "" || r.GetIndex() == s.Index) {
			return r
		}
	}
	return nil
}

// decides says whether policies are those that decide.
func (d decision) decides(refs []*policyv1.PolicyRef) bool {
	return slices.EqualFunc(refs, d.policies, func(ref *policyv1.PolicyRef, p *policyv1.Policy) bool { return proto.Equal(ref, p.GetRef()) })
}

// Packets on a bridge with random policies of all ranks fare as the interpreter
// says, through edits and restarts; and a compiler that went through them wants
// what a new one would with its assignment.
func TestRulesOfAllRanks(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 10
	}
	var met formsMet
	for seed := range seeds {
		if err := allRanks(t, rand.New(rand.NewPCG(seed, 9)), &met); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	t.Logf("levels of both worlds were looked at in %+v", met)
	for w, m := range met {
		if m.direct < 10 || m.conjunctive < 10 || m.switched < 2 {
			t.Errorf("world %d had too few levels of a form, or switches: %+v", w, m)
		}
	}
}

// formsMet counts, by world, the levels of each form that a packet could meet,
// and how often a level got the other form.
type formsMet [2]struct{ direct, conjunctive, switched int }

// look notes the forms that levels have now, and knows those that they had.
func (m *formsMet) look(c *Compiler, had map[string]bool) {
	for table, l := range c.ladders {
		in := &m[enforced]
		if table >= TableStagedAntreaPolicyEgressRule {
			in = &m[staged]
		}
		for at, lv := range l.levels {
			if len(lv.bodies) == 0 {
				continue
			}
			key := fmt.Sprint(table, at)
			if was, is := had[key]; is && was != lv.direct {
				in.switched++
			}
			if had[key] = lv.direct; lv.direct {
				in.direct++
			} else {
				in.conjunctive++
			}
		}
	}
}

func allRanks(t *testing.T, rng *rand.Rand, met *formsMet) error {
	ctx := context.Background()
	cfg := config
	cfg.ClauseCap = 1 + rng.IntN(3)
	w := newFeed(t, "node-1")
	n := &node{pods: make(map[string]*testPod), policies: make(map[string]*policyv1.Policy)}
	for i := range 6 {
		p := randomPod(rng, i+1)
		n.pods[p.name] = p
	}
	fake := bridge.NewFake(bridge.Config{Name: "br0", Mark: bridge.Mark{Value: CookieMark, Mask: CookieMask}})
	for i := range 4 {
		if err := fake.AddPort(ctx, fmt.Sprint("if", i+1), nil); err != nil {
			return err
		}
	}
	tight := rng.IntN(2) == 0
	start := func(former Assignment) *Compiler {
		c := New(cfg, former)
		if tight { // So that priorities run out and flows move.
			for table := range c.ladders {
				c.ladders[table] = newLadder(1, 32, 24, c.move)
				c.ladders[table].restore(former.Levels[table])
			}
		}
		return c
	}
	c := start(Assignment{})
	var held map[storage.ScopeID]map[string]storage.Change
	forms := make(map[string]bool)
	var earlier []record
	for round := range 12 {
		for range rng.IntN(5) {
			name := fmt.Sprint("policy-", rng.IntN(8))
			if delete(n.policies, name); rng.IntN(4) > 0 {
				n.policies[name] = randomPolicy(rng, name)
			}
		}
		if rng.IntN(3) == 0 {
			p := randomPod(rng, 1+rng.IntN(6))
			n.pods[p.name] = p
		}
		items := n.items()
		w.commit(held, items)
		held = items
		ch := w.update(c, w.sync(), n.localPorts())
		if err := fake.Apply(ctx, bridge.Change{Upsert: append(ch.Upsert, c.revisionFlow()), Delete: ch.Delete}); err != nil {
			return err
		}
		met.look(c, forms)
		desired := inForce(c)
		assignment, err := DecodeAssignment(c.Assignment().Encode())
		if err != nil {
			return err
		}
		fresh := start(assignment)
		w.update(fresh, Whole(w.replica), n.localPorts())
		if d := differing(fresh.Desired(), desired); d != "" {
			return fmt.Errorf("round %d: fresh (+) and incremental (-): %s", round, d)
		}
		if err := unaltered(c, earlier); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if rng.IntN(4) == 0 {
			c.Forget(c.Revision())
			earlier = nil
		}
		if rng.IntN(4) == 0 { // A restart.
			c, earlier = fresh, nil
		}
		if rng.IntN(6) == 0 { // One without a checkpoint.
			c = start(Assignment{Next: assignment.Next})
			w.update(c, Whole(w.replica), n.localPorts())
			earlier = nil
		}
		state, err := fake.Read(ctx)
		if err != nil {
			return err
		}
		want := bridge.NewContent()
		for _, f := range c.Desired() {
			want.Flows[f.Key()] = f
		}
		diff := bridge.Diff(want, state)
		if c == fresh && (len(diff.Upsert) > 0 || slices.ContainsFunc(diff.Delete, func(k openflow.FlowKey) bool { return state.Flows[k].Cookie>>40&0xff != uint64(KindCount) })) {
			return fmt.Errorf("round %d: a restart changes %v", round, diff)
		}
		if err := fake.Apply(ctx, diff); err != nil {
			return err
		}
		if err := n.problems(c); err != nil {
			return err
		}
		if rng.IntN(2) == 0 {
			earlier = nil
			if ch := c.Drop(c.Retired()); rng.IntN(2) == 0 {
				if err := fake.Apply(ctx, bridge.Change{Upsert: ch.Upsert, Delete: ch.Delete}); err != nil {
					return err
				}
			}
		}
		for range 60 {
			p, from, to := n.randomPacket(rng)
			if rng.IntN(4) == 0 {
				r, err := recordOf(c, fake.Walk(p, bridge.WalkOptions{CtNext: []uint32{}}))
				if err != nil {
					return err
				}
				earlier = append(earlier, r)
			}
			if err := n.check(fake, c, p, from, to); err != nil {
				return fmt.Errorf("round %d: %s: %w", round, p.String(), err)
			}
		}
	}
	return nil
}

// problems checks that a Pass in a baseline is a problem, and nothing else.
func (n *node) problems(c *Compiler) error {
	want := 0
	for _, p := range n.policies {
		for _, r := range p.GetRules() {
			if p.GetRank() >= order.RankBaseline && r.GetAction() == pass {
				want++
			}
		}
	}
	got := 0
	for _, p := range c.Problems() {
		got += strings.Count(p.Err.Error(), "in a baseline")
	}
	if got != want {
		return fmt.Errorf("%d rules that pass in a baseline are problems, want %d: %v", got, want, c.Problems())
	}
	return nil
}
