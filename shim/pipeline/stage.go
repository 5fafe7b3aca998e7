package pipeline

import (
	"cmp"
	"slices"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
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
		twin := *r
		t = &twin
		t.world, t.twin, t.level, t.in = staged, r, nil, [2]int{}
		t.guarded = make(map[*endpoint]struct{})
		t.parts = newParts(t)
		r.twin = t
	}
	if t.judges == nil {
		t.judges = make(map[*endpoint]struct{})
	}
	return t
}

// ordered says whether the rule has a place in its table's order.
func (r *rule) ordered() bool { return r.at.Rank != rankK8s }

// review has isolation and staged rules of endpoints worked out again, since a
// policy comes or goes.
func (c *Compiler) review(p *policy, scopes []storage.ScopeID) {
	if !p.isolates() && p.world() == enforced && c.judged == 0 {
		return
	}
	for _, ep := range c.targets(scopes) {
		c.reassess[ep] = struct{}{}
	}
}

// judgedIn says in which directions a staged policy applies to an endpoint.
func (c *Compiler) judgedIn(ep *endpoint) (in [directions]bool) {
	for p := range c.guarding(ep) {
		if p.world() != staged {
			continue
		}
		for _, r := range p.rules {
			if r.appliesTo(ep) {
				in[r.wire.GetDirection()] = true
			}
		}
		for _, dir := range bothDirections {
			if p.isolatesIn(dir) && p.appliesTo(ep) {
				in[dir] = true
			}
		}
	}
	return in
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
	for ep := range c.reassess {
		come = append(come, c.setJudged(ep, c.judgedIn(ep))...)
	}
	slices.SortFunc(come, func(a, b judging) int {
		return cmp.Or(comparePlaces(a.rule, b.rule), cmp.Compare(a.ep.port.OFPort, b.ep.port.OFPort))
	})
	rose := c.settle(staged)
	for _, j := range come {
		c.guard(j.rule, j.ep)
	}
	c.guardRisen(rose)
	for ep := range c.reassess {
		c.isolate(ep)
	}
	clear(c.reassess)
}

// comparePlaces orders rules by what their first parts are called.
func comparePlaces(a, b *rule) int {
	key := func(r *rule) string {
		if len(r.parts) == 0 {
			return ""
		}
		return r.parts[0].key
	}
	return strings.Compare(key(a), key(b))
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
		c.linkPeers(t)
		if t.twin != nil {
			c.decisions(t.twin)
		}
	}
	t.judges[ep] = struct{}{}
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
	c.unguard(t, ep)
	if delete(t.judges, ep); len(t.judges) > 0 {
		return
	}
	if t.ordered() {
		c.ladders[t.table()].exit(t)
	}
	c.unlinkPeers(t)
	if r := t.twin; r != nil {
		if len(r.guarded) > 0 {
			c.undecide(r)
		}
		r.twin = nil
		c.decisions(r)
	}
}

// judgedFlows are those of a judged endpoint in a direction: the gate to the
// staged world, isolation there, and the report of an enforced isolation that is silent.
func (c *Compiler) judgedFlows(ep *endpoint, dir policyv1.Direction, silent bool) (out []openflow.Flow) {
	s, there, target := stepsOf[enforced][dir], stepsOf[staged][dir], targetField(dir, ep.port.OFPort)
	out = append(out, openflow.Flow{Table: s.policy, Priority: prioGate, Match: openflow.NewMatch(target, s.unasked()),
		Cookie: cookie(KindStaged, ep.port.OFPort), Actions: ask(dir)})
	if len(c.isolating(ep, dir, staged)) > 0 {
		out = append(out, openflow.Flow{Table: there.last, Priority: prioIsolation, Match: openflow.NewMatch(target),
			Cookie: cookie(KindStaged, ep.port.OFPort), Actions: there.decide(verdictDrop, 0)})
	}
	if silent {
		out = append(out, openflow.Flow{Table: s.last, Priority: prioIsolation + 1, Match: openflow.NewMatch(target, s.differs(verdictDrop)),
			Cookie: cookie(KindIsolation, ep.port.OFPort), Actions: actions(reportAction())})
	}
	return out
}
