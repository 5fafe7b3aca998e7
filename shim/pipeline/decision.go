package pipeline

import (
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// What is done with packets that satisfy all clauses of a rule. In the enforced
// world that acts, and logs where the rule asks for it; in the staged world it
// marks the packet.

// decisions puts in what happens to packets that satisfy all clauses of a rule,
// if it guards any.
func (c *Compiler) decisions(r *rule) {
	if len(r.guarded) == 0 {
		return
	}
	for _, pt := range r.parts {
		c.flows.set("", c.conjunctionFlow(pt))
		if r.reports() {
			c.flows.set("", reportFlow(pt))
		}
	}
}

// reports says whether a rule reports packets that the staged world judges
// otherwise. Rules that log report them anyway, with the marks.
func (r *rule) reports() bool {
	return r.world == enforced && r.twin != nil && !r.wire.GetLog() && verdictOf(r.wire.GetAction()) != 0
}

// undecide takes out what decisions put in.
func (c *Compiler) undecide(r *rule) {
	for _, pt := range r.parts {
		f := c.conjunctionFlow(pt)
		c.flows.unset("", f.Key())
		if r.reports() {
			f := reportFlow(pt)
			c.flows.unset("", f.Key())
		}
	}
}

// conjunctionFlow is what happens to a packet that satisfies all clauses.
func (c *Compiler) conjunctionFlow(pt *part) openflow.Flow {
	if pt.rule.world == staged {
		return stagedFlow(pt)
	}
	var acts []openflow.Action
	if pt.rule.wire.GetLog() {
		acts = append(acts, logAction())
	}
	return openflow.Flow{Table: pt.table, Priority: pt.priority, Match: openflow.NewMatch(openflow.ConjID(pt.place.Conj)),
		Cookie: cookie(KindRule, pt.place.Conj), Actions: actions(append(acts, does(pt)...)...)}
}

// does is what a part of an enforced rule does with a packet.
func does(pt *part) []openflow.Action {
	s := pt.rule.steps()
	switch pt.rule.wire.GetAction() {
	case policyv1.Action_ACTION_ALLOW:
		return []openflow.Action{openflow.SetReg(s.allowed, pt.place.Conj, 0xffffffff), openflow.GotoTable(s.metric)}
	case policyv1.Action_ACTION_PASS:
		return []openflow.Action{openflow.GotoTable(s.k8s)}
	case policyv1.Action_ACTION_REJECT:
		return []openflow.Action{rejectAction()}
	}
	return nil
}

// stagedFlow is the flow of a part that decides, or passes, in the staged world:
// it marks the packet, and comes back to where it was asked.
func stagedFlow(pt *part) openflow.Flow {
	s, a := pt.rule.steps(), pt.rule.wire.GetAction()
	acts := s.decide(verdictOf(a), pt.place.Conj)
	if a == policyv1.Action_ACTION_PASS {
		acts = actions(openflow.SetReg(regStagedPass, pt.place.Conj, 0xffffffff), openflow.GotoTable(s.k8s))
	}
	return openflow.Flow{Table: pt.table, Priority: pt.priority, Match: openflow.NewMatch(openflow.ConjID(pt.place.Conj)),
		Cookie: cookie(KindStaged, pt.place.Conj), Actions: acts}
}

// reportFlow is what a part of an enforced rule does with packets that the
// staged world judges otherwise: the same, but it reports them. Its match has the
// conjunction's id, so that it is looked for where the clauses hold, and nowhere
// else.
func reportFlow(pt *part) openflow.Flow {
	differs := pt.rule.steps().differs(verdictOf(pt.rule.wire.GetAction()))
	return openflow.Flow{Table: pt.table, Priority: prioReport, Match: openflow.NewMatch(openflow.ConjID(pt.place.Conj), differs),
		Cookie: cookie(KindRule, pt.place.Conj), Actions: actions(append([]openflow.Action{reportAction()}, does(pt)...)...)}
}
