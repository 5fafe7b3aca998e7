package hostpolicy

import (
	"cmp"
	"fmt"
	"math"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/order"
)

// candidate is a rule on its way into a plan.
type candidate struct {
	item   Item
	policy *policyv1.Policy
	wire   *policyv1.Rule
	at     int // Among the policy's rules.
	rule   Rule
}

// check refuses what has no place in the order.
func (c *candidate) check() error {
	rank, action := c.policy.GetRank(), c.wire.GetAction()
	switch {
	case c.wire.GetNodePorts() && c.wire.GetDirection() != policyv1.Direction_DIRECTION_INGRESS:
		return fmt.Errorf("direction %v at node ports", c.wire.GetDirection())
	case c.wire.GetDirection() != policyv1.Direction_DIRECTION_INGRESS && c.wire.GetDirection() != policyv1.Direction_DIRECTION_EGRESS:
		return fmt.Errorf("direction %v", c.wire.GetDirection())
	case rank >= order.RankAdmin && rank != order.RankBaseline:
		return fmt.Errorf("rank %d has no rules for hosts", rank)
	case math.IsNaN(c.policy.GetPriority()) || math.IsInf(c.policy.GetPriority(), 0):
		return fmt.Errorf("policy priority %v", c.policy.GetPriority())
	case order.Severity(action) == 0:
		return fmt.Errorf("action %v", action)
	case rank == order.RankBaseline && action == policyv1.Action_ACTION_PASS:
		return fmt.Errorf("action %v in a baseline: nothing comes after it", action)
	}
	return nil
}

// compare is the order in which rules are asked. It leaves nothing open: a plan
// does not depend on the order of its items.
func (c candidate) compare(o candidate) int {
	a, b := c.policy, o.policy
	return cmp.Or(cmp.Compare(a.GetRank(), b.GetRank()), cmp.Compare(a.GetPriority(), b.GetPriority()), cmp.Compare(c.wire.GetIndex(), o.wire.GetIndex()),
		cmp.Compare(order.Severity(c.wire.GetAction()), order.Severity(o.wire.GetAction())), cmp.Compare(quiet(c.wire), quiet(o.wire)), cmp.Compare(order.Born(a), order.Born(b)),
		cmp.Compare(a.GetRef().GetKind(), b.GetRef().GetKind()), cmp.Compare(a.GetRef().GetNamespace(), b.GetRef().GetNamespace()),
		cmp.Compare(a.GetRef().GetName(), b.GetRef().GetName()), cmp.Compare(a.GetPart(), b.GetPart()), cmp.Compare(c.at, o.at))
}

func quiet(r *policyv1.Rule) int {
	if r.GetLog() {
		return 0
	}
	return 1
}
