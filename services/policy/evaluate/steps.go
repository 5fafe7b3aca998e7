package evaluate

import (
	"fmt"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// step judges a flow in one direction. Nil leaves it to the next step.
type step func(*State, *flow, Direction) *Decision

// steps are the steps of a direction in the order in which they decide.
func steps(d Direction) []step {
	if d == Ingress {
		return []step{notPod, toItself, fromOwnNode, adminPolicies, networkPolicies, baselinePolicies}
	}
	return []step{notPod, toItself, adminPolicies, networkPolicies, baselinePolicies}
}

// notPod allows what has no Pod to guard.
func notPod(_ *State, f *flow, d Direction) *Decision {
	subject, _ := sides(f, d)
	if subject.pod != nil {
		return nil
	}
	why := subject.String() + " is no Pod"
	if subject.node != "" {
		why = subject.String() + " is a host"
	}
	return &Decision{Action: Allow, Reason: why + ", so that no policy of Pods applies to it"}
}

// toItself allows a Pod to reach itself.
func toItself(_ *State, f *flow, _ Direction) *Decision {
	if f.from.pod == nil || f.from.pod != f.to.pod {
		return nil
	}
	return &Decision{Action: Allow, Reason: f.from.String() + " reaches itself, and that traffic never leaves the Pod"}
}

// fromOwnNode allows a Pod to be reached from its own node's host.
func fromOwnNode(_ *State, f *flow, _ Direction) *Decision {
	if f.from.node == "" || f.from.node != f.to.pod.Node {
		return nil
	}
	return &Decision{Action: Allow, Reason: fmt.Sprintf("%s is the node of %s, and a node's host always reaches its own Pods", f.from, f.to)}
}

// networkPolicies are the Kubernetes NetworkPolicies: a Pod that at least one
// of them isolates is let through what at least one of those allows.
func networkPolicies(s *State, f *flow, d Direction) *Decision {
	subject, peer := sides(f, d)
	var isolated []api.Ref
	var allowed []RuleRef
	for _, p := range s.policiesIn(subject.pod.Namespace) {
		if !isolates(p, d) || !selects(p.PodSelector, labelsOf(subject.pod.Labels)) {
			continue
		}
		isolated = append(isolated, p.Ref())
		for i, rule := range rulesOf(p, d) {
			if s.peersMatch(p, rule.Peers, peer) && portsMatch(rule.Ports, f, d) {
				allowed = append(allowed, RuleRef{Policy: p.Ref(), Rule: fmt.Sprintf("%s[%d]", d, i)})
				break
			}
		}
	}
	if len(isolated) == 0 {
		return nil
	}
	if len(allowed) == 0 {
		way := "from"
		if d == Egress {
			way = "to"
		}
		return &Decision{Action: Drop, IsolatedBy: isolated,
			Reason: fmt.Sprintf("isolated by %s; no rule allows %s %s %s", names(isolated), f.service(), way, peer)}
	}
	first := allowed[0]
	return &Decision{Action: Allow, Policy: &first.Policy, Rule: first.Rule, IsolatedBy: isolated, AllowedBy: allowed,
		Reason: fmt.Sprintf("isolated by %s; %s of %s allows it", names(isolated), first.Rule, names([]api.Ref{first.Policy}))}
}

func names(refs []api.Ref) string {
	list := make([]string, len(refs))
	for i, r := range refs {
		list[i] = r.Namespace + "/" + r.Name
	}
	return strings.Join(list, ", ")
}
