package pipeline

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"

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
	unread   []error      // Of these, those of rules without which others must not decide.
	hash     xxh3.Uint128 // Of its world and identity.
	since    uint64       // The first revision in which it is in force.
	until    uint64       // The first in which it is not any more.
}

func (p *policy) isolates() bool { return p.wire.GetIsolatesIngress() || p.wire.GetIsolatesEgress() }

// comparePolicies orders policies as people read them.
func comparePolicies(a, b *policy) int {
	x, y := a.wire.GetRef(), b.wire.GetRef()
	if x.GetKind() != y.GetKind() {
		return strings.Compare(x.GetKind().String(), y.GetKind().String())
	}
	return cmp.Or(strings.Compare(x.GetNamespace(), y.GetNamespace()), strings.Compare(x.GetName(), y.GetName()))
}

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

// content is what a rule asks for, read from the wire.
type content struct {
	direction  policyv1.Direction
	action     policyv1.Action
	log        bool
	applied    []storage.ScopeID
	anyPeer    bool
	peers      []storage.ScopeID
	named      []storage.ScopeID // Groups in which port names are resolved beside peers.
	blocks     []netip.Prefix    // Of the peers, exceptions taken out.
	toServices []serviceName     // Of the peers.
	names      []string          // Of the peers: domain names, whose addresses are groups of their own, among peers.
	anyService bool
	services   []*policyv1.Service // Those that can be matched.
	messages   []*policyv1.Service // Of IGMP, which no flow matches: see multicast.go.
}

// rule is one rule of a policy. Its flows are its body's.
type rule struct {
	content
	policy *policy
	world  world
	twin   *rule                  // The same rule in the other world; nil where it is not there.
	judges map[*endpoint]struct{} // Of a rule in the staged world: what it is to guard there.
	wire   *policyv1.Rule
	at     precedence
	level  *level // Of its table's ladder; nil for Kubernetes rules, which need no order.
	key    string // Names the rule in the assignment.
	body   *body  // Nil where the rule is not installed.
}

// part is a conjunction of a body, in whichever form its flows are: see form.go.
// The main part is targets × peers × services by number. The named part has the services that go by a port's name: there
// the port is resolved on each destination, so that destination and service
// are one clause.
type part struct {
	body     *body
	key      string // In the assignment. Empty: it has no place.
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
	// sizes are how many matches each clause has, by family; what several things
	// contribute counts for each.
	sizes [families][clausesMax]int
	// direct are the matches of its flows where its level is direct, and terms
	// what they are made of; as of the last Update.
	direct []openflow.Match
	terms  []term
}

const none = uint8(255)

func (r *content) appliesTo(ep *endpoint) bool { return inAny(ep, r.applied) }

func (r *content) egress() bool { return r.direction == egressDirection }

// newPolicy reads a policy item. What cannot be compiled is a problem of the
// policy, and the rest stands: what is left out of a rule matches nothing.
func newPolicy(w *policyv1.Policy) *policy {
	p := &policy{wire: w}
	id := p.identity()
	p.hash = xxh3.HashString128(fmt.Sprintf("%d/%d/%s/%s/%s/%s", p.world(), id.kind, id.namespace, id.name, id.uid, w.GetPart()))
	var err error
	if p.applied, err = scopeIDs(w.GetAppliedTo()); err != nil {
		p.problems = append(p.problems, err)
		if p.world() == enforced { // Whom it isolates, or denies something.
			p.unread = append(p.unread, err)
		}
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
			err = fmt.Errorf("%s rule %d: %w", directionName(rw.GetDirection()), rw.GetIndex(), err)
			p.problems = append(p.problems, err)
			if p.world() == enforced && mustStand(p.wire, rw) {
				p.unread = append(p.unread, err)
			}
		}
		if r != nil {
			p.rules = append(p.rules, r)
		}
	}
	return p
}

// mustStand says whether what comes after an enforced rule must not decide in its
// place. After a baseline nothing comes to which it could pass on.
func mustStand(p *policyv1.Policy, w *policyv1.Rule) bool {
	switch w.GetAction() {
	case policyv1.Action_ACTION_ALLOW:
		return false
	case policyv1.Action_ACTION_PASS:
		return !precedenceOf(p, w).baseline()
	}
	return true
}

func directionName(d policyv1.Direction) string {
	if d == policyv1.Direction_DIRECTION_EGRESS {
		return "egress"
	}
	return "ingress"
}

