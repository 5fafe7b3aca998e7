package evaluate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// adminPolicies are the AdminNetworkPolicies: the first rule that matches
// decides, or passes to the Kubernetes NetworkPolicies.
func adminPolicies(s *State, f *flow, d Direction) *Decision {
	return s.ordered(api.KindAdminNetworkPolicy, f, d)
}

// baselinePolicies are the BaselineAdminNetworkPolicies, for what nothing
// before them has decided.
func baselinePolicies(s *State, f *flow, d Direction) *Decision {
	return s.ordered(api.KindBaselineAdminNetworkPolicy, f, d)
}

// orderedRule is a rule of a policy with its place in the order of its step.
type orderedRule struct {
	policy *api.AdminPolicy
	index  int
	rule   api.AdminRule
}

func (r orderedRule) name(d Direction) string {
	if r.rule.Name != "" {
		return r.rule.Name
	}
	return fmt.Sprintf("%s[%d]", d, r.index)
}

// strictness orders actions where all else is equal: the strictest comes first.
var strictness = map[api.Action]int{api.ActionDrop: 0, api.ActionPass: 1, api.ActionAllow: 2}

// before is the order of rules: by the policies' priority, by position, then
// the strictest action, the older policy where both ages are known, and the name.
func before(a, b orderedRule) int {
	age := 0
	if a.policy.Created != 0 && b.policy.Created != 0 {
		age = cmp.Compare(a.policy.Created, b.policy.Created)
	}
	return cmp.Or(cmp.Compare(a.policy.Priority, b.policy.Priority), cmp.Compare(a.index, b.index),
		cmp.Compare(strictness[a.rule.Action], strictness[b.rule.Action]), age, strings.Compare(a.policy.Name, b.policy.Name))
}

// ordered judges by the policies of a kind.
func (s *State) ordered(kind api.Kind, f *flow, d Direction) *Decision {
	subject, peer := sides(f, d)
	var rules []orderedRule
	for _, p := range s.admin {
		if p.Kind != kind || p.Staged || !s.chooses(p.Subject, subject.pod) {
			continue
		}
		list := p.Ingress
		if d == Egress {
			list = p.Egress
		}
		for i, r := range list {
			rules = append(rules, orderedRule{p, i, r})
		}
	}
	slices.SortFunc(rules, before)
	for _, r := range rules {
		if !s.adminPeersMatch(r.rule.Peers, peer) || !portsMatch(r.rule.Ports, f, d) {
			continue
		}
		ref, name := r.policy.Ref(), r.name(d)
		verdict := fmt.Sprintf("%s of %s %s", name, ref.Kind, ref.Name)
		switch r.rule.Action {
		case api.ActionPass:
			return nil
		case api.ActionDrop:
			return &Decision{Action: Drop, Policy: &ref, Rule: name, Reason: verdict + " drops it"}
		}
		return &Decision{Action: Allow, Policy: &ref, Rule: name, Reason: verdict + " allows it", AllowedBy: []RuleRef{{ref, name}}}
	}
	return nil
}

// chooses reports whether a Pod is among those that a pair of selectors chooses.
func (s *State) chooses(by api.NamespacedPods, pod *api.Pod) bool {
	return selects(by.Namespaces, s.namespaceLabels(pod.Namespace)) && (by.Pods == nil || selects(*by.Pods, labelsOf(pod.Labels)))
}

func (s *State) adminPeersMatch(peers []api.AdminPeer, peer party) bool {
	for _, entry := range peers {
		if entry.IPBlock != nil {
			if inBlock(entry.IPBlock, peer) {
				return true
			}
			continue
		}
		for _, pod := range peer.pods() {
			if s.chooses(*entry.Pods, pod) {
				return true
			}
		}
	}
	return false
}
