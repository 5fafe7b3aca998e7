package pipeline

import (
	"cmp"
	"net/netip"
	"slices"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/order"
)

// Hit is a packet that a flow reported.
type Hit struct {
	Table    uint8
	Cookie   uint64
	Priority uint16 // Zero where it is not known.
	InPort   uint32
	OutPort  uint32 // Register 1.
	Src, Dst netip.Addr
	Proto    uint8 // IANA number.
	SrcPort  uint16
	DstPort  uint16
	ICMPType uint8
	ICMPCode uint8
	Service  uint32 // Id of the Service's port that it was for: see ServiceOf. Zero: none.
	Decision uint32 // Id of the isolation that dropped it: see DecisionOf.
	Mark     Mark
	Reported bool // For nothing but that the staged world's verdict is another.
}

// Attribution is what a hit means.
type Attribution struct {
	Direction policyv1.Direction
	Action    policyv1.Action
	Table     string
	// Policies that decided, by name: all that allow, or all that isolate.
	Policies  []*policyv1.PolicyRef
	Isolation bool
	Rule      string
	LogLabel  string
	Priority  *uint32 // Of the deciding rule's flow; nil for isolation.
	AppliedTo string  // "NAMESPACE/POD".
	Peer      string  // "NAMESPACE/POD", or empty.
	// Staged is what the staged world decided, where it is another verdict.
	Staged *auditv1.StagedOutcome
	// Unlogged says that the packet is on record for Staged alone.
	Unlogged bool
	// Spoof says that the packet is not from who it says; it is on record for
	// that alone, and no policy has a part in it.
	Spoof bool
}

// direction is that of the traffic that a table judges.
func direction(table uint8) policyv1.Direction {
	if table <= TableEgressMetric {
		return egressDirection
	}
	return ingressDirection
}

// Attribute says what a hit means by the present state, or where its rule is not
// in force any more, by what it was: reports of a bundle's time come after it. It
// is false where the flow stands for nothing that is known.
func (c *Compiler) Attribute(h Hit) (Attribution, bool) {
	kind, id, ok := ParseCookie(h.Cookie)
	if !ok {
		return Attribution{}, false
	}
	a := Attribution{Table: TableName(h.Table), Direction: direction(h.Table), Unlogged: h.Reported}
	if kind == KindSpoof {
		a.Action, a.Spoof = policyv1.Action_ACTION_DROP, true
		if ep := c.ports[h.InPort]; ep != nil {
			a.AppliedTo = ep.wire.GetNamespace() + "/" + ep.wire.GetName()
		}
		return a, true
	}
	at := scene{dir: a.Direction, peer: h.Src, hit: h}
	port, own := h.OutPort, h.Dst
	if at.dir == egressDirection {
		port, own, at.peer = h.InPort, h.Src, h.Dst
	}
	if at.ep = c.ports[port]; at.ep != nil {
		a.AppliedTo = at.ep.wire.GetNamespace() + "/" + at.ep.wire.GetName()
	} else { // The port has gone since.
		a.AppliedTo = c.nameOf(own)
	}
	a.Peer = c.nameOf(at.peer)
	switch kind {
	case KindIsolation:
		a.Action, a.Isolation = policyv1.Action_ACTION_DROP, true
		policies := c.isolatedBy(h.Decision)
		if len(policies) == 0 {
			policies = c.isolating(at.ep, at.dir, enforced)
		}
		a.Policies = refs(policies)
		ok = len(a.Policies) > 0
	case KindRule:
		pt := c.partOf(id)
		if pt == nil {
			return Attribution{}, false
		}
		prio := uint32(pt.priority)
		r, policies := c.deciders(pt, at)
		a.Policies = refs(policies)
		a.Action, a.Rule, a.LogLabel, a.Priority = r.wire.GetAction(), r.wire.GetName(), r.wire.GetLogLabel(), &prio
	case KindDefault: // After the last step.
		a.Action, a.Table = policyv1.Action_ACTION_ALLOW, TableName(stepsOf[enforced][at.dir].last)
	default:
		return Attribution{}, false
	}
	a.Staged = c.outcome(a.Action, at)
	return a, ok
}

