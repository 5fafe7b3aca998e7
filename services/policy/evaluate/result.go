package evaluate

import "github.com/weirnet/weir/services/policy/api"

// Verdict is what happens to a connection.
type Verdict uint8

// The verdicts, from the one that lets most through.
const (
	Allow Verdict = iota + 1
	Reject
	Drop
)

// String is "allow", "drop" or "reject".
func (v Verdict) String() string {
	switch v {
	case Allow:
		return "allow"
	case Drop:
		return "drop"
	case Reject:
		return "reject"
	}
	return "unknown"
}

// Direction is ingress or egress, seen from the Pod that is guarded.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota + 1
	Egress
)

// String is "ingress" or "egress".
func (d Direction) String() string {
	if d == Ingress {
		return "ingress"
	}
	return "egress"
}

// RuleRef names one rule of a policy.
type RuleRef struct {
	Policy api.Ref
	Rule   string // Name, or position such as "ingress[0]".
}

// Decision is how one direction was decided.
type Decision struct {
	Action     Verdict
	Policy     *api.Ref  // Of the deciding rule. Nil: no rule decided.
	Rule       string    // The deciding rule, as in RuleRef. Empty: no rule decided.
	Reason     string    // A sentence without full stop. Never empty.
	IsolatedBy []api.Ref // Policies that isolate the Pod in this direction, by name.
	AllowedBy  []RuleRef // Every policy that allows, with its first rule that does, by name.
	Steps      []Step    // What was considered, in order; where asked for.
}

// Step is one step of the evaluation order that was gone through: a tier, the
// upstream admin policies, the Kubernetes NetworkPolicies, a baseline.
type Step struct {
	Name    string
	Rules   []Considered // Of the policies that apply to the guarded Pod or Node, as far as they were looked at, in order.
	Others  []api.Ref    // Policies that apply to others, in order.
	Outcome string       // What came of it: a sentence without full stop. Never empty.
}

// Considered is one rule that was looked at, or a policy without rules.
type Considered struct {
	RuleRef
	Decides bool
	Why     string // A sentence without full stop. Never empty.
}

// Result is what happens to a connection, and why. The destination judges
// whether or not the source lets the connection go.
type Result struct {
	Verdict Verdict
	Egress  Decision // Of the source.
	Ingress Decision // Of the destination.
	// Staged is what would happen if the staged policies were enforced. Nil:
	// the same. Where only one direction differs, the other is repeated.
	Staged *Result
}

// deciding is the direction that settles the verdict.
func (r *Result) deciding() *Decision {
	if r.Egress.Action != Allow {
		return &r.Egress
	}
	return &r.Ingress
}

// Deciding is the decision that settles the verdict: that of the source, where
// it does not let the connection go, or else that of the destination.
func (r *Result) Deciding() Decision { return *r.deciding() }
