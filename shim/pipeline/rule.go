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

func comparePolicies(a, b *policy) int { return slices.Compare(a.name(), b.name()) }

// isolatesIn says whether a policy isolates what it applies to in a direction.
func (p *policy) isolatesIn(dir policyv1.Direction) bool {
	if dir == egressDirection {
		return p.wire.GetIsolatesEgress()
	}
	return p.wire.GetIsolatesIngress()
}

// world is the one to which the policy was written: it is in the staged one
// anyway.
func (p *policy) world() world {
	if p.wire.GetStaged() {
		return staged
	}
	return enforced
}

func (p *policy) appliesTo(ep *endpoint) bool { return inAny(ep, p.applied) }

func inAny(ep *endpoint, groups []storage.ScopeID) bool {
	return slices.ContainsFunc(groups, func(g storage.ScopeID) bool { _, in := ep.groups[g]; return in })
}

// rule is one rule of a policy. It contributes flows as long as it guards an
// endpoint with a port, for the address families of those that it guards.
type rule struct {
	policy   *policy
	world    world
	twin     *rule                  // The same rule in the other world; nil where it is not there.
	judges   map[*endpoint]struct{} // Of a rule in the staged world: what it is to guard there.
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
	r := &rule{policy: p, world: p.world(), wire: w, at: precedenceOf(p.wire, w), guarded: make(map[*endpoint]struct{})}
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
	for _, s := range w.GetServices().GetServices() {
		if err := checkService(s); err != nil {
			note(err)
			continue
		}
		r.services = append(r.services, s)
	}
	r.parts = newParts(r)
	return r, errors.Join(errs...)
}

// steps are the tables of the rule's world and direction.
func (r *rule) steps() steps { return stepsOf[r.world][r.wire.GetDirection()] }

// table is where the rule's flows are.
func (r *rule) table() uint8 { return r.steps().of(r.at.Rank) }

// newParts are the parts that a rule's services ask for.
func newParts(r *rule) (parts []*part) {
	named := func(s *policyv1.Service) bool { return s.GetPortName() != "" }
	numbered := func(s *policyv1.Service) bool { return !named(s) }
	if r.wire.GetServices() == nil || slices.ContainsFunc(r.services, numbered) {
		parts = append(parts, newPart(r, false))
	}
	if slices.ContainsFunc(r.services, named) {
		parts = append(parts, newPart(r, true))
	}
	return parts
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
	if r.world == staged {
		pt.key = "staged/" + pt.key
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
// endpoints that they guard. Staged ones wait for assess.
func (c *Compiler) install(p *policy) {
	scopes := p.scopes()
	for _, g := range scopes {
		link(c.guards, g, p)
	}
	c.review(p, scopes)
	if p.world() == staged {
		return
	}
	for _, r := range p.rules {
		c.linkPeers(r)
	}
	for _, ep := range c.targets(scopes) {
		for _, r := range p.rules {
			if r.appliesTo(ep) {
				c.guard(r, ep)
			}
		}
	}
}

// uninstall undoes install. Places are kept until the Update ends, for the
// policy's successor.
func (c *Compiler) uninstall(p *policy) {
	scopes := p.scopes()
	c.review(p, scopes)
	for _, g := range scopes {
		unlink(c.guards, g, p)
	}
	for _, r := range p.rules {
		if t := r.as(staged); t != nil {
			for ep := range t.judges {
				c.unjudge(t, ep)
			}
		}
		for ep := range r.guarded {
			c.unguard(r, ep)
		}
		if r.world == enforced {
			c.unlinkPeers(r)
		}
	}
}

// scopes are all groups that a policy, or a rule of it, applies to.
func (p *policy) scopes() []storage.ScopeID {
	scopes := slices.Clone(p.applied)
	for _, r := range p.rules {
		scopes = append(scopes, r.applied...)
	}
	return scopes
}

func (c *Compiler) linkPeers(r *rule) {
	for _, g := range slices.Concat(r.peers, r.named) {
		link(c.peerOf, g, r)
	}
}

func (c *Compiler) unlinkPeers(r *rule) {
	for _, g := range slices.Concat(r.peers, r.named) {
		unlink(c.peerOf, g, r)
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
		}
	}
	r.guarded[ep] = struct{}{}
	if len(r.guarded) == 1 {
		c.decisions(r)
	}
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
		c.undecide(r)
		for _, pt := range r.parts {
			c.unplace(pt)
		}
	}
}
