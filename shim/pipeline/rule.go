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

func (p *policy) appliesTo(ep *endpoint) bool { return inAny(ep, p.applied) }

func inAny(ep *endpoint, groups []storage.ScopeID) bool {
	return slices.ContainsFunc(groups, func(g storage.ScopeID) bool { _, in := ep.groups[g]; return in })
}

// rule is one rule of a policy. It contributes flows as long as it guards an
// endpoint with a port, for the address families of those that it guards.
type rule struct {
	policy  *policy
	wire    *policyv1.Rule
	applied []storage.ScopeID
	peers   []storage.ScopeID
	named   []storage.ScopeID // Groups in which port names are resolved beside peers.
	blocks  []netip.Prefix    // Of the peers, exceptions taken out.
	parts   []*part
	guarded map[*endpoint]struct{}
	in      [2]int // Guarded endpoints by family.
}

// part is a conjunction of a rule. The main part is targets × peers × services
// by number. The named part has the services that go by a port's name: there
// the port is resolved on each destination, so that destination and service
// are one clause.
type part struct {
	rule     *rule
	key      string
	place    RulePlace
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
// policy, and the rest stands: an allow that is left out denies.
func (c *Compiler) newPolicy(w *policyv1.Policy) *policy {
	p := &policy{wire: w}
	var err error
	if p.applied, err = scopeIDs(w.GetAppliedTo()); err != nil {
		p.problems = append(p.problems, err)
	}
	for _, rw := range w.GetRules() {
		r, err := c.newRule(p, rw)
		if err != nil {
			p.problems = append(p.problems, fmt.Errorf("%s rule %d: %w", directionName(rw.GetDirection()), rw.GetIndex(), err))
			continue
		}
		p.rules = append(p.rules, r)
	}
	return p
}

func directionName(d policyv1.Direction) string {
	if d == policyv1.Direction_DIRECTION_EGRESS {
		return "egress"
	}
	return "ingress"
}

const rankK8s = 252

func (c *Compiler) newRule(p *policy, w *policyv1.Rule) (*rule, error) {
	if p.wire.GetRank() != rankK8s || w.GetAction() != policyv1.Action_ACTION_ALLOW {
		return nil, fmt.Errorf("action %v at rank %d is not supported yet", w.GetAction(), p.wire.GetRank())
	}
	r := &rule{policy: p, wire: w, guarded: make(map[*endpoint]struct{})}
	var errs [4]error
	r.applied, errs[0] = scopeIDs(w.GetAppliedTo())
	if len(r.applied) == 0 {
		r.applied = p.applied
	}
	r.peers, errs[1] = scopeIDs(w.GetPeers().GetGroups())
	r.named, errs[2] = scopeIDs(w.GetPortNameGroups())
	for _, b := range w.GetPeers().GetBlocks() {
		prefixes, err := blockPrefixes(b)
		if err != nil {
			errs[3] = err
		}
		r.blocks = append(r.blocks, prefixes...)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	numbered, named := 0, 0
	for _, s := range w.GetServices().GetServices() {
		if err := checkService(s); err != nil {
			return nil, err
		}
		if s.GetPortName() != "" {
			named++
		} else {
			numbered++
		}
	}
	if w.GetServices() == nil || numbered > 0 {
		r.parts = append(r.parts, c.newPart(r, false))
	}
	if named > 0 {
		r.parts = append(r.parts, c.newPart(r, true))
	}
	return r, nil
}

func (c *Compiler) newPart(r *rule, named bool) *part {
	ref := r.policy.wire.GetRef()
	pt := &part{rule: r, named: named, target: none, peer: none, service: none, any: none, table: TableIngressRule}
	if r.egress() {
		pt.table = TableEgressRule
	}
	pt.key = fmt.Sprintf("%d/%s/%s/%s/%d", ref.GetKind(), ref.GetNamespace(), ref.GetName(), directionName(r.wire.GetDirection()), r.wire.GetIndex())
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
		c.reassess[ep] = struct{}{}
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
	for _, ep := range c.targets(scopes) {
		c.reassess[ep] = struct{}{}
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
// conjunctions in; the first of an address family, its peers and services.
func (c *Compiler) guard(r *rule, ep *endpoint) {
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
			delete(c.byConj, pt.place.Conj)
		}
	}
}

// place gives a part its id and lane: those that it has in the assignment, or
// a new id and the first lane in which none of its clause flows is full.
func (c *Compiler) place(pt *part, first *endpoint) {
	place, had := c.assignment.Rules[pt.key]
	if !had {
		place = RulePlace{Conj: c.assignment.Next, Lane: c.freeLane(pt, first)}
		c.assignment.Next++
		c.assignment.Rules[pt.key] = place
	}
	pt.place, pt.priority = place, prioK8s-uint16(place.Lane)
	c.byConj[place.Conj] = pt
}

func (c *Compiler) freeLane(pt *part, first *endpoint) int {
	for lane := range lanesK8s - 1 {
		full := false
		look := func(of *part, _ uint8, match openflow.Match) {
			if of == pt && !full {
				full = c.flows.shared(openflow.FlowKey{Table: pt.table, Priority: prioK8s - uint16(lane), Match: match}) >= c.cfg.ClauseCap
			}
		}
		c.targetClauses(pt.rule, first, look)
		for f, has := range first.families {
			if has {
				c.familyClauses(pt.rule, f, look)
			}
		}
		if !full {
			return lane
		}
	}
	return lanesK8s - 1
}

// forgetPlaces drops the places of parts that are not installed any more.
func (c *Compiler) forgetPlaces() {
	if len(c.assignment.Rules) == len(c.byConj) {
		return
	}
	for key, place := range c.assignment.Rules {
		if _, used := c.byConj[place.Conj]; !used {
			delete(c.assignment.Rules, key)
		}
	}
}

// conjunctionFlow is what happens to a packet that satisfies all clauses.
func (c *Compiler) conjunctionFlow(pt *part) openflow.Flow {
	reg, next := regIngressRule, uint8(TableIngressMetric)
	if pt.rule.egress() {
		reg, next = regEgressRule, TableEgressMetric
	}
	var acts []openflow.Action
	if pt.rule.wire.GetLog() {
		acts = append(acts, logAction())
	}
	acts = append(acts, openflow.SetReg(reg, pt.place.Conj, 0xffffffff), openflow.GotoTable(next))
	return openflow.Flow{Table: pt.table, Priority: pt.priority, Match: openflow.NewMatch(openflow.ConjID(pt.place.Conj)),
		Cookie: cookie(KindRule, pt.place.Conj), Actions: actions(acts...)}
}
