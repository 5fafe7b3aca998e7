package engine

import (
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// Ranks of the upstream admin policies and baselines in the evaluation order.
const (
	rankAdmin    = 251
	rankBaseline = 254
)

// compileAdminPolicy compiles an AdminNetworkPolicy or a baseline: ordered
// rules, and no isolation.
func compileAdminPolicy(p *api.AdminPolicy, d *draft) {
	d.kind, d.rank = policyv1.PolicyKind_POLICY_KIND_ADMIN_NETWORK_POLICY, rankAdmin
	if p.Kind == api.KindBaselineAdminNetworkPolicy {
		d.kind, d.rank = policyv1.PolicyKind_POLICY_KIND_BASELINE_ADMIN_NETWORK_POLICY, rankBaseline
	}
	d.name, d.uid, d.generation, d.created = p.Name, p.UID, p.Generation, p.Created
	d.staged, d.priority = p.Staged, float64(p.Priority)
	d.appliedTo = append(d.appliedTo, chosenPods(&p.Subject))
	compileAdminRules(d, policyv1.Direction_DIRECTION_INGRESS, p.Ingress, p.Log)
	compileAdminRules(d, policyv1.Direction_DIRECTION_EGRESS, p.Egress, p.Log)
}

func chosenPods(p *api.NamespacedPods) selection {
	return selection{namespaces: &p.Namespaces, pods: p.Pods}
}

var wireActions = map[api.Action]policyv1.Action{
	api.ActionAllow: policyv1.Action_ACTION_ALLOW,
	api.ActionDrop:  policyv1.Action_ACTION_DROP,
	api.ActionPass:  policyv1.Action_ACTION_PASS,
}

func compileAdminRules(d *draft, dir policyv1.Direction, rules []api.AdminRule, log bool) {
	for i := range rules {
		r, from := d.rule(), &rules[i]
		r.direction, r.action, r.index, r.name, r.log = dir, wireActions[from.Action], uint32(i), from.Name, log
		r.anything = len(from.Ports) == 0
		named := r.offer(from.Ports)
		for j := range from.Peers {
			if block := from.Peers[j].IPBlock; block != nil {
				r.blocks = append(r.blocks, block)
			} else {
				r.peers = append(r.peers, chosenPods(from.Peers[j].Pods))
			}
		}
		if dir == policyv1.Direction_DIRECTION_EGRESS && named && len(r.blocks) > 0 {
			r.named = append(r.named, selection{namespaces: &api.Selector{}})
		}
	}
}
