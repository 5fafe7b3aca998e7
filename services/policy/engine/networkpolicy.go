package engine

import (
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// Ranks of the evaluation order beside the tiers' own priorities.
const rankK8s = 252

// compileNetworkPolicy compiles a Kubernetes NetworkPolicy: rules that allow,
// and the isolation of its Pods in the directions of its types.
func (e *Engine) compileNetworkPolicy(p *api.NetworkPolicy) *draft {
	ingress, egress := policyTypes(p)
	d := &draft{
		wire: &policyv1.Policy{
			Ref:             &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY, Namespace: p.Namespace, Name: p.Name},
			Uid:             p.UID,
			Generation:      p.Generation,
			Created:         p.Created,
			Rank:            rankK8s,
			IsolatesIngress: ingress,
			IsolatesEgress:  egress,
			Staged:          p.Staged,
		},
		appliedTo: []podSelector{selectPods(p.Namespace, nil, &p.PodSelector)},
		loggedBy:  p.Namespace,
	}
	if ingress {
		d.rules = append(d.rules, compileAllowRules(p.Namespace, policyv1.Direction_DIRECTION_INGRESS, p.Ingress)...)
	}
	if egress {
		d.rules = append(d.rules, compileAllowRules(p.Namespace, policyv1.Direction_DIRECTION_EGRESS, p.Egress)...)
	}
	return d
}

// policyTypes are the directions in which a NetworkPolicy isolates. Where it
// does not say: ingress always, egress if it has egress rules
// (networking.k8s.io/v1, NetworkPolicySpec.policyTypes).
func policyTypes(p *api.NetworkPolicy) (ingress, egress bool) {
	if len(p.PolicyTypes) == 0 {
		return true, len(p.Egress) > 0
	}
	return slices.Contains(p.PolicyTypes, api.PolicyTypeIngress), slices.Contains(p.PolicyTypes, api.PolicyTypeEgress)
}

func compileAllowRules(ns string, dir policyv1.Direction, rules []api.NetworkPolicyRule) []draftRule {
	var out []draftRule
	for i, r := range rules {
		dr := draftRule{wire: &policyv1.Rule{Direction: dir, Action: policyv1.Action_ACTION_ALLOW, Index: uint32(i), Services: compilePorts(r.Ports)}}
		if len(r.Peers) > 0 {
			dr.wire.Peers = &policyv1.Peers{}
		}
		for _, peer := range r.Peers {
			if peer.IPBlock != nil {
				dr.wire.Peers.Blocks = append(dr.wire.Peers.Blocks, wireBlock(peer.IPBlock))
				continue
			}
			dr.peers = append(dr.peers, selectPods(ns, peer.NamespaceSelector, peer.PodSelector))
		}
		if dir == policyv1.Direction_DIRECTION_EGRESS && namesPort(r.Ports) && (len(r.Peers) == 0 || len(dr.wire.Peers.Blocks) > 0) {
			dr.named = []podSelector{selectPods("", &api.Selector{}, nil)}
		}
		out = append(out, dr)
	}
	return out
}

func namesPort(ports []api.NetworkPolicyPort) bool {
	return slices.ContainsFunc(ports, func(p api.NetworkPolicyPort) bool { return p.PortName != "" })
}

// compilePorts turns a list of ports into services; an empty list is every port.
func compilePorts(ports []api.NetworkPolicyPort) *policyv1.Services {
	if len(ports) == 0 {
		return nil
	}
	s := &policyv1.Services{}
	for _, p := range ports {
		s.Services = append(s.Services, &policyv1.Service{
			Protocol: wireProtocol(p.Protocol), Port: uint32(p.Port), EndPort: uint32(p.EndPort), PortName: p.PortName})
	}
	return s
}
