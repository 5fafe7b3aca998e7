package evaluate

import (
	"fmt"
	"net/netip"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// Answer explains a connection that is asked for on the wire. It is what
// InspectionService and weirctl answer, so that these say the same.
func (s *State) Answer(req *policyv1.ExplainRequest) (*policyv1.ExplainResponse, error) {
	c, err := connectionOf(req)
	if err != nil {
		return nil, err
	}
	r, err := s.Explain(c)
	if err != nil {
		return nil, err
	}
	return r.wire(), nil
}

// End is an end of a connection, as it is on the wire.
type End struct {
	Namespace, Pod string // Of a Pod in the Pod network. Empty: it is none.
	Node           string // Where the Pod runs. Empty: it is no Pod.
	Addr           netip.Addr
}

// Ends are who a connection that is asked for on the wire is between. One to a
// Service or a domain name has no one destination, and is an error.
func (s *State) Ends(req *policyv1.ExplainRequest) (from, to End, err error) {
	c, err := connectionOf(req)
	if err != nil {
		return from, to, err
	}
	if c.To.Service != "" || c.To.Domain != "" {
		return from, to, fmt.Errorf("to: %s is no Pod, Node or address", describe(c.To))
	}
	flows, err := s.resolve(c)
	if err != nil {
		return from, to, err
	}
	if flows[0].via != nil {
		return from, to, fmt.Errorf("to: %s is a Service's", describe(c.To))
	}
	return flows[0].from.end(), flows[0].to.end(), nil
}

func (p *party) end() End {
	e := End{Addr: p.addr}
	if p.pod != nil {
		e.Namespace, e.Pod, e.Node = p.pod.Namespace, p.pod.Name, p.pod.Node
	}
	return e
}

var protocols = map[policyv1.Protocol]api.Protocol{
	policyv1.Protocol_PROTOCOL_UNSPECIFIED: api.ProtocolTCP,
	policyv1.Protocol_PROTOCOL_TCP:         api.ProtocolTCP,
	policyv1.Protocol_PROTOCOL_UDP:         api.ProtocolUDP,
	policyv1.Protocol_PROTOCOL_SCTP:        api.ProtocolSCTP,
	policyv1.Protocol_PROTOCOL_ICMP:        api.ProtocolICMP,
	policyv1.Protocol_PROTOCOL_IGMP:        api.ProtocolIGMP,
}

func connectionOf(req *policyv1.ExplainRequest) (c Connection, err error) {
	if c.From, err = ParseEndpoint(req.GetFrom()); err != nil {
		return c, fmt.Errorf("from: %w", err)
	}
	if c.To, err = ParseEndpoint(req.GetTo()); err != nil {
		return c, fmt.Errorf("to: %w", err)
	}
	c.Protocol = protocols[req.GetProtocol()]
	switch {
	case c.Protocol == api.ProtocolAny:
		return c, fmt.Errorf("protocol: %v cannot be explained", req.GetProtocol())
	case req.GetPort() > 65535 || req.GetSourcePort() > 65535:
		return c, fmt.Errorf("port: %d and %d must be at most 65535", req.GetPort(), req.GetSourcePort())
	case req.GetIcmpType() > 255 || req.GetIcmpCode() > 255:
		return c, fmt.Errorf("icmp_type: %d and %d must be at most 255", req.GetIcmpType(), req.GetIcmpCode())
	}
	c.Port, c.SourcePort = uint16(req.GetPort()), uint16(req.GetSourcePort())
	c.ICMPType, c.ICMPCode = octet(req.IcmpType), octet(req.IcmpCode)
	return c, nil
}

func octet(n *uint32) *uint8 {
	if n == nil {
		return nil
	}
	b := uint8(*n)
	return &b
}

func (r *Result) wire() *policyv1.ExplainResponse {
	out := &policyv1.ExplainResponse{
		Verdict: map[Verdict]policyv1.Verdict{Allow: policyv1.Verdict_VERDICT_ALLOW, Drop: policyv1.Verdict_VERDICT_DROP, Reject: policyv1.Verdict_VERDICT_REJECT}[r.Verdict],
		Egress:  r.Egress.wire(),
		Ingress: r.Ingress.wire(),
	}
	if r.Staged != nil {
		out.Staged = r.Staged.wire()
	}
	return out
}

func (d *Decision) wire() *policyv1.DirectionExplanation {
	out := &policyv1.DirectionExplanation{
		Action: map[Verdict]policyv1.Action{Allow: policyv1.Action_ACTION_ALLOW, Drop: policyv1.Action_ACTION_DROP, Reject: policyv1.Action_ACTION_REJECT}[d.Action],
		Rule:   d.Rule, Reason: d.Reason, IsolatedBy: wireRefs(d.IsolatedBy)}
	if d.Policy != nil {
		out.Policy = api.WireRef(*d.Policy)
	}
	for _, s := range d.Steps {
		step := &policyv1.EvaluationStep{Name: s.Name, Outcome: s.Outcome, Others: wireRefs(s.Others)}
		for _, c := range s.Rules {
			step.Rules = append(step.Rules, &policyv1.ConsideredRule{Policy: api.WireRef(c.Policy), Rule: c.Rule, Decides: c.Decides, Why: c.Why})
		}
		out.Steps = append(out.Steps, step)
	}
	return out
}

func wireRefs(refs []api.Ref) (out []*policyv1.PolicyRef) {
	for _, r := range refs {
		out = append(out, api.WireRef(r))
	}
	return out
}
