package policy

import (
	"fmt"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
)

// Explain implements server.Model: the evaluator's answer on the live objects.
func (s *Service) Explain(req *policyv1.ExplainRequest) (*policyv1.ExplainResponse, error) {
	from, err := evaluate.ParseEndpoint(req.GetFrom())
	if err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	to, err := evaluate.ParseEndpoint(req.GetTo())
	if err != nil {
		return nil, fmt.Errorf("to: %w", err)
	}
	protocol, err := protocolOf(req.GetProtocol())
	if err != nil {
		return nil, err
	}
	if req.GetPort() > 65535 || req.GetSourcePort() > 65535 {
		return nil, fmt.Errorf("port: %d and %d must be at most 65535", req.GetPort(), req.GetSourcePort())
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, err := s.evaluator.Evaluate(evaluate.Connection{From: from, To: to, Protocol: protocol,
		Port: uint16(req.GetPort()), SourcePort: uint16(req.GetSourcePort())})
	if err != nil {
		return nil, err
	}
	return &policyv1.ExplainResponse{
		Verdict: map[evaluate.Verdict]policyv1.Verdict{
			evaluate.Allow: policyv1.Verdict_VERDICT_ALLOW, evaluate.Drop: policyv1.Verdict_VERDICT_DROP, evaluate.Reject: policyv1.Verdict_VERDICT_REJECT}[r.Verdict],
		Egress:  explanation(r.Egress),
		Ingress: explanation(r.Ingress),
	}, nil
}

func protocolOf(p policyv1.Protocol) (api.Protocol, error) {
	switch p {
	case policyv1.Protocol_PROTOCOL_UNSPECIFIED, policyv1.Protocol_PROTOCOL_TCP:
		return api.ProtocolTCP, nil
	case policyv1.Protocol_PROTOCOL_UDP:
		return api.ProtocolUDP, nil
	case policyv1.Protocol_PROTOCOL_SCTP:
		return api.ProtocolSCTP, nil
	case policyv1.Protocol_PROTOCOL_ICMP:
		return api.ProtocolICMP, nil
	}
	return 0, fmt.Errorf("protocol: %v cannot be explained", p)
}

func explanation(d evaluate.Decision) *policyv1.DirectionExplanation {
	out := &policyv1.DirectionExplanation{
		Action: map[evaluate.Verdict]policyv1.Action{
			evaluate.Allow: policyv1.Action_ACTION_ALLOW, evaluate.Drop: policyv1.Action_ACTION_DROP, evaluate.Reject: policyv1.Action_ACTION_REJECT}[d.Action],
		Rule: d.Rule, Reason: d.Reason}
	if d.Policy != nil {
		out.Policy = wireRef(*d.Policy)
	}
	for _, ref := range d.IsolatedBy {
		out.IsolatedBy = append(out.IsolatedBy, wireRef(ref))
	}
	return out
}

func wireRef(ref api.Ref) *policyv1.PolicyRef {
	return &policyv1.PolicyRef{Kind: policyKinds[ref.Kind], Namespace: ref.Namespace, Name: ref.Name}
}

var policyKinds = map[api.Kind]policyv1.PolicyKind{
	api.KindNetworkPolicy:              policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY,
	api.KindAdminNetworkPolicy:         policyv1.PolicyKind_POLICY_KIND_ADMIN_NETWORK_POLICY,
	api.KindBaselineAdminNetworkPolicy: policyv1.PolicyKind_POLICY_KIND_BASELINE_ADMIN_NETWORK_POLICY,
}
