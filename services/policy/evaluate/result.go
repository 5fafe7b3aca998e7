package evaluate

import "github.com/weirnet/weir/services/policy/api"

// Verdict is what happens to a connection.
type Verdict uint8

// The verdicts.
const (
	Allow Verdict = iota + 1
	Drop
	Reject
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
}

// Result is what happens to a connection, and why. The destination judges
// whether or not the source lets the connection go.
type Result struct {
	Verdict Verdict
	Egress  Decision // Of the source.
	Ingress Decision // Of the destination.
}