// newRule reads a rule. It is nil where it has no place in the order, or is none
// of the bridge's; an error
// beside a rule is what it is without.
func newRule(p *policy, w *policyv1.Rule) (*rule, error) {
	r := &rule{policy: p, world: p.world(), wire: w, at: precedenceOf(p.wire, w), content: content{direction: w.GetDirection(), action: w.GetAction(),
		log: w.GetLog(), anyPeer: w.GetPeers() == nil, anyService: w.GetServices() == nil}}
	if w.GetNodePorts() || w.GetHost() {
		return nil, nil // It is the host's.
	}
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
	for _, s := range w.GetPeers().GetServices() {
		if name := nameOfRef(s); !slices.Contains(r.toServices, name) { // A port of it comes once.
			r.toServices = append(r.toServices, name)
		}
	}
	for _, name := range w.GetPeers().GetNames() {
		if !r.egress() {
			note(fmt.Errorf("domain name %s in an ingress rule", name))
			continue
		}
		r.names, r.peers = append(r.names, name), append(r.peers, groupOfName(name))
	}
	for _, s := range w.GetServices().GetServices() {
		if err := checkService(s); err != nil {
			note(err)
			continue
		}
		if s.GetProtocol() == policyv1.Protocol_PROTOCOL_IGMP {
			r.messages = append(r.messages, s)
			continue
		}
		r.services = append(r.services, s)
	}
	r.key = r.name()
	return r, errors.Join(errs...)
}

// steps are the tables of the rule's world and direction.
func (r *rule) steps() steps { return stepsOf[r.world][r.direction] }

// table is where the rule's flows are.
func (r *rule) table() uint8 { return r.steps().of(r.at.Rank) }

// name is the rule's in the assignment. One of another precedence is another
// rule there, since an id means one thing and a lane is one of its level.
func (r *rule) name() string {
	ref := r.policy.wire.GetRef()
	key := fmt.Sprintf("%d/%s/%s/%s/%d", ref.GetKind(), ref.GetNamespace(), ref.GetName(), directionName(r.direction), r.wire.GetIndex())
	if part := r.policy.wire.GetPart(); part != "" {
		key += "/" + part
	}
	if r.ordered() {
		key += "/" + r.at.String()
	}
	switch {
	case r.policy.world() == staged:
		key = "staged/" + key
	case r.world == staged:
		key = "twin/" + key
	}
	return key
}

// newParts are the parts that a body's services ask for.
func newParts(b *body) (parts []*part) {
	named := func(s *policyv1.Service) bool { return s.GetPortName() != "" }
	numbered := func(s *policyv1.Service) bool { return !named(s) }
	if b.anyService || slices.ContainsFunc(b.services, numbered) {
		parts = append(parts, newPart(b, false))
	}
	if slices.ContainsFunc(b.services, named) {
		parts = append(parts, newPart(b, true))
	}
	return parts
}

func newPart(b *body, named bool) *part {
	pt := &part{body: b, named: named, target: none, peer: none, service: none, any: none, table: b.table}
	clause := func(at *uint8) { *at = pt.clauses; pt.clauses++ }
	clause(&pt.target)
	if !b.anyPeer || (named && b.egress()) {
		clause(&pt.peer)
	}
	if !named && !b.anyService {
		clause(&pt.service)
	}
	if pt.clauses == 1 {
		clause(&pt.any)
	}
	return pt
}

// clausesMax is how many clauses a part may have.
const clausesMax = 3

// emit takes one match that a part contributes to a clause, and of which family
// it is.
type emit func(pt *part, clause uint8, f int, match openflow.Match)

// come takes what a part contributes from now on; goes undoes it. Where its level
// is direct, its flows follow at the end of the Update.
func (c *Compiler) come(pt *part, clause uint8, f int, match openflow.Match) {
	pt.sizes[f][clause]++
	if !pt.body.direct() {
		c.join(pt, clause, f, match)
	}
}

func (c *Compiler) goes(pt *part, clause uint8, f int, match openflow.Match) {
	pt.sizes[f][clause]--
	if !pt.body.direct() {
		c.leave(pt, clause, f, match)
	}
}

func (c *Compiler) join(pt *part, clause uint8, _ int, match openflow.Match) {
	c.flows.join(pt.flowKey(match), pt.membership(clause))
}

func (c *Compiler) leave(pt *part, clause uint8, _ int, match openflow.Match) {
	c.flows.leave(pt.flowKey(match), pt.membership(clause))
}

func (pt *part) flowKey(match openflow.Match) openflow.FlowKey {
	return openflow.FlowKey{Table: pt.table, Priority: pt.priority, Match: match}
}

func (pt *part) membership(clause uint8) membership {
	return membership{conj: pt.place.Conj, clause: clause, clauses: pt.clauses}
}
