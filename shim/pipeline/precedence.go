package pipeline

import (
	"cmp"
	"fmt"
	"math"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/order"
)

// precedence is a rule's place in the effective order, as far as it changes
// what becomes of a packet: rules of one precedence do the same with it, so
// that they may share an OpenFlow priority. Which of them is named is a
// question of attribution: see decider.
type precedence struct {
	Rank     uint32              `json:"rank"`
	Priority float64             `json:"priority"`
	Kind     policyv1.PolicyKind `json:"kind,omitempty"` // Of upstream policies only: all rules of one kind come before those of the next.
	Index    uint32              `json:"index"`
	Action   policyv1.Action     `json:"action"`
	Quiet    bool                `json:"quiet,omitempty"` // The rule does not log. Those that do come first, lest the other hide a record.
}

// precedenceOf is that of a rule of a policy.
func precedenceOf(p *policyv1.Policy, r *policyv1.Rule) precedence {
	at := precedence{Rank: p.GetRank(), Priority: p.GetPriority(), Index: r.GetIndex(), Action: r.GetAction(), Quiet: !r.GetLog()}
	if at.Rank == order.RankAdmin || at.Rank == order.RankUpstreamBaseline {
		at.Kind = p.GetRef().GetKind()
	}
	return at
}

// check refuses what has no place in the order.
func (a precedence) check() error {
	switch {
	case a.Rank > order.RankUpstreamBaseline:
		return fmt.Errorf("rank %d is no step", a.Rank)
	case math.IsNaN(a.Priority) || math.IsInf(a.Priority, 0):
		return fmt.Errorf("policy priority %v", a.Priority)
	case order.Severity(a.Action) == 0:
		return fmt.Errorf("action %v", a.Action)
	case a.Rank == order.RankK8s && a.Action != policyv1.Action_ACTION_ALLOW:
		return fmt.Errorf("action %v in a Kubernetes NetworkPolicy", a.Action)
	case a.baseline() && a.Action == policyv1.Action_ACTION_PASS:
		return fmt.Errorf("action %v in a baseline: nothing comes after it", a.Action)
	}
	return nil
}

func (a precedence) baseline() bool { return a.Rank >= order.RankBaseline }

// in says whether rules of the precedence are in a table.
func (a precedence) in(table uint8) bool {
	for _, w := range stepsOf {
		for _, dir := range bothDirections {
			if w[dir].of(a.Rank) == table {
				return true
			}
		}
	}
	return false
}

func (a precedence) compare(b precedence) int {
	quiet := 0
	if a.Quiet != b.Quiet {
		quiet = -1
		if a.Quiet {
			quiet = 1
		}
	}
	return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(a.Index, b.Index), cmp.Compare(order.Severity(a.Action), order.Severity(b.Action)), quiet)
}

// String stands in the keys of rules' places.
func (a precedence) String() string {
	s := fmt.Sprintf("%d,%v,%d,%d,%d", a.Rank, a.Priority, a.Kind, a.Index, a.Action)
	if a.Quiet {
		s += ",quiet"
	}
	return s
}
