package engine

import (
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// compileNetworkPolicy compiles a Kubernetes NetworkPolicy: rules that allow,
// and the isolation of its Pods in the directions of its types.
func compileNetworkPolicy(p *api.NetworkPolicy, d *draft) {
	d.kind = policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY
	d.namespace, d.name, d.uid = p.Namespace, p.Name, p.UID
	d.generation, d.created, d.rank, d.staged = p.Generation, p.Created, api.RankK8s, p.Staged
	d.logsAsNamespace = true
	d.appliedTo = append(d.appliedTo, selection{namespace: p.Namespace, pods: &p.PodSelector})
	d.isolatesIngress, d.isolatesEgress = policyTypes(p)
	if d.isolatesIngress {
		compileAllowRules(d, policyv1.Direction_DIRECTION_INGRESS, p.Ingress)
	}
	if d.isolatesEgress {
		compileAllowRules(d, policyv1.Direction_DIRECTION_EGRESS, p.Egress)
	}
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

func compileAllowRules(d *draft, dir policyv1.Direction, rules []api.NetworkPolicyRule) {
	for i := range rules {
		r := d.rule()
		r.direction, r.action, r.index = dir, policyv1.Action_ACTION_ALLOW, uint32(i)
		r.anything, r.anyone = len(rules[i].Ports) == 0, len(rules[i].Peers) == 0
		named := r.offer(rules[i].Ports)
		for _, peer := range rules[i].Peers {
			if peer.IPBlock != nil {
				r.blocks = append(r.blocks, peer.IPBlock)
			} else {
				r.peers = append(r.peers, selection{namespace: d.namespace, namespaces: peer.NamespaceSelector, pods: peer.PodSelector})
			}
		}
		if dir == policyv1.Direction_DIRECTION_EGRESS && named && (r.anyone || len(r.blocks) > 0) {
			r.named = append(r.named, selection{namespaces: &api.Selector{}})
		}
	}
}

// offer takes over the ports of a rule, and says whether any goes by a name.
func (r *draftRule) offer(ports []api.NetworkPolicyPort) (named bool) {
	for _, p := range ports {
		r.services = append(r.services, service{
			protocol: wireProtocol(p.Protocol), port: uint32(p.Port), endPort: uint32(p.EndPort), portName: p.PortName})
		named = named || p.PortName != ""
	}
	return named
}
