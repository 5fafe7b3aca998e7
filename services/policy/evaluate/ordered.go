package evaluate

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// orderedRule is a rule of a policy with its place in the order.
type orderedRule struct {
	policy    *api.OrderedPolicy
	rank      uint8 // The tier's priority, or that of the upstream step.
	direction Direction
	index     int
	rule      *api.OrderedRule
}

func (r *orderedRule) name() string {
	if r.rule.Name != "" {
		return r.rule.Name
	}
	return fmt.Sprintf("%s[%d]", r.direction, r.index)
}

// strictness orders actions where all else is equal: the strictest comes first.
var strictness = map[api.Action]int{api.ActionDrop: 0, api.ActionReject: 1, api.ActionPass: 2, api.ActionAllow: 3}

// before is the order in which rules of one direction are judged: by tier, by
// the policies' priority, among upstream kinds by kind, by position in the
// policy, then the strictest action, a rule that is recorded before one that is
// not, lest this hide the record, the older policy, and kind, Namespace and name.
// A policy whose age is not known counts as the youngest: to compare age only
// where both are known, as the contract has it, is no order.
func before(a, b *orderedRule) int {
	upstream := 0
	if a.rank == api.RankAdmin || a.rank == api.RankUpstreamBaseline {
		upstream = cmp.Compare(a.policy.Kind, b.policy.Kind)
	}
	return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.policy.Priority, b.policy.Priority), upstream, cmp.Compare(a.index, b.index),
		cmp.Compare(strict(a), strict(b)), cmp.Compare(quiet(a), quiet(b)), cmp.Compare(born(a.policy), born(b.policy)),
		cmp.Compare(a.policy.Kind, b.policy.Kind), strings.Compare(a.policy.Namespace, b.policy.Namespace), strings.Compare(a.policy.Name, b.policy.Name))
}

// strict is the place of what a rule does: one for layer 7 drops.
func strict(r *orderedRule) int {
	if r.rule.Layer7 {
		return strictness[api.ActionDrop]
	}
	return strictness[r.rule.Action]
}

func quiet(r *orderedRule) int {
	if r.rule.Log {
		return 0
	}
	return 1
}

func born(p *api.OrderedPolicy) int64 {
	if p.Created == 0 {
		return math.MaxInt64
	}
	return p.Created
}

// rank is a policy's step; a policy whose tier is not there has none.
func (s *State) rank(p *api.OrderedPolicy) (rank uint8, ok bool) {
	switch {
	case p.Tier == "" && p.Baseline:
		return api.RankUpstreamBaseline, true
	case p.Tier == "":
		return api.RankAdmin, true
	}
	if t := s.tiers[p.Tier]; t != nil {
		return t.Priority, true
	}
	return api.StaticTier(p.Tier)
}

// orderedRules are the rules of all policies of a direction, in order.
func (s *State) orderedRules(d Direction) []*orderedRule {
	if known := s.rules.Load(); known != nil {
		return (*known)[d]
	}
	all := map[Direction][]*orderedRule{}
	for _, p := range s.ordered {
		rank, ok := s.rank(p)
		if !ok {
			continue // Held back until its tier appears.
		}
		for d, rules := range map[Direction][]api.OrderedRule{Ingress: p.Ingress, Egress: p.Egress} {
			for i := range rules {
				all[d] = append(all[d], &orderedRule{p, rank, d, i, &rules[i]})
			}
		}
	}
	for _, rules := range all {
		slices.SortFunc(rules, before)
	}
	s.rules.Store(&all)
	return all[d]
}

// tiers are Antrea's policies in their tiers, but for the baseline.
func tiers(q *question) *Decision { return q.ordered(0, api.RankAdmin-1) }

// adminPolicies are the upstream policies that are judged before the
// Kubernetes NetworkPolicies.
func adminPolicies(q *question) *Decision { return q.ordered(api.RankAdmin, api.RankAdmin) }

// baselineTier is for what nothing before it has decided.
func baselineTier(q *question) *Decision { return q.ordered(api.RankK8s+1, api.RankK8s+1) }

// upstreamBaseline comes last.
func upstreamBaseline(q *question) *Decision {
	return q.ordered(api.RankUpstreamBaseline, api.RankUpstreamBaseline)
}

// ordered judges by the rules of some ranks: the first that matches decides, or
// passes on to the Kubernetes step.
func (q *question) ordered(first, last uint8) *Decision {
	if q.passed && last < api.RankK8s {
		return nil
	}
	var step *Step
	var rank uint8
	for _, r := range q.orderedRules(q.direction) {
		if r.rank < first || r.rank > last || !q.counts(r.policy.Staged) {
			continue
		}
		if step == nil || r.rank != rank {
			rank = r.rank
			step = q.enter(q.stepName(rank))
			step.end("no rule matches")
		}
		if !q.guards(r) {
			step.other(r.policy.Ref())
			continue
		}
		ref, name := r.policy.Ref(), r.name()
		why := q.misses(r)
		if why == "" && q.overrules(r) {
			why = "would cut off what steers nodes, and is overruled there"
		}
		if why != "" {
			step.consider(ref, name, false, why)
			continue
		}
		d, says := act(r)
		if d.Action == Reject && q.unanswered() {
			d.Action, says = Drop, says+", and what a Node sends by UDP or SCTP is not answered: it is dropped"
			d.Reason += ", as a Node's UDP and SCTP are: by dropping it"
		}
		step.consider(ref, name, true, "matches, and "+says)
		step.end(d.Reason)
		if d.Action == 0 {
			q.passed = true
			return nil
		}
		return d
	}
	return nil
}