// partOf is the part of a rule that an id stands for, or stood for until a short
// while ago; nil where it does not.
func (c *Compiler) partOf(id uint32) *part {
	if pt := c.byConj[id]; pt != nil {
		return pt
	}
	if n := c.counts.of[id]; n != nil {
		return n.part
	}
	return nil
}

// isolatedBy are the policies of an isolation, by its id and by name; none where
// it is not known.
func (c *Compiler) isolatedBy(id uint32) []*policy {
	n := c.counts.of[id]
	if n == nil {
		return nil
	}
	return slices.SortedFunc(slices.Values(n.policies), comparePolicies)
}

// DecisionOf is the id of the isolation that dropped a packet which a flow of a
// cookie reported; zero where none did.
func DecisionOf(c uint64, register func(n int) uint32) uint32 {
	if kind, _, ok := ParseCookie(c); ok && kind == KindIsolation {
		return register(regDecision)
	}
	return 0
}

// scene is a hit as one of an endpoint and a peer.
type scene struct {
	hit  Hit
	dir  policyv1.Direction
	ep   *endpoint // Nil: it has gone.
	peer netip.Addr
}

// deciders are the rule that decides where a part of a rule was hit, and the
// policies that do: of a Kubernetes allow all that allow.
func (c *Compiler) deciders(pt *part, at scene) (*rule, []*policy) {
	r := pt.body.owner
	if pt.body.level == nil {
		if policies := c.allowing(pt.body.world, at); len(policies) > 0 {
			return r, policies
		}
	} else if first := c.decider(pt.body.level, at); first != nil {
		r = first
	}
	return r, []*policy{r.policy}
}

// refs names policies, each once: a policy may have come in several parts.
func refs(policies []*policy) (out []*policyv1.PolicyRef) {
	for i, p := range policies {
		if i == 0 || comparePolicies(policies[i-1], p) != 0 {
			out = append(out, p.wire.GetRef())
		}
	}
	return out
}

// decider is the rule of a level that decides a hit: of all that cover it that
// of the oldest policy, then the first by kind, Namespace and name. A policy
// whose age is not known counts as the youngest.
func (c *Compiler) decider(lv *level, at scene) *rule {
	var first *rule
	covered := make(covered)
	for p := range c.guarding(at.ep) {
		for _, r := range p.rules {
			for _, in := range []*rule{r, r.twin} {
				if in != nil && in.level == lv && covered.by(c, in, at) && (first == nil || compareTied(in.policy, first.policy) < 0) {
					first = in
				}
			}
		}
	}
	return first
}

// compareTied orders policies of which nothing else says which comes first.
func compareTied(a, b *policy) int {
	return cmp.Or(cmp.Compare(order.Born(a.wire), order.Born(b.wire)), comparePolicies(a, b))
}

// covered says which bodies hold for a hit, as far as was asked.
type covered map[*body]bool

// by says whether a rule holds for a hit on an endpoint.
func (known covered) by(c *Compiler, r *rule, at scene) bool {
	b := r.body
	covers, is := known[b]
	if !is {
		if _, guarded := b.guarded[at.ep]; guarded {
			covers = slices.ContainsFunc(b.parts, func(pt *part) bool { return c.covers(pt, at.ep, at.peer, at.hit) })
		}
		known[b] = covers
	}
	return covers
}

// allowing are the Kubernetes policies of a world that have a rule which allows
// a hit, by name.
func (c *Compiler) allowing(w world, at scene) []*policy {
	var found []*policy
	covered := make(covered)
	for p := range c.guarding(at.ep) {
		if slices.ContainsFunc(p.rules, func(r *rule) bool {
			in := r.as(w)
			return in != nil && !in.ordered() && in.direction == at.dir && covered.by(c, in, at)
		}) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, comparePolicies)
	return found
}

