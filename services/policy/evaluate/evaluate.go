package evaluate

// Evaluate judges one connection. It fails if an end cannot be found, or has
// no address.
func (s *State) Evaluate(c Connection) (Result, error) {
	f, err := s.resolve(c)
	if err != nil {
		return Result{}, err
	}
	r := Result{
		Egress:  s.decide(f, Egress),
		Ingress: s.decide(f, Ingress),
	}
	r.Verdict = r.Egress.Action
	if r.Verdict == Allow {
		r.Verdict = r.Ingress.Action
	}
	return r, nil
}

// decide takes a flow through the steps of one direction.
func (s *State) decide(f *flow, d Direction) Decision {
	for _, judge := range steps(d) {
		if decision := judge(s, f, d); decision != nil {
			return *decision
		}
	}
	subject, _ := sides(f, d)
	return Decision{Action: Allow, Reason: "no policy isolates " + subject.String() + " for " + d.String()}
}

// sides are the party that a direction's policies guard, and its peer.
func sides(f *flow, d Direction) (subject, peer party) {
	if d == Ingress {
		return f.to, f.from
	}
	return f.from, f.to
}