// stepName names the step of a rank.
func (q *question) stepName(rank uint8) string {
	switch rank {
	case api.RankAdmin:
		return "upstream admin policies"
	case api.RankUpstreamBaseline:
		return "upstream baseline policies"
	}
	name := "?"
	for _, t := range q.tiers {
		if t.Priority == rank {
			name = t.Name
		}
	}
	for _, t := range api.StaticTiers() {
		if t.Priority == rank {
			name = t.Name
		}
	}
	return fmt.Sprintf("tier %s (%d)", name, rank)
}

// act is what a rule does with what it matches, and how it says so. No action
// means that it passes.
func act(r *orderedRule) (d *Decision, says string) {
	ref, name := r.policy.Ref(), r.name()
	d = &Decision{Policy: &ref, Rule: name}
	switch {
	case r.rule.Layer7:
		// Some of it would be allowed, but nobody here can tell which.
		d.Action, says = Drop, "asks for layer 7, which nodes cannot look into: what it matches is dropped"
	case r.rule.Action == api.ActionAllow:
		d.Action, says, d.AllowedBy = Allow, "allows it", []RuleRef{{ref, name}}
	case r.rule.Action == api.ActionDrop:
		d.Action, says = Drop, "drops it"
	case r.rule.Action == api.ActionReject:
		d.Action, says = Reject, "rejects it"
	default:
		d.Policy, d.Rule, says = nil, "", "passes it to the Kubernetes NetworkPolicies"
	}
	d.Reason = fmt.Sprintf("%s of %s %s", name, ref, says)
	return d, says
}

// unanswered says whether a rejection is of what a Node's host sends itself, by a
// protocol of which the API has it dropped.
func (q *question) unanswered() bool {
	return q.direction == Egress && q.subject.pod == nil && (q.protocol == api.ProtocolUDP || q.protocol == api.ProtocolSCTP)
}

// guards says whether a rule guards the question's subject.
func (q *question) guards(r *orderedRule) bool {
	list := r.policy.AppliedTo
	if len(r.rule.AppliedTo) > 0 {
		list = r.rule.AppliedTo
	}
	if q.subject.pod == nil {
		return slices.ContainsFunc(list, q.guardsHost)
	}
	if !concerns(r, q.namespaceLabels(q.subject.pod.Namespace)) {
		return false
	}
	return slices.ContainsFunc(list, func(t api.Target) bool { return q.targets(r.policy.Ref(), t, q.subject.pod) })
}

// concerns says whether a rule has an effect on Namespaces with some labels, as
// far as the sameLabels of its policy go. One that has none of their keys is
// outside of the policy. One that lacks a key is outside of every rule that
// names peers; a rule for any peer is in effect there.
func concerns(r *orderedRule, labels map[string]string) bool {
	has, keys := 0, r.policy.SameLabelKeys()
	for _, key := range keys {
		if _, there := labels[key]; there {
			has++
		}
	}
	return has == len(keys) || has > 0 && r.rule.AnyPeer()
}

// guardsHost says whether an entry of appliedTo is the subject, which is no Pod.
func (q *question) guardsHost(t api.Target) bool {
	switch {
	case q.nodePort != nil && q.direction == Ingress:
		return t.Service != nil && *t.Service == api.NamespacedName{Namespace: q.nodePort.Namespace, Name: q.nodePort.Name}
	case t.NodeSelector != nil:
		return q.nodeSelects(*t.NodeSelector, q.subject.node)
	}
	return false
}

// misses says why a rule does not match, and nothing where it does.
func (q *question) misses(r *orderedRule) string {
	if len(r.rule.ToServices) > 0 {
		if q.subject.pod == nil {
			return q.subject.String() + " is a host, whose traffic is judged by the endpoint that it reaches"
		}
		if q.via == nil {
			return fmt.Sprintf("%s is not reached through a Service", q.peer)
		}
		if !slices.Contains(r.rule.ToServices, api.NamespacedName{Namespace: q.via.Namespace, Name: q.via.Name}) {
			return q.via.Ref().String() + " is none of its Services"
		}
		return ""
	}
	peer, all := q.fits(func(peer party) bool {
		return len(r.rule.Peers) == 0 || slices.ContainsFunc(r.rule.Peers, func(p api.Peer) bool { return q.matches(r.policy, p, peer) })
	}, func(at *api.Pod) bool {
		return len(r.rule.Traffic) == 0 && q.protocol != api.ProtocolIGMP || slices.ContainsFunc(r.rule.Traffic, func(t api.Traffic) bool { return isTraffic(t, q.flow, at) })
	})
	switch {
	case !peer:
		return q.peer.String() + " is none of its peers"
	case !all:
		return q.service() + " is none of its ports or protocols"
	}
	return ""
}