// covers says whether a part's clauses hold for a hit on one of its targets.
// Group members are looked up among the matches that the clauses have, not gone
// through.
func (c *Compiler) covers(pt *part, ep *endpoint, peer netip.Addr, h Hit) bool {
	r, f := pt.body, family(peer)
	listed := func(clause uint8, match openflow.Match) bool {
		if r.direct() {
			return slices.ContainsFunc(pt.terms, func(t term) bool { return t.clause == clause && t.match == match })
		}
		d := c.flows.flows[pt.flowKey(match)]
		if d == nil {
			return false
		}
		_, is := find(d.clauses, pt.membership(clause))
		return is
	}
	if pt.named {
		l4 := openflow.L4Dst
		if h.Proto != openflow.ProtoTCP && h.Proto != openflow.ProtoUDP && h.Proto != openflow.ProtoSCTP {
			return false
		}
		if r.egress() {
			return listed(pt.peer, openflow.NewMatch(openflow.IPDst(host(peer)), l4(h.Proto, h.DstPort, 0xffff)))
		}
		if !listed(pt.target, openflow.NewMatch(targetField(r.direction, ep.port.OFPort), familyField(f), l4(h.Proto, h.DstPort, 0xffff))) {
			return false
		}
	}
	if pt.peer != none && !listed(pt.peer, openflow.NewMatch(r.peerField(host(peer)))) &&
		!slices.ContainsFunc(r.blocks, func(p netip.Prefix) bool { return p.Contains(peer) }) && !r.reaches(c.servicePorts[h.Service]) {
		return false
	}
	if pt.service == none {
		return true
	}
	return slices.ContainsFunc(r.services, func(s *policyv1.Service) bool { return serves(s, f, h) })
}

// reaches says whether a rule names the Service of a port; of nil it does not.
func (r *content) reaches(sp *servicePort) bool {
	return sp != nil && slices.Contains(r.toServices, sp.service.name)
}

// serves says whether a service, by number, is that of a hit.
func serves(s *policyv1.Service, f int, h Hit) bool {
	proto := protoNumber(s.GetProtocol(), f)
	within := func(port uint16, first, last uint32) bool {
		return first == 0 || (uint32(port) >= first && uint32(port) <= max(first, last))
	}
	switch {
	case s.GetPortName() != "":
		return false
	case proto == 0:
		return true
	case proto != h.Proto:
		return false
	case s.IcmpType != nil && *s.IcmpType != uint32(h.ICMPType), s.IcmpCode != nil && *s.IcmpCode != uint32(h.ICMPCode):
		return false
	}
	return within(h.DstPort, s.GetPort(), s.GetEndPort()) && within(h.SrcPort, s.GetSourcePort(), s.GetSourceEndPort())
}

// nameOf is the Pod of an address, as the state knows it: a local one, or a
// member of a group.
func (c *Compiler) nameOf(a netip.Addr) string {
	if names := c.names[a]; len(names) > 0 {
		return names[len(names)-1].name
	}
	return ""
}

// nameCount is how many items say that an address is a Pod's.
type nameCount struct {
	name  string
	count int
}

// named counts a Pod's addresses in or out.
func (c *Compiler) named(name string, ips []netip.Addr, delta int) {
	for _, a := range ips {
		list := c.names[a]
		i := slices.IndexFunc(list, func(n nameCount) bool { return n.name == name })
		if i < 0 {
			list, i = append(list, nameCount{name: name}), len(list)
		}
		if list[i].count += delta; list[i].count == 0 {
			list = slices.Delete(list, i, i+1)
		}
		if len(list) == 0 {
			delete(c.names, a)
		} else {
			c.names[a] = list
		}
	}
}

// giveUp notes that a Pod may have these addresses no more.
func (c *Compiler) giveUp(name string, ips []netip.Addr) {
	for _, a := range ips {
		c.gaveUp[a] = name
	}
}
