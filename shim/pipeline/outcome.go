package pipeline

import (
	"slices"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Mark is what the staged world left in the registers of a reported packet.
type Mark struct {
	Verdict uint8  // Zero: it was not asked.
	Rule    uint32 // Or isolation, that decided; zero: none did.
	Pass    uint32 // That passed the packet on to the Kubernetes rules; zero: none did.
}

// MarkOf reads the mark of a packet that a flow of a table reported.
func MarkOf(table uint8, register func(n int) uint32) Mark {
	v := verdict(register(0)>>stepsOf[enforced][direction(table)].shift) & verdictMask
	if v == 0 {
		return Mark{} // What the registers hold is of the other direction.
	}
	return Mark{Verdict: uint8(v), Rule: register(regStagedRule), Pass: register(regStagedPass)}
}

// outcome is what the staged world decided for a hit, where that is another
// verdict than the action that was taken; nil otherwise.
func (c *Compiler) outcome(taken policyv1.Action, at scene) *auditv1.StagedOutcome {
	mark := at.hit.Mark
	action := verdict(mark.Verdict).action()
	if mark.Verdict == 0 || action == taken || verdictOf(taken) == 0 {
		return nil
	}
	out := &auditv1.StagedOutcome{Action: action}
	var policies []*policy
	pt := c.partOf(mark.Rule)
	switch {
	case pt != nil:
		var r *rule
		if r, policies = c.deciders(pt, at); r.ordered() { // Kubernetes rules have no names.
			out.Rule = r.wire.GetName()
		}
	default:
		policies = c.isolatedBy(mark.Rule)
	}
	out.Policies = refs(policies)
	isStaged := func(p *policy) bool { return p.world() == staged }
	if i := slices.IndexFunc(policies, isStaged); i >= 0 {
		out.Policy = policies[i].wire.GetRef()
		return out
	}
	// What decides is enforced as well, but enforced rules ahead of it were passed.
	if pt := c.partOf(mark.Pass); pt != nil {
		if r, _ := c.deciders(pt, at); isStaged(r.policy) {
			out.Policy, out.Rule = r.policy.wire.GetRef(), r.wire.GetName()
			return out
		}
	}
	if len(policies) > 0 { // The state changed since.
		out.Policy = policies[0].wire.GetRef()
	}
	return out
}
