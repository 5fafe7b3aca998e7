package engine

import (
	"slices"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// A plan is an ordered policy with everything resolved that it names: its tier,
// its groups, the Services behind these. Drafts are made of it, one for the
// policy, and one for each of its parts: rules whose peers are related to the
// guarded Pod's Namespace are written once for each value of that relation.
type plan struct {
	policy *api.OrderedPolicy
	rank   uint32
	rules  []planRule
	keys   []string   // Of all sameLabels.
	tuples [][]string // Keys that relate peers to Namespaces, each list sorted; Self among them.
	refers []api.Ref  // Tiers, groups and Services that were looked for, there or not.
	faults []Fault
}

type planRule struct {
	draftRule // With the peers that are the same for every guarded Pod.
	targets   []selection
	related   []relatedPeer
}

// relatedPeer is Pods in Namespaces that have the same values of some labels as
// the guarded Pod's.
type relatedPeer struct {
	keys []string
	pods *api.Selector
}

// Fault is why something of a policy or group is not realised as it is written.
type Fault struct {
	Reason  string // As conditions have it: one word in camel case.
	Message string
	// Widens is set where what is left out would have denied or passed: more
	// gets through than the policy says.
	Widens bool
}

// Reasons of faults.
const (
	ReasonTierNotFound       = "TierNotFound"
	ReasonGroupNotFound      = "GroupNotFound"
	ReasonUnsupportedGroup   = "NetworkPolicyAppliedToUnsupportedGroup"
	ReasonServiceNotFound    = "ServiceNotFound"
	ReasonUnsupportedService = "UnsupportedService"
	ReasonNotEnforced        = "NotEnforcedOnNodes"
	ReasonLockout            = "LockoutOverruled"
)

// look resolves an object that a policy or group names, and notes that it was
// looked for.
func (e *Engine) look(pl *plan, ref api.Ref) api.Object {
	if !slices.Contains(pl.refers, ref) {
		pl.refers = append(pl.refers, ref)
	}
	if r := e.referents[ref]; r != nil {
		return r.obj
	}
	return nil
}

// plan resolves a policy. It is nil, but for refers and faults, where the
// policy is to have no effect.
func (e *Engine) plan(p *api.OrderedPolicy) *plan {
	pl := &plan{policy: p, keys: p.SameLabelKeys()}
	rank, ok := e.rank(pl)
	if !ok {
		what := "not there"
		if r := e.referents[api.Ref{Kind: api.KindTier, Name: p.Tier}]; r != nil && r.fault != "" {
			what = "not in force (" + r.fault + ")"
		}
		pl.fault(ReasonTierNotFound, true, "tier %s is %s; the policy is held back until it is", p.Tier, what)
		return pl
	}
	pl.rank = rank
	general := e.resolveTargets(pl, p.AppliedTo)
	plan := func(d policyv1.Direction, rules []api.OrderedRule) {
		for i := range rules {
			targets := general
			if len(rules[i].AppliedTo) > 0 {
				targets = e.resolveTargets(pl, rules[i].AppliedTo)
			}
			r := e.planRule(pl, d, i, &rules[i])
			if len(targets.selections) > 0 {
				r.targets = targets.selections
				pl.rules = append(pl.rules, r)
			}
			if len(targets.nodePorts) > 0 && d == policyv1.Direction_DIRECTION_INGRESS {
				pl.rules = append(pl.rules, r.onNodePorts(targets.nodePorts))
			}
			if len(targets.hosts) > 0 {
				pl.rules = append(pl.rules, e.onHosts(pl, r, targets.hosts, ruleName(d, i, &rules[i])))
			}
		}
	}
	plan(policyv1.Direction_DIRECTION_INGRESS, p.Ingress)
	plan(policyv1.Direction_DIRECTION_EGRESS, p.Egress)
	return pl
}

// rank is the step of the evaluation order.
func (e *Engine) rank(pl *plan) (rank uint32, ok bool) {
	p := pl.policy
	switch {
	case p.Tier == "" && p.Baseline:
		return api.RankUpstreamBaseline, true
	case p.Tier == "":
		return api.RankAdmin, true
	}
	if t, _ := e.look(pl, api.Ref{Kind: api.KindTier, Name: p.Tier}).(*api.Tier); t != nil {
		return uint32(t.Priority), true
	}
	priority, ok := api.StaticTier(p.Tier)
	return uint32(priority), ok
}

var wireActions = map[api.Action]policyv1.Action{
	api.ActionAllow:  policyv1.Action_ACTION_ALLOW,
	api.ActionDrop:   policyv1.Action_ACTION_DROP,
	api.ActionPass:   policyv1.Action_ACTION_PASS,
	api.ActionReject: policyv1.Action_ACTION_REJECT,
}

// planRule resolves a rule but for its targets.
func (e *Engine) planRule(pl *plan, d policyv1.Direction, index int, from *api.OrderedRule) planRule {
	r := planRule{draftRule: draftRule{direction: d, action: wireActions[from.Action], index: uint32(index), name: from.Name,
		log: from.Log, logLabel: from.LogLabel, anything: len(from.Traffic) == 0, anyone: from.AnyPeer()}}
	widens := from.Action != api.ActionAllow
	if from.Layer7 {
		r.action = policyv1.Action_ACTION_DROP // Some of it might be allowed, but no node can tell which.
		pl.fault(ReasonNotEnforced, false, "%s: nodes cannot look into layer 7 yet; what the rule matches is dropped", ruleName(d, index, from))
	}
	named := r.offerTraffic(from.Traffic)
	for i := range from.Peers {
		e.planPeer(pl, &r, &from.Peers[i], ruleName(d, index, from), widens)
	}
	for _, name := range from.ToServices {
		e.planService(pl, &r, name, ruleName(d, index, from), widens)
	}
	if d == policyv1.Direction_DIRECTION_EGRESS && named && (r.anyone || len(r.blocks) > 0) {
		r.named = append(r.named, selection{namespaces: &api.Selector{}})
	}
	return r
}

func ruleName(d policyv1.Direction, index int, r *api.OrderedRule) string {
	list := "ingress"
	if d == policyv1.Direction_DIRECTION_EGRESS {
		list = "egress"
	}
	return ruleText(list, index, r.Name)
}

// offerTraffic takes over the traffic of a rule, and says whether any goes by a
// port's name.
func (r *draftRule) offerTraffic(traffic []api.Traffic) (named bool) {
	octet := func(b *uint8) *uint32 {
		if b == nil {
			return nil
		}
		n := uint32(*b)
		return &n
	}
	for _, t := range traffic {
		if t.Protocol == api.ProtocolIGMP {
			s := service{protocol: policyv1.Protocol_PROTOCOL_IGMP, igmpType: octet(t.IGMPType)}
			if t.Multicast.IsValid() {
				s.groupAddress = t.Multicast.AsSlice()
			}
			r.services = append(r.services, s)
			continue
		}
		r.services = append(r.services, service{protocol: wireProtocol(t.Protocol), port: uint32(t.Port), endPort: uint32(t.EndPort), portName: t.PortName,
			sourcePort: uint32(t.SourcePort), sourceEndPort: uint32(t.SourceEndPort), icmpType: octet(t.ICMPType), icmpCode: octet(t.ICMPCode)})
		named = named || t.PortName != ""
	}
	return named
}

func (e *Engine) planPeer(pl *plan, r *planRule, p *api.Peer, rule string, widens bool) {
	switch {
	case p.IPBlock != nil:
		r.blocks = append(r.blocks, p.IPBlock)
	case p.FQDN != "":
		if name := strings.TrimSuffix(p.FQDN, "."); !slices.Contains(r.names, name) {
			r.names = append(r.names, name)
		}
	case p.NodeSelector != nil:
		r.peers = append(r.peers, selection{hosts: true, pods: p.NodeSelector})
	case p.ServiceAccount != nil:
		r.peers = append(r.peers, ofAccount(p.ServiceAccount))
	case len(p.SameLabels) > 0:
		r.related = append(r.related, relatedPeer{p.SameLabels, p.PodSelector})
		if !slices.ContainsFunc(pl.tuples, func(keys []string) bool { return slices.Equal(keys, p.SameLabels) }) {
			pl.tuples = append(pl.tuples, p.SameLabels)
		}
	case p.Group != "":
		groups, ok := e.members(pl, api.GroupRef(pl.policy.Ref(), p.Group))
		if !ok {
			pl.fault(ReasonGroupNotFound, widens, "%s: group %s is not there; it matches nothing", rule, p.Group)
		}
		for _, g := range groups {
			r.peers = append(r.peers, e.membersOf(pl, g)...)
			for i := range g.IPBlocks {
				r.blocks = append(r.blocks, &g.IPBlocks[i])
			}
		}
	case p.PodSelector != nil || p.NamespaceSelector != nil:
		r.peers = append(r.peers, chosenPods(pl.policy.Namespace, p.NamespaceSelector, p.PodSelector))
	}
}

// chosenPods are those of a pair of selectors: without one on Namespaces, of
// the given Namespace, or of all where none is given.
func chosenPods(namespace string, spaces, pods *api.Selector) selection {
	if spaces == nil && namespace == "" {
		spaces = &api.Selector{}
	}
	return selection{namespace: namespace, namespaces: spaces, pods: pods}
}

func ofAccount(a *api.NamespacedName) selection {
	return selection{namespace: a.Namespace, pods: &api.Selector{MatchLabels: api.Labels{{Key: accountKey, Value: a.Name}}}}
}

// targets are what a policy or rule applies to.
type targets struct {
	selections []selection
	nodePorts  []service   // Of NodePort Services, for which no Pod and no Node as a whole is guarded.
	hosts      []selection // Nodes, for themselves.
}

// resolveTargets resolves an appliedTo.
func (e *Engine) resolveTargets(pl *plan, list []api.Target) (out targets) {
	for i := range list {
		switch t := &list[i]; {
		case t.Group != "":
			groups, ok := e.members(pl, api.GroupRef(pl.policy.Ref(), t.Group))
			if !ok {
				pl.fault(ReasonGroupNotFound, true, "appliedTo: group %s is not there; it adds no Pod", t.Group)
			}
			for _, g := range groups {
				if why := unsupported(g); why != "" {
					pl.fault(ReasonUnsupportedGroup, true, "appliedTo: group %s has %s, and adds no Pod", t.Group, why)
					continue
				}
				out.selections = append(out.selections, e.membersOf(pl, g)...)
			}
		case t.ServiceAccount != nil:
			out.selections = append(out.selections, ofAccount(t.ServiceAccount))
		case t.Service != nil:
			out.nodePorts = append(out.nodePorts, e.nodePorts(pl, *t.Service)...)
		case t.NodeSelector != nil:
			out.hosts = append(out.hosts, selection{hosts: true, pods: t.NodeSelector})
		case t.PodSelector != nil || t.NamespaceSelector != nil:
			out.selections = append(out.selections, chosenPods(pl.policy.Namespace, t.NamespaceSelector, t.PodSelector))
		}
	}
	return out
}

// unsupported says what a group has that no policy can guard, or none of its
// Namespace; empty: nothing.
func unsupported(g *api.Group) string {
	switch {
	case len(g.IPBlocks) > 0:
		return "blocks of addresses"
	case g.Kind == api.KindGroup && g.NamespaceSelector != nil:
		return "a namespaceSelector"
	case g.Kind == api.KindGroup && g.Service != nil && g.Service.Namespace != g.Namespace:
		return "a Service of another Namespace"
	}
	return ""
}

// members are the groups that a group is the union of: itself, or its
// children. A child that is not there has no members; one that has children
// itself selects nothing.
func (e *Engine) members(pl *plan, ref api.Ref) (groups []*api.Group, there bool) {
	g, _ := e.look(pl, ref).(*api.Group)
	if g == nil {
		return nil, false
	}
	if len(g.Children) == 0 {
		return []*api.Group{g}, true
	}
	for _, name := range g.Children {
		child, _ := e.look(pl, api.Ref{Kind: ref.Kind, Namespace: ref.Namespace, Name: name}).(*api.Group)
		if child != nil {
			groups = append(groups, child)
		}
	}
	return groups, true
}

// membersOf are the Pods of a group without children.
func (e *Engine) membersOf(pl *plan, g *api.Group) []selection {
	switch {
	case g.Service != nil:
		svc := e.lookService(pl, *g.Service)
		if svc == nil || len(svc.Selector) == 0 {
			return nil
		}
		return []selection{{namespace: svc.Namespace, pods: &api.Selector{MatchLabels: svc.Selector}}}
	case g.PodSelector != nil || g.NamespaceSelector != nil:
		return []selection{chosenPods(g.Namespace, g.NamespaceSelector, g.PodSelector)}
	}
	return nil
}
