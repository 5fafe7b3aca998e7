package evaluate

import (
	"fmt"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// judge decides a question, or leaves it to the next step with nil.
type judge func(*question) *Decision

// steps are the steps of a direction in the order in which they decide.
func steps(q *question) []judge {
	if q.subject.pod == nil {
		return []judge{notGuarded, toItself, tiers, baselineTier}
	}
	rules := []judge{tiers, adminPolicies, networkPolicies, baselineTier, upstreamBaseline}
	if q.direction == Ingress {
		return append([]judge{toItself, fromOwnNode}, rules...)
	}
	return append([]judge{toItself}, rules...)
}

// notGuarded allows what no policy can guard: neither a Pod nor a Node's host.
func notGuarded(q *question) *Decision {
	if q.subject.node != "" {
		return nil
	}
	return &Decision{Action: Allow, Reason: q.subject.String() + " is no Pod, so that no policy of Pods applies to it"}
}

// toItself allows a Pod to reach itself, and a host. A Pod that calls a Service
// which it serves itself sends to the Service: its egress is judged.
func toItself(q *question) *Decision {
	switch {
	case q.via != nil && q.direction == Egress:
	case q.via != nil && q.from.pod != nil && q.from.pod == q.to.pod:
		return &Decision{Action: Allow, Reason: q.from.String() + " reaches itself through " + q.via.Ref().String() + ", and that is always let in"}
	case q.from.pod != nil && q.from.pod == q.to.pod:
		return &Decision{Action: Allow, Reason: q.from.String() + " reaches itself, and that traffic never leaves the Pod"}
	case q.from.node != "" && q.from.node == q.to.node:
		return &Decision{Action: Allow, Reason: q.from.String() + " reaches itself, and that traffic never leaves the host"}
	}
	return nil
}

// fromOwnNode allows a Pod to be reached from its own node's host. Queries of IGMP
// are always from there, and rules decide on them.
func fromOwnNode(q *question) *Decision {
	if q.protocol == api.ProtocolIGMP || q.from.node == "" || q.from.node != q.to.pod.Node {
		return nil
	}
	return &Decision{Action: Allow, Reason: fmt.Sprintf("%s is the node of %s, and a node's host always reaches its own Pods", q.from, q.to)}
}

// networkPolicies are the Kubernetes NetworkPolicies: a Pod that at least one
// of them isolates is let through what at least one of those allows. They do not
// know IGMP.
func networkPolicies(q *question) *Decision {
	if q.protocol == api.ProtocolIGMP {
		return nil
	}
	step := q.enter("Kubernetes NetworkPolicies")
	var isolated []api.Ref
	var allowed []RuleRef
	for _, p := range q.policiesIn(q.subject.pod.Namespace) {
		if !q.counts(p.Staged) {
			continue
		}
		if !isolates(p, q.direction) || !selects(p.PodSelector, labelsOf(q.subject.pod.Labels)) {
			step.other(p.Ref())
			continue
		}
		isolated = append(isolated, p.Ref())
		if rule, ok := q.allowedBy(p, step); ok {
			allowed = append(allowed, rule)
		}
	}
	if len(isolated) == 0 {
		step.end("no policy isolates " + q.subject.String() + " for " + q.direction.String())
		return nil
	}
	if len(allowed) == 0 {
		way := "from"
		if q.direction == Egress {
			way = "to"
		}
		d := &Decision{Action: Drop, IsolatedBy: isolated,
			Reason: fmt.Sprintf("isolated by %s; no rule allows %s %s %s", names(isolated), q.service(), way, q.peer)}
		step.end(d.Reason)
		return d
	}
	first := allowed[0]
	d := &Decision{Action: Allow, Policy: &first.Policy, Rule: first.Rule, IsolatedBy: isolated, AllowedBy: allowed,
		Reason: fmt.Sprintf("isolated by %s; %s of %s allows it", names(isolated), first.Rule, names([]api.Ref{first.Policy}))}
	step.end(d.Reason)
	return d
}

// allowedBy is the first rule of a NetworkPolicy that allows the flow.
func (q *question) allowedBy(p *api.NetworkPolicy, step *Step) (RuleRef, bool) {
	rules := rulesOf(p, q.direction)
	if len(rules) == 0 {
		step.consider(p.Ref(), "", false, "isolates, and has no rule that could allow anything")
	}
	for i, rule := range rules {
		name := fmt.Sprintf("%s[%d]", q.direction, i)
		peer, all := q.fits(func(peer party) bool { return q.peersMatch(p, rule.Peers, peer) }, func(at *api.Pod) bool { return portsMatch(rule.Ports, q.flow, at) })
		switch {
		case !peer:
			step.consider(p.Ref(), name, false, q.peer.String()+" is none of its peers")
		case !all:
			step.consider(p.Ref(), name, false, q.service()+" is none of its ports")
		default:
			step.consider(p.Ref(), name, true, "allows it")
			return RuleRef{Policy: p.Ref(), Rule: name}, true
		}
	}
	return RuleRef{}, false
}

func names(refs []api.Ref) string {
	list := make([]string, len(refs))
	for i, r := range refs {
		list[i] = r.Namespace + "/" + r.Name
	}
	return strings.Join(list, ", ")
}
