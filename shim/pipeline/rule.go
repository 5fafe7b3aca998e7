package pipeline

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage"
)

// policy is a policy item with its rules.
type policy struct {
	wire     *policyv1.Policy
	applied  []storage.ScopeID
	rules    []*rule
	problems []error
}

// name orders policies as people read them.
func (p *policy) name() []string {
	return []string{p.wire.GetRef().GetKind().String(), p.wire.GetRef().GetNamespace(), p.wire.GetRef().GetName()}
}

func (p *policy) isolates() bool { return p.wire.GetIsolatesIngress() || p.wire.GetIsolatesEgress() }

func (p *policy) appliesTo(ep *endpoint) bool { return inAny(ep, p.applied) }

func inAny(ep *endpoint, groups []storage.ScopeID) bool {
	return slices.ContainsFunc(groups, func(g storage.ScopeID) bool { _, in := ep.groups[g]; return in })
}

// rule is one rule of a policy. It contributes flows as long as it guards an
// endpoint with a port, for the address families of those that it guards.
type rule struct {
	policy   *policy
	wire     *policyv1.Rule
	at       precedence
	level    *level // Of its table's ladder; nil for Kubernetes rules, which need no order.
	applied  []storage.ScopeID
	peers    []storage.ScopeID
	named    []storage.ScopeID   // Groups in which port names are resolved beside peers.
	blocks   []netip.Prefix      // Of the peers, exceptions taken out.
	services []*policyv1.Service // Those that can be matched.
	parts    []*part
	guarded  map[*endpoint]struct{}
	in       [2]int // Guarded endpoints by family.
}

// part is a conjunction of a rule. The main part is targets × peers × services
// by number. The named part has the services that go by a port's name: there
// the port is resolved on each destination, so that destination and service
// are one clause.
type part struct {
	rule     *rule
	key      string
	place    RulePlace
	slot     *slot // Nil for Kubernetes rules.
	table    uint8
	priority uint16
	named    bool
	clauses  uint8
	target   uint8 // Clause numbers; none where the part has no such clause.
	peer     uint8
	service  uint8
	any      uint8 // Every packet of the family: where there would be one clause only.
}

const none = uint8(255)

func (r *rule) appliesTo(ep *endpoint) bool { return inAny(ep, r.applied) }

func (r *rule) egress() bool { return r.wire.GetDirection() == policyv1.Direction_DIRECTION_EGRESS }

// newPolicy reads a policy item. What cannot be compiled is a problem of the
// policy, and the rest stands: what is left out of a rule matches nothing.
func newPolicy(w *policyv1.Policy) *policy {
	p := &policy{wire: w}
	var err error
	if p.applied, err = scopeIDs(w.GetAppliedTo()); err != nil {
		p.problems = append(p.problems, err)
	}
	type place struct {
		direction policyv1.Direction
		index     uint32
	}
	seen := make(map[place]bool)
	for _, rw := range w.GetRules() {
		r, err := newRule(p, rw)
		if at := (place{rw.GetDirection(), rw.GetIndex()}); seen[at] {
			r, err = nil, errors.New("there is another of this number")
		} else {
			seen[at] = true
		}
		if err != nil {
			p.problems = append(p.problems, fmt.Errorf("%s rule %d: %w", directionName(rw.GetDirection()), rw.GetIndex(), err))
		}
		if r != nil {
			p.rules = append(p.rules, r)
		}
	}
	return p
}

func directionName(d policyv1.Direction) string {
	if d == policyv1.Direction_DIRECTION_EGRESS {
		return "egress"
	}
	return "ingress"
}

