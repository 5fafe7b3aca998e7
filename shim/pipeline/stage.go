package pipeline

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/order"
	"github.com/weirnet/weir/storage"
)

// The staged world has an endpoint, in a direction, as long as a staged policy
// applies to it there: it is judged. Rules that apply to judged endpoints, and
// only these, are in the staged world too: a staged policy's as they are,
// others by a twin. So what is not staged costs nothing, and one staged policy
// costs what the rules of its endpoints cost once more.

// as is the rule in a world; nil where it is not there.
func (r *rule) as(w world) *rule {
	if r.world == w {
		return r
	}
	return r.twin
}

// staged is the rule in the staged world; it is made where there is none yet.
func (r *rule) staged() *rule {
	t := r.as(staged)
	if t == nil {
		t = &rule{content: r.content, policy: r.policy, world: staged, twin: r, wire: r.wire, at: r.at}
		t.key = t.name()
		r.twin = t
	}
	if t.judges == nil {
		t.judges = make(map[*endpoint]struct{})
	}
	return t
}

// ordered says whether the rule has a place in its table's order.
func (r *rule) ordered() bool { return r.at.Rank != order.RankK8s }

// review has isolation and staged rules of endpoints worked out again, since a
// policy comes or goes.
func (c *Compiler) review(p *policy, scopes []storage.ScopeID) {
	if !p.isolates() && p.world() == enforced && c.judged == 0 {
		return
	}
	for _, g := range scopes {
		for ep := range c.inGroup[g] {
			if ep.port != nil {
				c.reassess[ep] = struct{}{}
			}
		}
	}
}

// judging is a rule of the staged world and an endpoint that it is to guard.
type judging struct {
	rule *rule
	ep   *endpoint
}

// assess works out again what policies as a whole mean for the endpoints that
// were touched: which rules of the staged world guard them, and isolation.
func (c *Compiler) assess() {
	var come []judging
	classes := make(classes)
	for ep := range c.reassess {
		come = append(come, c.setJudged(ep, classes.of(c, ep).judged)...)
	}
	slices.SortFunc(come, func(a, b judging) int {
		return cmp.Or(strings.Compare(a.rule.key, b.rule.key), cmp.Compare(a.ep.port.OFPort, b.ep.port.OFPort))
	})
	rose := c.settle(staged)
	for _, j := range come {
		c.guard(j.rule.body, j.ep)
	}
	c.guardRisen(rose)
	for _, ep := range slices.SortedFunc(maps.Keys(c.reassess), func(a, b *endpoint) int { return cmp.Compare(a.port.OFPort, b.port.OFPort) }) {
		c.isolate(ep, classes.of(c, ep))
	}
	clear(c.reassess)
}

// setJudged takes over in which directions an endpoint is judged, and returns
// the rules that are to guard it once they have their places.
func (c *Compiler) setJudged(ep *endpoint, in [directions]bool) (come []judging) {
	none := [directions]bool{}
	switch {
	case ep.judged == none && in == none:
		return nil
	case ep.judged == none:
		c.judged++
	case in == none:
		c.judged--
	}
	ep.judged = in
	for p := range c.guarding(ep) {
		for _, r := range p.rules {
			if !r.appliesTo(ep) {
				continue
			}
			if !in[r.wire.GetDirection()] {
				c.unjudge(r.as(staged), ep)
			} else if t := r.staged(); c.judge(t, ep) {
				come = append(come, judging{t, ep})
			}
		}
	}
	return come
}

// judge makes an endpoint one that a rule of the staged world is to guard; false
// where it is already. The first brings the rule into the staged world.
func (c *Compiler) judge(t *rule, ep *endpoint) bool {
	if _, is := t.judges[ep]; is {
		return false
	}
	if len(t.judges) == 0 {
		if t.ordered() {
			c.ladders[t.table()].enter(t)
		}
		c.admit(t)
		if t.twin != nil {
			c.report(t.twin.body, 1)
		}
	}
	t.judges[ep] = struct{}{}
	t.body.asked[ep]++
	return true
}

// unjudge undoes judge.
func (c *Compiler) unjudge(t *rule, ep *endpoint) {
	if t == nil {
		return
	}
	if _, is := t.judges[ep]; !is {
		return
	}
	if t.body.asked[ep]--; t.body.asked[ep] == 0 {
		delete(t.body.asked, ep)
		c.unguard(t.body, ep)
	}
	if delete(t.judges, ep); len(t.judges) > 0 {
		return
	}
	c.dismiss(t)
	if t.ordered() {
		c.ladders[t.table()].exit(t)
	}
	if r := t.twin; r != nil {
		r.twin = nil
		c.report(r.body, -1)
	}
}

// judgedFlows are those of a judged endpoint in a direction: the gate to the
// staged world, isolation there, and the report of an enforced isolation that is
// silent. The isolations are those of the two worlds; nil where there is none.
func (c *Compiler) judgedFlows(ep *endpoint, dir policyv1.Direction, there, silent *isolation) (out []openflow.Flow) {
	s, target := stepsOf[enforced][dir], targetField(dir, ep.port.OFPort)
	out = append(out, openflow.Flow{Table: s.policy, Priority: prioGate, Match: openflow.NewMatch(target, s.unasked()),
		Cookie: cookie(KindStaged, ep.port.OFPort), Actions: ask(dir)})
	if there != nil {
		out = append(out, openflow.Flow{Table: stepsOf[staged][dir].last, Priority: prioIsolation, Match: openflow.NewMatch(target),
			Cookie: cookie(KindStaged, ep.port.OFPort), Actions: actions(append(countBy(there.id), s.decide(verdictDrop, there.id)...)...)})
	}
	if silent != nil {
		out = append(out, openflow.Flow{Table: s.last, Priority: prioIsolation + 1, Match: openflow.NewMatch(target, s.differs(verdictDrop)),
			Cookie: cookie(KindIsolation, ep.port.OFPort), Actions: actions(slices.Insert(dropBy(silent.id), 1, c.logAction(silent.id, true))...)})
	}
	return out
}
