package evaluate

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// Evaluate judges one connection. It fails if an end cannot be found, or has
// no address.
//
// A connection to a Service is judged for each of its endpoints, since it may
// go to any. Where these differ, the answer is the strictest.
func (s *State) Evaluate(c Connection) (Result, error) { return s.judge(c, false) }

// Explain is Evaluate, and fills in the Steps of each Decision.
func (s *State) Explain(c Connection) (Result, error) { return s.judge(c, true) }

// Reached is what happens to a connection where it goes to an endpoint.
type Reached struct {
	Endpoint netip.AddrPort
	Result
}

// ExplainEach is Explain for each endpoint of a Service to which the connection
// may go, by address. Of another destination there is one.
func (s *State) ExplainEach(c Connection) ([]Reached, error) {
	flows, err := s.resolve(c)
	if err != nil {
		return nil, err
	}
	var list []Reached
	for _, f := range flows {
		list = append(list, Reached{netip.AddrPortFrom(f.to.addr, f.port), s.result(f, true)})
	}
	return list, nil
}

func (s *State) judge(c Connection, explain bool) (Result, error) {
	flows, err := s.resolve(c)
	if err != nil {
		return Result{}, err
	}
	worst := s.result(flows[0], explain)
	for _, f := range flows[1:] {
		if r := s.result(f, explain); r.Verdict > worst.Verdict {
			worst = r
		}
	}
	return worst, nil
}

// result judges a flow in both worlds: that of the enforced policies, and that
// in which the staged ones are enforced too.
func (s *State) result(f *flow, explain bool) Result {
	enforced := s.world(f, explain, false)
	if s.staged > 0 {
		if other := s.world(f, explain, true); differs(&enforced, &other) {
			enforced.Staged = &other
		}
	}
	return enforced
}

func differs(a, b *Result) bool {
	return a.Egress.Action != b.Egress.Action || a.Ingress.Action != b.Ingress.Action
}

func (s *State) world(f *flow, explain, staged bool) Result {
	r := Result{Egress: s.decide(f, Egress, explain, staged), Ingress: s.decide(f, Ingress, explain, staged)}
	r.Verdict = r.deciding().Action
	return r
}

// question is a flow in one direction and one world, on its way through the steps.
type question struct {
	*State
	*flow
	direction     Direction
	subject, peer party // What the direction's policies guard, and the other end.
	staged        bool  // Staged policies count.
	explain       bool
	trace         []Step
	passed        bool // A rule has passed the flow on to the Kubernetes step.
}

// decide takes a flow through the steps of one direction.
func (s *State) decide(f *flow, d Direction, explain, staged bool) Decision {
	q := &question{State: s, flow: f, direction: d, subject: f.from, peer: f.to, staged: staged, explain: explain}
	if d == Ingress {
		q.subject, q.peer = f.to, f.from
	}
	for _, judge := range steps(q) {
		if decision := judge(q); decision != nil {
			decision.Steps = q.trace
			return *decision
		}
	}
	reason := fmt.Sprintf("no rule decides on %s of %s, and no policy isolates it", d, q.subject)
	if q.subject.pod == nil {
		reason = fmt.Sprintf("no policy of Nodes decides on %s of %s", d, q.subject)
	}
	return Decision{Action: Allow, Reason: reason, Steps: q.trace}
}

// counts says whether a policy has a part in the question's world.
func (q *question) counts(staged bool) bool { return !staged || q.staged }

// enter begins a step in the trace; what it considers is noted in what it returns.
func (q *question) enter(name string) *Step {
	if !q.explain {
		return nil
	}
	q.trace = append(q.trace, Step{Name: name})
	return &q.trace[len(q.trace)-1]
}

// consider notes a rule. A step of nil takes no notes.
func (s *Step) consider(policy api.Ref, rule string, decides bool, why string) {
	if s != nil {
		s.Rules = append(s.Rules, Considered{RuleRef{policy, rule}, decides, why})
	}
}

// other notes a policy that applies to others.
func (s *Step) other(policy api.Ref) {
	if s != nil && !slices.Contains(s.Others, policy) {
		s.Others = append(s.Others, policy)
	}
}

func (s *Step) end(outcome string) {
	if s != nil {
		s.Outcome = outcome
	}
}
