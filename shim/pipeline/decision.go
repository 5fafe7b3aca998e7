package pipeline

import (
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// What is done with packets that satisfy all clauses of a rule. In the enforced
// world that acts, and logs where the rule asks for it; in the staged world it
// marks the packet.

// decisions puts in what happens to packets that satisfy all clauses of a body,
// and what counts them, if it guards anything.
func (c *Compiler) decisions(b *body) {
	if len(b.guarded) == 0 {
		return
	}
	for _, pt := range b.parts {
		c.decide(pt)
		c.countPart(pt)
	}
}

// decide puts in the flows of a part that act.
func (c *Compiler) decide(pt *part) {
	if pt.body.direct() {
		for _, m := range pt.direct {
			c.flows.set(pt.holder(), c.decisionFlow(pt, m))
		}
		return
	}
	c.flows.set("", c.conjunctionFlow(pt))
	if pt.body.reports() {
		c.flows.set("", c.reportFlow(pt))
	}
}

// revoke undoes decide.
func (c *Compiler) revoke(pt *part) {
	if pt.body.direct() {
		for _, m := range pt.direct {
			c.flows.unset(pt.holder(), pt.flowKey(m))
		}
		return
	}
	c.flows.unset("", c.conjunctionFlow(pt).Key())
	if pt.body.reports() {
		c.flows.unset("", c.reportFlow(pt).Key())
	}
}

// reports says whether a body reports packets that the staged world judges
// otherwise. Rules that log report them anyway, with the marks.
func (b *body) reports() bool {
	return b.world == enforced && b.reporting > 0 && !b.log && verdictOf(b.action) != 0
}

// undecide takes out what decisions put in.
func (c *Compiler) undecide(b *body) {
	for _, pt := range b.parts {
		c.revoke(pt)
		c.uncountPart(pt)
	}
}

// report counts the members of a body that have a twin in the staged world, which
// may change what the body reports.
func (c *Compiler) report(b *body, delta int) {
	if before := b.reporting; (before > 0) == (before+delta > 0) || len(b.guarded) == 0 {
		b.reporting += delta
		return
	}
	c.undecide(b)
	b.reporting += delta
	c.decisions(b)
	c.weigh(b)
}

// conjunctionFlow is what happens to a packet that satisfies all clauses.
func (c *Compiler) conjunctionFlow(pt *part) openflow.Flow {
	return c.decisionFlow(pt, openflow.NewMatch(openflow.ConjID(pt.place.Conj)))
}

// decisionFlow is what happens to a packet that a part matches.
func (c *Compiler) decisionFlow(pt *part, match openflow.Match) openflow.Flow {
	if pt.body.world == staged {
		return stagedFlow(pt, match)
	}
	var acts []openflow.Action
	if pt.body.log {
		acts = append(acts, c.logAction(pt.place.Conj, false))
	}
	return openflow.Flow{Table: pt.table, Priority: pt.priority, Match: match,
		Cookie: cookie(KindRule, pt.place.Conj), Actions: actions(append(acts, c.does(pt, pt.body.log)...)...)}
}

// does is what a part of an enforced rule does with a packet, which is on record or
// not.
func (c *Compiler) does(pt *part, recorded bool) []openflow.Action {
	s := pt.body.steps()
	switch pt.body.action {
	case policyv1.Action_ACTION_ALLOW:
		return []openflow.Action{openflow.SetReg(s.allowed, pt.place.Conj, 0xffffffff), openflow.GotoTable(s.metric)}
	case policyv1.Action_ACTION_PASS:
		return append(countBy(pt.place.Conj), openflow.GotoTable(s.k8s))
	case policyv1.Action_ACTION_REJECT:
		return append([]openflow.Action{rejectAction()}, c.denyBy(pt.place.Conj, recorded)...)
	}
	return c.denyBy(pt.place.Conj, recorded)
}

// stagedFlow is the flow of a part that decides, or passes, in the staged world:
// it marks the packet, and comes back to where it was asked. Rules of staged
// policies count what they would decide.
func stagedFlow(pt *part, match openflow.Match) openflow.Flow {
	s, a := pt.body.steps(), pt.body.action
	var acts []openflow.Action
	if pt.body.own {
		acts = countBy(pt.place.Conj)
	}
	if a == policyv1.Action_ACTION_PASS {
		acts = append(acts, openflow.SetReg(regStagedPass, pt.place.Conj, 0xffffffff), openflow.GotoTable(s.k8s))
	} else {
		acts = append(acts, s.decide(verdictOf(a), pt.place.Conj)...)
	}
	return openflow.Flow{Table: pt.table, Priority: pt.priority, Match: match,
		Cookie: cookie(KindStaged, pt.place.Conj), Actions: actions(acts...)}
}

// reportFlow is what a part of an enforced rule does with packets that the
// staged world judges otherwise: the same, but it reports them. Its match has the
// conjunction's id, so that it is looked for where the clauses hold, and nowhere
// else.
func (c *Compiler) reportFlow(pt *part) openflow.Flow {
	differs := pt.body.steps().differs(verdictOf(pt.body.action))
	return openflow.Flow{Table: pt.table, Priority: prioReport, Match: openflow.NewMatch(openflow.ConjID(pt.place.Conj), differs),
		Cookie: cookie(KindRule, pt.place.Conj), Actions: actions(append([]openflow.Action{c.logAction(pt.place.Conj, true)}, c.does(pt, true)...)...)}
}