// newRule reads a rule. It is nil where it has no place in the order; an error
// beside a rule is what it is without.
func newRule(p *policy, w *policyv1.Rule) (*rule, error) {
	r := &rule{policy: p, wire: w, at: precedenceOf(p.wire, w), guarded: make(map[*endpoint]struct{})}
	if err := r.at.check(); err != nil {
		return nil, err
	}
	if d := w.GetDirection(); d != policyv1.Direction_DIRECTION_INGRESS && d != policyv1.Direction_DIRECTION_EGRESS {
		return nil, fmt.Errorf("direction %v", d)
	}
	var errs []error
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	ids := func(list [][]byte) []storage.ScopeID {
		out, err := scopeIDs(list)
		note(err)
		return out
	}
	if r.applied = p.applied; len(w.GetAppliedTo()) > 0 {
		r.applied = ids(w.GetAppliedTo())
	}
	r.peers, r.named = ids(w.GetPeers().GetGroups()), ids(w.GetPortNameGroups())
	for _, b := range w.GetPeers().GetBlocks() {
		prefixes, err := blockPrefixes(b)
		note(err)
		r.blocks = append(r.blocks, prefixes...)
	}
	named := false
	for _, s := range w.GetServices().GetServices() {
		if err := checkService(s); err != nil {
			note(err)
			continue
		}
		r.services = append(r.services, s)
		named = named || s.GetPortName() != ""
	}
	numbered := slices.ContainsFunc(r.services, func(s *policyv1.Service) bool { return s.GetPortName() == "" })
	if w.GetServices() == nil || numbered {
		r.parts = append(r.parts, newPart(r, false))
	}
	if named {
		r.parts = append(r.parts, newPart(r, true))
	}
	return r, errors.Join(errs...)
}

// table is where the rule's flows are.
func (r *rule) table() uint8 {
	egress, ingress := tables(r.at.Rank)
	if r.egress() {
		return egress
	}
	return ingress
}

func newPart(r *rule, named bool) *part {
	ref := r.policy.wire.GetRef()
	pt := &part{rule: r, named: named, target: none, peer: none, service: none, any: none, table: r.table()}
	pt.key = fmt.Sprintf("%d/%s/%s/%s/%d", ref.GetKind(), ref.GetNamespace(), ref.GetName(), directionName(r.wire.GetDirection()), r.wire.GetIndex())
	if part := r.policy.wire.GetPart(); part != "" {
		pt.key += "/" + part
	}
	if r.at.Rank != rankK8s { // An id means one thing; and a lane is one of its level.
		pt.key += "/" + r.at.String()
	}
	if named {
		pt.key += "/named"
	}
	clause := func(at *uint8) { *at = pt.clauses; pt.clauses++ }
	clause(&pt.target)
	if r.wire.GetPeers() != nil || (named && r.egress()) {
		clause(&pt.peer)
	}
	if !named && r.wire.GetServices() != nil {
		clause(&pt.service)
	}
	if pt.clauses == 1 {
		clause(&pt.any)
	}
	return pt
}

// emit takes one flow that a part contributes to a clause.
type emit func(pt *part, clause uint8, match openflow.Match)

func (c *Compiler) join(pt *part, clause uint8, match openflow.Match) {
	c.flows.join(openflow.FlowKey{Table: pt.table, Priority: pt.priority, Match: match}, pt.membership(clause))
}

func (c *Compiler) leave(pt *part, clause uint8, match openflow.Match) {
	c.flows.leave(openflow.FlowKey{Table: pt.table, Priority: pt.priority, Match: match}, pt.membership(clause))
}

func (pt *part) membership(clause uint8) membership {
	return membership{conj: pt.place.Conj, clause: clause, clauses: pt.clauses}
}

// install brings a policy's rules in: places for their parts, and the
// endpoints that they guard.
func (c *Compiler) install(p *policy) {
	scopes := slices.Clone(p.applied)
	for _, r := range p.rules {
		scopes = append(scopes, r.applied...)
		for _, g := range slices.Concat(r.peers, r.named) {
			link(c.peerOf, g, r)
		}
	}
	for _, g := range scopes {
		link(c.guards, g, p)
	}
	for _, ep := range c.targets(scopes) {
		for _, r := range p.rules {
			if r.appliesTo(ep) {
				c.guard(r, ep)
			}
		}
		if p.isolates() {
			c.reassess[ep] = struct{}{}
		}
	}
}

