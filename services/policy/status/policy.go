package status

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// Policy is what the replicas know together of one policy.
type Policy struct {
	Ref        api.Ref
	UID        string
	Generation int64
	Nodes      int // Of its span.
	Realized   int // Of these, as far as is known.
	Late       int // Nodes that ought to enforce it by now and do not.
	Refused    int // Nodes that say that they do not enforce it.
	// Waiting nodes have a moment left; of Unknown ones nothing is known, since those
	// who knew are gone.
	Waiting, Unknown int
	Absent           bool // It is in force nowhere, and will not be as it stands.
	Unfaithful       bool // It is not enforced as it is written: more gets through.
	Conditions       []Condition
	Changed          time.Time     // When its rules last changed; zero: some time ago.
	Took             time.Duration // How long after that it was in force everywhere; zero: that is not told.
}

// Condition is one of a policy's, at this moment.
type Condition struct {
	Type            string
	Status          bool
	Reason, Message string
}

// TypeRealized is the condition that a policy is in force.
const TypeRealized = "Realized"

// Phases, as the API has them.
const (
	PhasePending   = "Pending"   // It takes no effect as it stands.
	PhaseRealizing = "Realizing" // Nodes have not acknowledged it yet.
	PhaseRealized  = "Realized"
	PhaseFailed    = "Failed" // Nodes do not enforce all of it, and will not by themselves.
)

// urgency of a write.
type urgency int

const (
	nothing urgency = iota
	numbers         // And messages: no truth has changed.
	truths
)

// undecided says whether it is not known yet if the policy is in force.
func (p *Policy) undecided() bool {
	return p.Waiting+p.Unknown > 0 && p.Late == 0 && p.Refused == 0 && !p.Unfaithful
}

func (p *Policy) phase() string {
	switch {
	case p.Absent:
		return PhasePending
	case p.Realized < p.Nodes-p.Refused:
		return PhaseRealizing
	case p.Refused > 0 || p.Unfaithful:
		return PhaseFailed
	}
	return PhaseRealized
}

// next is the status that a policy is to have after a former one, which may be nil.
// While that is undecided, the former stays; where there is none, a first one waits
// for nodes that need a moment, and not for those of which nothing is known.
func (p *Policy) next(former *antreav1beta1.PolicyStatus, now time.Time) (*antreav1beta1.PolicyStatus, urgency) {
	if p.undecided() && (len(conditionsOf(former)) > 0 || p.Unknown == 0) {
		return former, nothing
	}
	out := &antreav1beta1.PolicyStatus{Phase: p.phase(), ObservedGeneration: p.Generation,
		CurrentNodesRealized: int32(p.Realized), DesiredNodesRealized: int32(p.Nodes)}
	urgent := nothing
	if former == nil || former.Phase != out.Phase || former.ObservedGeneration != out.ObservedGeneration {
		urgent = truths
	} else if former.CurrentNodesRealized != out.CurrentNodesRealized || former.DesiredNodesRealized != out.DesiredNodesRealized {
		urgent = numbers
	}
	wanted := slices.Clone(p.Conditions)
	for _, c := range conditionsOf(former) { // What held and holds no more is told as such.
		if !slices.ContainsFunc(wanted, func(w Condition) bool { return w.Type == c.Type }) {
			wanted = append(wanted, Condition{Type: c.Type})
		}
	}
	for _, w := range wanted {
		c, changed := condition(w, conditionsOf(former), now)
		out.Conditions, urgent = append(out.Conditions, c), max(urgent, changed)
	}
	return out, urgent
}

func conditionsOf(s *antreav1beta1.PolicyStatus) []antreav1beta1.PolicyCondition {
	if s == nil {
		return nil
	}
	return s.Conditions
}

// condition is one after the former ones: its time is that of its last change of
// truth.
func condition(w Condition, former []antreav1beta1.PolicyCondition, now time.Time) (antreav1beta1.PolicyCondition, urgency) {
	c := antreav1beta1.PolicyCondition{Type: w.Type, Status: truth(w.Status), LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)), Reason: w.Reason, Message: w.Message}
	i := slices.IndexFunc(former, func(f antreav1beta1.PolicyCondition) bool { return f.Type == w.Type })
	if i < 0 || former[i].Status != c.Status {
		return c, truths
	}
	c.LastTransitionTime = former[i].LastTransitionTime
	switch {
	case former[i].Reason != c.Reason:
		return c, truths
	case former[i].Message != c.Message:
		return c, numbers
	}
	return c, nothing
}

func truth(yes bool) metav1.ConditionStatus {
	if yes {
		return metav1.ConditionTrue
	}
	return metav1.ConditionFalse
}
