package server

import (
	"fmt"
	"slices"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/engine"
)

// The types of the conditions of a policy: that all nodes concerned enforce it as
// they must, that it can be enforced as it is written, and that it contradicts
// others.
const (
	TypeRealized    = "Realized"
	TypeRealizable  = "Realizable"
	TypeConflicting = "Conflicting"
)

// Reasons of conditions, beside those of faults.
const (
	ReasonEnforced      = "EnforcedOnAllNodes"
	ReasonNoNodes       = "AppliesToNothing" // Which is in force, too.
	ReasonNotEnforced   = "NotEnforcedOnAllNodes"
	ReasonRefused       = "RefusedByNode"
	ReasonNotRealizable = "NotRealizable"
	ReasonConflict      = "EqualPrecedence"
)

// Conditions of a policy, with the sentences about what it contradicts; without any
// there is no condition about that.
func (r *Realization) Conditions(conflicts []string) []*policyv1.Condition {
	out := []*policyv1.Condition{realizable(append(r.faults(), r.Info.Faults...)), r.realized()}
	if len(conflicts) > 0 {
		out = append(out, &policyv1.Condition{Type: TypeConflicting, Status: true, Reason: ReasonConflict, Message: strings.Join(conflicts, "; ")})
	}
	return out
}

// widening is the first fault by which more gets through than the policy says; -1
// for none.
func widening(faults []engine.Fault) int {
	return slices.IndexFunc(faults, func(f engine.Fault) bool { return f.Widens })
}

func (r *Realization) realized() *policyv1.Condition {
	c := &policyv1.Condition{Type: TypeRealized, Message: enforcedBy(r.Realized(), r.Nodes)}
	switch {
	case widening(r.Info.Faults) >= 0:
		c.Reason, c.Message = ReasonNotRealizable, "not as it is written: see the condition Realizable"
	case len(r.Refused) > 0:
		c.Reason = ReasonRefused
		c.Message += ": " + r.Refused[0].Node + " refuses it: " + r.Refused[0].Error
	case len(r.Lacking) > 0:
		c.Reason = ReasonNotEnforced
		c.Message += ": " + strings.Join(firstFew(r.Lacking), ", ")
	case r.Waiting+r.Unknown > 0:
		c.Reason = ReasonNotEnforced
	case r.Nodes == 0:
		c.Status, c.Reason, c.Message = true, ReasonNoNodes, ""
	default:
		c.Status, c.Reason, c.Message = true, ReasonEnforced, ""
	}
	return c
}

func enforcedBy(realized, nodes int) string {
	return fmt.Sprintf("%d of %d nodes enforce it", realized, nodes)
}

// firstFew keeps the first four, and says how many more there are.
func firstFew(list []string) []string {
	const most = 4
	if len(list) <= most {
		return list
	}
	return append(slices.Clone(list[:most-1]), fmt.Sprintf("and %d nodes more", len(list)-most+1))
}

// realizable is the condition that a policy can be enforced as it is written.
// The reason is that of the first fault by which more gets through, if any.
func realizable(faults []engine.Fault) *policyv1.Condition {
	c := &policyv1.Condition{Type: TypeRealizable, Status: len(faults) == 0}
	var messages []string
	for _, f := range faults {
		messages = append(messages, f.Message)
	}
	c.Message = strings.Join(messages, "; ")
	if len(faults) > 0 {
		c.Reason = faults[max(widening(faults), 0)].Reason
	}
	return c
}