// uninstall undoes install. Places are kept until the Update ends, for the
// policy's successor.
func (c *Compiler) uninstall(p *policy) {
	scopes := slices.Clone(p.applied)
	for _, r := range p.rules {
		scopes = append(scopes, r.applied...)
		for ep := range r.guarded {
			c.unguard(r, ep)
		}
		for _, g := range slices.Concat(r.peers, r.named) {
			unlink(c.peerOf, g, r)
		}
	}
	for _, g := range scopes {
		unlink(c.guards, g, p)
	}
	if p.isolates() {
		for _, ep := range c.targets(scopes) {
			c.reassess[ep] = struct{}{}
		}
	}
}

// targets are the endpoints of groups that have a port, each once, by port.
func (c *Compiler) targets(groups []storage.ScopeID) []*endpoint {
	var out []*endpoint
	for _, g := range groups {
		for ep := range c.inGroup[g] {
			if ep.port != nil {
				out = append(out, ep)
			}
		}
	}
	slices.SortFunc(out, func(a, b *endpoint) int { return int(int64(a.port.OFPort) - int64(b.port.OFPort)) })
	return slices.Compact(out)
}

// guard makes an endpoint a target of a rule. The first brings the rule's
// conjunctions in; the first of an address family, its peers and services. A
// rule that is past its table's limit guards nothing.
func (c *Compiler) guard(r *rule, ep *endpoint) {
	if _, guarded := r.guarded[ep]; guarded || (r.level != nil && r.level.beyond) {
		return
	}
	if len(r.guarded) == 0 {
		for _, pt := range r.parts {
			c.place(pt, ep)
			c.flows.set("", c.conjunctionFlow(pt))
		}
	}
	r.guarded[ep] = struct{}{}
	for f, has := range ep.families {
		if has {
			if r.in[f]++; r.in[f] == 1 {
				c.familyClauses(r, f, c.join)
			}
		}
	}
	c.targetClauses(r, ep, c.join)
}

func (c *Compiler) unguard(r *rule, ep *endpoint) {
	if _, guarded := r.guarded[ep]; !guarded {
		return
	}
	c.targetClauses(r, ep, c.leave)
	for f, has := range ep.families {
		if has {
			if r.in[f]--; r.in[f] == 0 {
				c.familyClauses(r, f, c.leave)
			}
		}
	}
	delete(r.guarded, ep)
	if len(r.guarded) == 0 {
		for _, pt := range r.parts {
			f := c.conjunctionFlow(pt)
			c.flows.unset("", f.Key())
			c.unplace(pt)
		}
	}
}

// conjunctionFlow is what happens to a packet that satisfies all clauses.
func (c *Compiler) conjunctionFlow(pt *part) openflow.Flow {
	r := pt.rule
	reg, metric, k8s := regIngressRule, uint8(TableIngressMetric), uint8(TableIngressRule)
	if r.egress() {
		reg, metric, k8s = regEgressRule, TableEgressMetric, TableEgressRule
	}
	var acts []openflow.Action
	if r.wire.GetLog() {
		acts = append(acts, logAction())
	}
	switch r.wire.GetAction() {
	case policyv1.Action_ACTION_ALLOW:
		acts = append(acts, openflow.SetReg(reg, pt.place.Conj, 0xffffffff), openflow.GotoTable(metric))
	case policyv1.Action_ACTION_PASS:
		acts = append(acts, openflow.GotoTable(k8s))
	}
	return openflow.Flow{Table: pt.table, Priority: pt.priority, Match: openflow.NewMatch(openflow.ConjID(pt.place.Conj)),
		Cookie: cookie(KindRule, pt.place.Conj), Actions: actions(acts...)}
}
