package pipeline

import (
	"net/netip"
	"slices"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Rules that name IGMP decide on its messages, and no others do: what a Pod reports
// by its egress rules, and what it is asked by its ingress rules. Neither isolation
// nor Pass knows IGMP. In the order of rules the first that is about the message
// decides; where there is none it is allowed.

// setCasting notes a policy that has rules for IGMP.
func (c *Compiler) setCasting(p *policy) {
	if slices.ContainsFunc(p.rules, func(r *rule) bool { return len(r.messages) > 0 }) {
		c.casting.policies[p] = struct{}{}
	}
}

// JudgeIGMP is what becomes of a message of IGMP, of a type and about a group, that
// the Pod of a port sends, or in ingress is to get. The attribution is what is to be
// recorded of it, where anything is; a port that is not open may say nothing.
func (c *Compiler) JudgeIGMP(dir policyv1.Direction, ofport uint32, typ uint8, group netip.Addr) (allowed bool, a Attribution, recorded bool) {
	ep := c.ports[ofport]
	if ep == nil {
		return false, a, false
	}
	here, there := c.aboutIGMP(enforced, dir, ep, typ, group), c.aboutIGMP(staged, dir, ep, typ, group)
	a = Attribution{Direction: dir, Action: actionOf(here), Table: TableName(stepsOf[enforced][dir].last), AppliedTo: ep.wire.GetNamespace() + "/" + ep.wire.GetName()}
	if here != nil {
		a.Table, a.Policies = TableName(here.table()), refs([]*policy{here.policy})
		a.Rule, a.LogLabel = here.wire.GetName(), here.wire.GetLogLabel()
	}
	if actionOf(there) != a.Action { // So a rule decides there.
		a.Staged = &auditv1.StagedOutcome{Action: actionOf(there)}
		if there != nil {
			a.Staged.Policy, a.Staged.Rule, a.Staged.Policies = there.policy.wire.GetRef(), there.wire.GetName(), refs([]*policy{there.policy})
		}
	}
	logs := here != nil && here.log
	a.Unlogged = !logs
	return a.Action == policyv1.Action_ACTION_ALLOW, a, logs || a.Staged != nil
}

// actionOf is what a rule does with a message; of none, and of one that only lets
// later rules decide, it is allowed.
func actionOf(r *rule) policyv1.Action {
	if r == nil {
		return policyv1.Action_ACTION_ALLOW
	}
	if r.action == policyv1.Action_ACTION_REJECT { // Nobody answers it.
		return policyv1.Action_ACTION_DROP
	}
	return r.action
}

// aboutIGMP is the first rule of a world about a message; nil where there is none.
func (c *Compiler) aboutIGMP(w world, dir policyv1.Direction, ep *endpoint, typ uint8, group netip.Addr) (first *rule) {
	for p := range c.casting.policies {
		if p.world() > w {
			continue
		}
		for _, r := range p.rules {
			if r.direction != dir || r.action == policyv1.Action_ACTION_PASS || !r.about(typ, group) || !r.appliesTo(ep) {
				continue
			}
			if first == nil || r.at.compare(first.at) < 0 || r.at.compare(first.at) == 0 && compareTied(p, first.policy) < 0 {
				first = r
			}
		}
	}
	return first
}

// about says whether a rule names a message of IGMP.
func (r *rule) about(typ uint8, group netip.Addr) bool {
	return slices.ContainsFunc(r.messages, func(s *policyv1.Service) bool {
		return (s.IgmpType == nil || *s.IgmpType == uint32(typ)) && (len(s.GetGroupAddress()) == 0 || slices.Equal(s.GetGroupAddress(), group.AsSlice()))
	})
}
