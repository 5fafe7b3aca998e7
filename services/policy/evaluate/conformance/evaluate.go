package conformance

import (
	"errors"
	"fmt"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
)

// Evaluate runs cases on the reference evaluator.
func Evaluate(cases []Case) *Report {
	report := NewReport(ModeEvaluate)
	for i := range cases {
		c := &cases[i]
		r := report.Begin(c)
		if c.Schema == SchemaAdmission {
			c.admit(r)
		} else {
			c.evaluate(r)
		}
		r.End()
	}
	return report
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
			got, why := judge(state, world.Direct(p))
			r.Verdict(s, p, got, why)
		}
		for _, e := range s.Evaluations {
			r.report.Totals.Verdicts++
			q := e.Question(s)
			resp, err := state.Answer(&policyv1.ExplainRequest{From: q.From, To: q.To, Port: uint32(q.Port),
				Protocol: policyv1.Protocol(policyv1.Protocol_value["PROTOCOL_"+q.Protocol])})
			if err != nil {
				r.Fail(s, fmt.Sprintf("evaluation of %s -> %s: %v", e.From, e.To, err))
			} else if why := e.Differs(resp); why != "" {
				r.Fail(s, why)
			}
		}
	}
}

// Question is the connection that an evaluation asks about. It names no port:
// it is that of the first flow that the step's tables state, and TCP port 80
// where there are none.
func (e Evaluation) Question(s *Step) Probe {
	p := Probe{From: e.From, To: e.To, Port: 80, Protocol: "TCP"}
	for _, t := range s.Tables {
		if len(t.Flows) > 0 {
			p.Port, p.Protocol = t.Flows[0].Port, t.Flows[0].Protocol
			break
		}
	}
	return p
}

// Differs says how an answer to the Question is another than the expected one;
// empty: it is not. What decides is the direction that does not allow; where
// both do, it is the ingress policy, or else the egress policy.
func (e Evaluation) Differs(resp *policyv1.ExplainResponse) string {
	deciding := []*policyv1.DirectionExplanation{resp.GetIngress(), resp.GetEgress()}
	if resp.GetEgress().GetAction() != policyv1.Action_ACTION_ALLOW {
		deciding = deciding[1:]
	}
	policy, action, reason := "", "", ""
	for _, d := range deciding {
		reason = d.GetReason()
		switch {
		case d.GetPolicy() != nil:
			policy, action = d.GetPolicy().GetName(), strings.TrimPrefix(d.GetAction().String(), "ACTION_")
		case d.GetAction() != policyv1.Action_ACTION_ALLOW && len(d.GetIsolatedBy()) > 0:
			policy, action = d.GetIsolatedBy()[0].GetName(), "Isolate"
		}
		if policy != "" {
			break
		}
	}
	nobody := func(s string) bool { return s == "" || s == "None" || s == "<NONE>" }
	if nobody(e.Policy) && policy == "" || policy == e.Policy && (nobody(e.Action) || strings.EqualFold(action, e.Action)) {
		return ""
	}
	return fmt.Sprintf("evaluation of %s -> %s: expected %s by %s, got %s by %q: %s", e.From, e.To, e.Action, e.Policy, action, policy, reason)
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
	return map[evaluate.Verdict]string{evaluate.Allow: Allow, evaluate.Drop: Deny, evaluate.Reject: Reject}[result.Verdict], result.Deciding().Reason
}

// A source port such as the kernel chooses where a probe names none: of Linux'
// range, 32768 to 60999.
const ephemeralPort = 45000

// Connection is the probe as the evaluator takes it.
func (p Probe) Connection() (evaluate.Connection, error) {
	c := evaluate.Connection{Protocol: ProtocolOf(p.Protocol), Port: p.Port, SourcePort: p.SourcePort}
	if c.SourcePort == 0 && p.Port != 0 {
		c.SourcePort = ephemeralPort
	}
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
	case p.ToFQDN != "":
		c.To = evaluate.Endpoint{Domain: p.ToFQDN}
	case p.ToService != "" && p.ToIP == "":
		c.To, err = evaluate.ParseEndpoint("service:" + p.ToService)
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
	case "IGMP":
		return api.ProtocolIGMP
	}
	return api.ProtocolAny
}
