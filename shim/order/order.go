// Package order is what the bridge's tables and the host's firewall have in
// common of the order in which rules are asked: the steps by their ranks, and
// what breaks ties. It is pure.
//
// In go policies and rules as the policy service streams them. Whoever places
// rules (shim/pipeline by precedences of its own, shim/hostpolicy one by one)
// calls it; it refuses nothing, which they do. The evaluator has the same order
// of its own making, and is what both are tested against.
package order

import (
	"math"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Ranks of the steps of the evaluation order; smaller ones are tiers.
const (
	RankAdmin            = 251
	RankK8s              = 252
	RankBaseline         = 253
	RankUpstreamBaseline = 254
)

// Severity orders the actions of rules that tie, the most severe first: Drop,
// Reject, Pass, Allow, from 1. It is zero for what is none of them.
func Severity(a policyv1.Action) int {
	switch a {
	case policyv1.Action_ACTION_DROP:
		return 1
	case policyv1.Action_ACTION_REJECT:
		return 2
	case policyv1.Action_ACTION_PASS:
		return 3
	case policyv1.Action_ACTION_ALLOW:
		return 4
	}
	return 0
}

// Born is when a policy was made, in Unix seconds; one whose age is not known is
// the youngest.
func Born(p *policyv1.Policy) int64 {
	if at := p.GetCreated(); at != 0 {
		return at
	}
	return math.MaxInt64
}
