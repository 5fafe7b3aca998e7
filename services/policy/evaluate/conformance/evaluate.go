package conformance

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
)

// Evaluate runs cases on the reference evaluator.
func Evaluate(cases []Case) *Report {
	report := NewReport(ModeEvaluate)
	for i := range cases {
		c := &cases[i]
		r := report.Begin(c)
		switch why := c.Unsupported(); {
		case why != "":
			r.Skip(why)
		case c.Schema == SchemaAdmission:
			c.admit(r)
		default:
			c.evaluate(r)
		}
		r.End()
	}
	return report
}

// Unsupported says why a case cannot be judged yet. Empty: it can.
func (c *Case) Unsupported() string {
	for _, op := range c.Operations {
		if why := UnsupportedKind(op.Object); why != "" {
			return why
		}
		if len(op.ExpectMutated) > 0 {
			return "expectMutated is not supported yet"
		}
	}
	for i := range c.Steps {
		s := &c.Steps[i]
		for _, p := range s.Policies {
			if why := UnsupportedKind(p); why != "" {
				return why
			}
		}
		if len(s.Evaluations) > 0 {
			return "evaluations are not supported yet"
		}
		for _, p := range s.Probes {
			switch {
			case p.ToService != "":
				return "toService is not supported yet"
			case p.ToFQDN != "":
				return "toFQDN is not supported yet"
			}
		}
	}
	return ""
}

// UnsupportedKind says why a policy object cannot be read yet. Empty: it can.
func UnsupportedKind(raw json.RawMessage) string {
	var t struct{ APIVersion, Kind string }
	if err := json.Unmarshal(raw, &t); err != nil {
		return "" // Decoding says it better.
	}
	if api.Reads(t.APIVersion, t.Kind) {
		return ""
	}
	return fmt.Sprintf("%s of %s is not supported yet", t.Kind, t.APIVersion)
}

// evaluate judges every step.
func (c *Case) evaluate(r *CaseReport) {
	world, err := NewWorld(c)
	if err != nil {
		r.Fail(nil, err.Error())
		return
	}
	// One state lives through all steps, by events, as that of the policy service does.
	state := evaluate.New(world.Objects()...)
	for i := range c.Steps {
		s := &c.Steps[i]
		events, err := world.Enter(s)
		if err != nil {
			r.Fail(s, err.Error())
			return
		}
		for _, e := range events {
			state.Apply(e)
		}
		for _, p := range s.Checks() {
			got, why := judge(state, p)
			r.Verdict(s, p, got, why)
		}
	}
}

// judge asks the evaluator for the verdict of one probe.
func judge(state *evaluate.State, p Probe) (got, why string) {
	conn, err := p.Connection()
	if err != nil {
		return "error", err.Error()
	}
	result, err := state.Evaluate(conn)
	if err != nil {
		return "error", err.Error()
	}
	decision := result.Ingress
	if result.Egress.Action != evaluate.Allow {
		decision = result.Egress
	}
	switch result.Verdict {
	case evaluate.Allow:
		return Allow, decision.Reason
	case evaluate.Reject:
		return Reject, decision.Reason
	}
	return Deny, decision.Reason
}

// Connection is the probe as the evaluator takes it.
func (p Probe) Connection() (evaluate.Connection, error) {
	c := evaluate.Connection{Protocol: ProtocolOf(p.Protocol), Port: p.Port, SourcePort: p.SourcePort}
	var err error
	switch {
	case p.From != "":
		c.From, err = evaluate.ParseEndpoint(p.From)
	case p.FromIP != "":
		c.From, err = evaluate.ParseEndpoint(p.FromIP)
	default:
		err = errors.New("via stands without fromIP")
	}
	if err != nil {
		return c, fmt.Errorf("source: %w", err)
	}
	switch {
	case p.To != "":
		c.To, err = evaluate.ParseEndpoint(p.To)
	case p.ToNode != "" && p.ToIP == "":
		c.To = evaluate.Endpoint{Node: p.ToNode}
	default:
		c.To, err = evaluate.ParseEndpoint(p.ToIP)
	}
	if err != nil {
		return c, fmt.Errorf("destination: %w", err)
	}
	return c, nil
}

// ProtocolOf reads a protocol of a case; empty means TCP.
func ProtocolOf(s string) api.Protocol {
	switch s {
	case "", "TCP":
		return api.ProtocolTCP
	case "UDP":
		return api.ProtocolUDP
	case "SCTP":
		return api.ProtocolSCTP
	case "ICMP":
		return api.ProtocolICMP
	}
	return api.ProtocolAny
}

// admit runs an admission case against validation.
func (c *Case) admit(r *CaseReport) {
	for i, op := range c.Operations {
		_, err := api.Decode(op.Object)
		got := "accept"
		why := ""
		if err != nil {
			got, why = "reject", err.Error()
		}
		r.report.Totals.Verdicts++
		if got != op.Expected {
			r.Fail(nil, fmt.Sprintf("operations[%d]: expected %s, got %s %s", i, op.Expected, got, why))
		}
	}
}
