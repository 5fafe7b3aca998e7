package pipeline

import (
	"net/netip"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
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
}

// Attribute says what a hit means by the present state; false where its flow
// stands for nothing any more.
func (c *Compiler) Attribute(h Hit) (Attribution, bool) {
	kind, id, ok := ParseCookie(h.Cookie)
	if !ok {
		return Attribution{}, false
	}
	a := Attribution{Table: TableName(h.Table), Direction: policyv1.Direction_DIRECTION_INGRESS}
	port, peer := h.OutPort, h.Src
	if h.Table <= TableEgressMetric {
		a.Direction, port, peer = policyv1.Direction_DIRECTION_EGRESS, h.InPort, h.Dst
	}
	ep := c.ports[port]
	if ep == nil {
		return Attribution{}, false
	}
	a.AppliedTo = ep.wire.GetNamespace() + "/" + ep.wire.GetName()
	a.Peer = c.nameOf(peer)
	switch kind {
	case KindIsolation:
		a.Action, a.Isolation = policyv1.Action_ACTION_DROP, true
		for _, p := range c.isolating(ep, a.Direction) {
			a.Policies = append(a.Policies, p.wire.GetRef())
		}
		return a, len(a.Policies) > 0
	case KindRule:
		pt := c.byConj[id]
		if pt == nil {
			return Attribution{}, false
		}
		prio := uint32(pt.priority)
		r := pt.rule
		if r.level == nil {
			a.Policies = c.allowing(ep, a.Direction, peer, h)
		} else if first := c.decider(r.level, ep, peer, h); first != nil {
			r = first
		}
		if len(a.Policies) == 0 {
			a.Policies = []*policyv1.PolicyRef{r.policy.wire.GetRef()}
		}
		a.Action, a.Rule, a.LogLabel, a.Priority = r.wire.GetAction(), r.wire.GetName(), r.wire.GetLogLabel(), &prio
		return a, true
	}
	return Attribution{}, false
}

// decider is the rule of a level that decides a hit: of all that cover it the
// first by kind, Namespace and name, but an older one where both have an age.
func (c *Compiler) decider(lv *level, ep *endpoint, peer netip.Addr, h Hit) *rule {
	var found []*rule
	for p := range c.guarding(ep) {
		for _, r := range p.rules {
			if r.level == lv && c.ruleCovers(r, ep, peer, h) {
				found = append(found, r)
			}
		}
	}
	slices.SortFunc(found, func(a, b *rule) int { return slices.Compare(a.policy.name(), b.policy.name()) })
	var first *rule
	for _, r := range found {
		if first == nil || (r.policy.wire.GetCreated() != 0 && r.policy.wire.GetCreated() < first.policy.wire.GetCreated()) {
			first = r
		}
	}
	return first
}

// ruleCovers says whether a rule holds for a hit on an endpoint.
func (c *Compiler) ruleCovers(r *rule, ep *endpoint, peer netip.Addr, h Hit) bool {
	_, guarded := r.guarded[ep]
	return guarded && slices.ContainsFunc(r.parts, func(pt *part) bool { return c.covers(pt, ep, peer, h) })
}

// allowing are the Kubernetes policies that have a rule which allows a hit, by
// name.
func (c *Compiler) allowing(ep *endpoint, dir policyv1.Direction, peer netip.Addr, h Hit) []*policyv1.PolicyRef {
	var found []*policy
	for p := range c.guarding(ep) {
		if slices.ContainsFunc(p.rules, func(r *rule) bool {
			return r.level == nil && r.wire.GetDirection() == dir && c.ruleCovers(r, ep, peer, h)
		}) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b *policy) int { return slices.Compare(a.name(), b.name()) })
	var refs []*policyv1.PolicyRef
	for _, p := range found {
		refs = append(refs, p.wire.GetRef())
	}
	return refs
}

// covers says whether a part's clauses hold for a hit on one of its targets.
// Group members are looked up among the clause flows, not gone through.
func (c *Compiler) covers(pt *part, ep *endpoint, peer netip.Addr, h Hit) bool {
	r, f := pt.rule, family(peer)
	listed := func(clause uint8, match openflow.Match) bool {
		d := c.flows.flows[openflow.FlowKey{Table: pt.table, Priority: pt.priority, Match: match}]
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
		if !listed(pt.target, openflow.NewMatch(targetField(r.wire.GetDirection(), ep.port.OFPort), familyField(f), l4(h.Proto, h.DstPort, 0xffff))) {
			return false
		}
	}
	if pt.peer != none && !listed(pt.peer, openflow.NewMatch(r.peerField(host(peer)))) &&
		!slices.ContainsFunc(r.blocks, func(p netip.Prefix) bool { return p.Contains(peer) }) {
		return false
	}
	if pt.service == none {
		return true
	}
	return slices.ContainsFunc(r.services, func(s *policyv1.Service) bool { return serves(s, f, h) })
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
