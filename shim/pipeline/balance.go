package pipeline

import (
	"encoding/binary"
	"math"
	"net/netip"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// A connection that a Pod of this node begins to a port of a Service is
// translated to one of its backends before the egress rules judge it, so that
// these see the real peer; metadata says which Service it is for:
//
//	ServiceLB        VIP, port: metadata=N ─► [ServiceAffinity: a learned flow loads the client's endpoint] ─► ServiceEndpoint
//	ServiceEndpoint  metadata=N, endpoint: ct(commit, nat to it, ct_label=N) ─► AntreaPolicyEgressRule
//	                 metadata=N: a group chooses the endpoint and comes back; or nobody serves, and that is answered
//
// The endpoint is in register 8, or of IPv6 in registers 8 to 11. One that a
// client is held to and that is gone meets no flow of its own, and another is
// chosen. Conntrack remembers the translation and the Service's label; so packets
// of a connection that is not allowed yet come with them, and what is for the
// endpoint itself has none.
//
// SCTP, which conntrack tells apart by the pair of addresses alone, is translated
// packet by packet, as flows that were learned from the first remember.

// servicePort is a port of a Service, in force.
type servicePort struct {
	service *service
	key     string // In the assignment.
	id      uint32 // Connections carry it in their labels.
	wire    *policyv1.ServicePort
	fixed   map[openflow.FlowKey]struct{} // Its flows that are no endpoint's.
	sticky  uint32                        // Seconds.
	vips    [2]netip.Addr                 // By family.
	serving [2]map[netip.AddrPort]openflow.FlowKey
	// parted are those that were among serving, and serve on what they have: they
	// are about to go, or are for others.
	parted [2]map[netip.AddrPort]struct{}
}

// affinityMost is as long as a flow can wait to be used.
const affinityMost = math.MaxUint16

// sctpIdle is for how many seconds an association may be silent, and find its
// endpoint again.
const sctpIdle = 600

// learnedMost is how many flows a port's clients may have learned at a time. Of
// more clients each connection has its endpoint chosen.
const learnedMost = 65536

var (
	labelOfService    = openflow.Bits{Field: openflow.FieldCTLabel, Offset: labelService, Len: 32}
	metadataOfService = openflow.Bits{Field: openflow.FieldMetadata, Offset: 0, Len: 32}
	// endpointField is where the chosen endpoint is, by family.
	endpointField = [2]openflow.FieldID{openflow.FieldReg(regEndpoint), openflow.FieldXXReg(regEndpoint / 4)}
	// askedField is where the address is that an SCTP packet was sent to, by family.
	askedField = [2]openflow.FieldID{openflow.FieldReg(regAsked), openflow.FieldXXReg(regAsked / 4)}
	ipSrcField = [2]openflow.FieldID{openflow.FieldIPv4Src, openflow.FieldIPv6Src}
	ipDstField = [2]openflow.FieldID{openflow.FieldIPv4Dst, openflow.FieldIPv6Dst}
	etherTypes = [2]uint16{openflow.EtherIPv4, openflow.EtherIPv6}
)

// hairpin are the addresses by which a Pod sees itself as its own client, by family.
var hairpin = [2]netip.Addr{netip.MustParseAddr("169.254.0.253"), netip.MustParseAddr("fd77:6569:7200::253")}

// forService matches what is for a Service's port.
func forService(id uint32) openflow.Field {
	return openflow.Exactly(openflow.FieldMetadata, openflow.Uint(uint64(id)))
}

// ServiceOf is the id of the Service's port that a reported packet was for; zero
// where it was for none.
func ServiceOf(m openflow.Metadata) uint32 {
	v, _ := m.Field(openflow.FieldMetadata)
	return uint32(v.Uint64())
}

// AskedFor is where a reported packet was sent to before it was translated; not
// valid for one that was not.
func AskedFor(m openflow.Metadata) netip.AddrPort {
	if m.CtState()&(openflow.CtDNAT|openflow.CtRpl) == openflow.CtDNAT {
		_, dst := m.CtTuple()
		return dst
	}
	if m.Reg(regAsked) == 0 {
		return netip.AddrPort{}
	}
	b := binary.BigEndian.AppendUint32(nil, m.Reg(regAsked))
	for i := 1; i < 4 && m.Reg(regAsked+1)|m.Reg(regAsked+2)|m.Reg(regAsked+3) != 0; i++ {
		b = binary.BigEndian.AppendUint32(b, m.Reg(regAsked+i))
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(m.Reg(regZone)))
}

// FromElsewhere says whether a reported packet is from another node, or beyond: it
// may have been translated there.
func FromElsewhere(m openflow.Metadata) bool { return m.Reg(regSource)&maskSource == sourceHost }

// atEndpoint matches the chosen endpoint.
func atEndpoint(a netip.Addr) (fields []openflow.Field) {
	if a.Is4() {
		b := a.As4()
		return []openflow.Field{openflow.Reg(regEndpoint, be32(b[:]), math.MaxUint32)}
	}
	b := a.As16()
	for i := range 4 {
		fields = append(fields, openflow.Reg(regEndpoint+i, be32(b[4*i:]), math.MaxUint32))
	}
	return fields
}

func be32(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// groupOf is the id of the group that chooses a port's endpoints in a family.
func groupOf(id uint32, f int) uint32 { return id<<1 | uint32(f) }

// serviceFlows are there for every node that balances.
func (c *Compiler) serviceFlows(put func(table uint8, priority uint16, acts openflow.Actions, match ...openflow.Field)) {
	put(TableServiceLB, prioMiss, actions(openflow.MoveBits(labelOfService, metadataOfService), openflow.GotoTable(TableRevision)))
	put(TableServiceEndpoint, prioMiss, openflow.Drop())
	put(TableServiceAffinity, prioMiss, openflow.Actions{}) // Back to where it was asked.
	put(TableServiceReply, prioMiss, openflow.Actions{})
	// Conntrack knows a connection to a Service before it is judged. What answers
	// one that was not allowed would be judged as from the Service's address.
	answers := uint32(openflow.CtEst | openflow.CtRpl | openflow.CtTrk)
	put(TableConntrackState, prioNormal-2, openflow.Drop(), openflow.CtState(answers, answers), openflow.CtMark(0, markAllowed))
	put(TableHairpinOutput, prioMiss, actions(openflow.OutputRegister(regOutput)))

	// What a Pod says to itself by way of a Service has another source, or its
	// stack would take it for a forgery. Its answers come to that address.
	sctp := openflow.IPProto(openflow.ProtoSCTP)
	for f, addr := range hairpin {
		back := openflow.Reg(0, bitBack, bitBack)
		put(TableConntrack, prioTop, actions(openflow.SetReg(0, bitBack, bitBack),
			openflow.CT{Zone: hairpinZone, NAT: openflow.NAT{Kind: openflow.NATApply}, Recirc: true, Table: TableConntrack}),
			openflow.Reg(0, sourcePod, maskSource|bitBack), openflow.IPDst(host(addr)))
		put(TableConntrack, prioHigh, actions(openflow.SetReg(0, bitBypass, bitBypass), openflow.Resubmit(TableServiceReply), openflow.GotoTable(TableEgressMetric)),
			familyField(f), sctp, back, openflow.CtState(openflow.CtEst|openflow.CtRpl|openflow.CtTrk, openflow.CtEst|openflow.CtRpl|openflow.CtTrk))
		put(TableOutput, prioHigh, actions(openflow.CT{Commit: true, Zone: hairpinZone, NAT: openflow.NAT{Kind: openflow.NATSrc, MinAddr: addr, MaxAddr: addr},
			Recirc: true, Table: TableHairpinOutput}), familyField(f), openflow.Reg(0, bitHairpin, bitHairpin))
	}
}

// hairpinFlows bring what a Pod sends to itself back to it, by no ingress rule.
func (c *Compiler) hairpinFlows(ep *endpoint, put func(table uint8, priority uint16, acts openflow.Actions, match ...openflow.Field)) {
	port, mac := ep.port.OFPort, ep.port.MAC
	for _, ip := range ep.ips {
		for bit, mark := range map[uint32]uint32{0: bitHairpin, bitBack: 0} {
			put(TableForwarding, prioHigh, actions(openflow.SetEthSrc(c.cfg.LocalMAC), openflow.SetEthDst(mac), openflow.SetReg(regOutput, inPortOutput, math.MaxUint32),
				openflow.SetReg(0, mark, bitHairpin), openflow.GotoTable(TableIngressMetric)), openflow.InPort(port), openflow.IPDst(host(ip)), openflow.Reg(0, bit, bitBack))
		}
	}
}

// beginPort brings a port of a Service into force, without flows as yet.
func (c *Compiler) beginPort(s *service, key string) *servicePort {
	id, had := c.assignment.Services[key]
	if !had {
		id = c.nextID()
		c.assignment.Services[key] = id
	}
	sp := &servicePort{service: s, key: key, id: id, fixed: make(map[openflow.FlowKey]struct{})}
	s.ports[key] = sp
	c.servicePorts[id] = sp
	for b := range c.serviceUsers[s.name] {
		c.serviceClauses(b, sp, c.come)
		c.weigh(b)
	}
	return sp
}

// endPort undoes beginPort and balancePort. The id is not given again.
func (c *Compiler) endPort(s *service, sp *servicePort) {
	for b := range c.serviceUsers[s.name] {
		c.serviceClauses(b, sp, c.goes)
		c.weigh(b)
	}
	for key := range sp.fixed {
		c.flows.unset(sp.owner(), key)
	}
	for f := range 2 {
		for _, key := range sp.serving[f] {
			c.flows.unset(sp.owner(), key)
		}
		c.setGroupOf(sp, f, nil)
		if sp.served(f) {
			c.unserve(sp, f, netip.Addr{})
		}
	}
	delete(s.ports, sp.key)
	delete(c.servicePorts, sp.id)
	delete(c.assignment.Services, sp.key)
}

// serviceClauses are those of a body that names the port's Service: see familyClauses.
func (c *Compiler) serviceClauses(b *body, sp *servicePort, do emit) {
	for f, n := range b.in {
		if n > 0 {
			c.serviceClause(b, sp, f, do)
		}
	}
}

func (c *Compiler) serviceClause(b *body, sp *servicePort, f int, do emit) {
	for _, pt := range b.parts {
		if !pt.named {
			do(pt, pt.peer, f, openflow.NewMatch(familyField(f), forService(sp.id)))
		}
	}
}

// balancePort brings the flows and groups of a port up to date.
func (c *Compiler) balancePort(s *service, sp *servicePort, p *policyv1.ServicePort) {
	sticky := min(s.wire.GetAffinitySeconds(), affinityMost)
	anew := sticky != sp.sticky
	former := sp.fixed
	sp.wire, sp.sticky, sp.fixed = p, sticky, make(map[openflow.FlowKey]struct{})
	proto := protoNumber(p.GetProtocol(), 0)
	fixed := func(table uint8, acts openflow.Actions, match ...openflow.Field) {
		flow := sp.flow(table, prioNormal, acts, match...)
		c.flows.set(sp.owner(), flow)
		sp.fixed[flow.Key()] = struct{}{}
	}
	vips := s.vips()
	for f, vip := range vips {
		if sp.vips[f] != vip && sp.served(f) {
			c.unserve(sp, f, netip.Addr{})
		}
		var chosen []serving
		if vip.IsValid() {
			chosen = c.choose(s, p, f)
			to := []openflow.Action{openflow.Set(openflow.FieldMetadata, openflow.Uint(uint64(sp.id)))}
			if proto == openflow.ProtoSCTP {
				to = append(to, openflow.Set(askedField[f], openflow.Addr(vip)), openflow.SetReg(regZone, p.GetPort(), 0xffff))
			}
			if sticky > 0 || proto == openflow.ProtoSCTP {
				to = append(to, openflow.Resubmit(TableServiceAffinity))
			}
			fixed(TableServiceLB, actions(append(to, openflow.GotoTable(TableServiceEndpoint))...), openflow.Reg(regSource, sourcePod, maskSource), openflow.IPDst(host(vip)), openflow.L4Dst(proto, uint16(p.GetPort()), math.MaxUint16))
			fixed(TableServiceEndpoint, sp.otherwise(f, len(chosen) > 0), familyField(f), forService(sp.id))
		}
		c.setServing(sp, f, chosen, anew)
		c.setGroupOf(sp, f, chosen)
	}
	for key := range former {
		if _, is := sp.fixed[key]; !is {
			c.flows.unset(sp.owner(), key)
		}
	}
	sp.vips = vips
}

// owner has the port's flows. A ClusterIP may come to another Service before, or in
// one cut with, its going from this one.
func (sp *servicePort) owner() string { return "service/" + sp.key }

func (sp *servicePort) flow(table uint8, priority uint16, acts openflow.Actions, match ...openflow.Field) openflow.Flow {
	return openflow.Flow{Table: table, Priority: priority, Match: openflow.NewMatch(match...), Cookie: cookie(KindService, sp.id), Actions: acts}
}

// otherwise is what becomes of a connection that has no endpoint yet. Where
// nobody serves it is refused, but where somebody might elsewhere it is dropped:
// as kube-proxy does.
func (sp *servicePort) otherwise(f int, served bool) openflow.Actions {
	switch {
	case served:
		return actions(openflow.ToGroup(groupOf(sp.id, f)))
	case sp.service.wire.GetLocal() && len(sp.service.serves(sp.wire, f, false))+len(sp.service.serves(sp.wire, f, true)) > 0:
		return openflow.Drop()
	}
	return actions(refuseAction())
}

// setServing has flows for the endpoints of a port in a family, and for no others.
func (c *Compiler) setServing(sp *servicePort, f int, chosen []serving, anew bool) {
	former := sp.serving[f]
	if former == nil { // What a former shim had to do with those that serve is not known.
		sp.parted[f] = sp.serve(f)
	}
	now := make(map[netip.AddrPort]openflow.FlowKey, len(chosen))
	for _, e := range chosen {
		key, had := former[e.AddrPort]
		if !had || anew {
			flow := sp.endpointFlow(f, e.AddrPort)
			c.flows.set(sp.owner(), flow)
			key = flow.Key()
		}
		now[e.AddrPort] = key
	}
	still := make(map[openflow.FlowKey]struct{}, len(now))
	for _, key := range now {
		still[key] = struct{}{}
	}
	for e, key := range former {
		if _, is := still[key]; !is {
			c.flows.unset(sp.owner(), key)
		}
		if _, is := now[e]; !is {
			sp.parted[f][e] = struct{}{}
		}
	}
	sp.serving[f] = now
	c.part(sp, f)
}

// part lets go of those parted that serve nothing any more, or are chosen again.
func (c *Compiler) part(sp *servicePort, f int) {
	if len(sp.parted[f]) == 0 {
		return
	}
	serve := sp.serve(f)
	for e := range sp.parted[f] {
		_, again := sp.serving[f][e]
		_, on := serve[e]
		if !on {
			c.unserve(sp, f, e.Addr())
		}
		if again || !on {
			delete(sp.parted[f], e)
		}
	}
}

// serve are those that serve the port in a family, be they chosen here or not.
func (sp *servicePort) serve(f int) map[netip.AddrPort]struct{} {
	all := make(map[netip.AddrPort]struct{})
	for _, terminating := range []bool{false, true} {
		for _, e := range sp.service.serves(sp.wire, f, terminating) {
			all[e.AddrPort] = struct{}{}
		}
	}
	return all
}

// served says whether the port was served in a family, as far as is known.
func (sp *servicePort) served(f int) bool { return len(sp.serving[f])+len(sp.parted[f]) > 0 }

// unserve notes what connections of the port are to be forgotten: those of
// protocols that have no end of their own.
func (c *Compiler) unserve(sp *servicePort, f int, endpoint netip.Addr) {
	vip := sp.vips[f]
	if sp.wire.GetProtocol() == policyv1.Protocol_PROTOCOL_UDP && vip.IsValid() {
		c.unserved = append(c.unserved, Served{Proto: openflow.ProtoUDP, VIP: netip.AddrPortFrom(vip, uint16(sp.wire.GetPort())), Endpoint: endpoint})
	}
}

// setGroupOf has a group choose among the endpoints of a port; of none there is none.
func (c *Compiler) setGroupOf(sp *servicePort, f int, chosen []serving) {
	id := groupOf(sp.id, f)
	if len(chosen) == 0 {
		if _, had := c.balancers[id]; had {
			delete(c.balancers, id)
			c.regrouped[id] = struct{}{}
		}
		return
	}
	// A group that hashes by default leaves the ports of UDP out. Of more than 256
	// buckets only what is hashed in each connection's first packet has them in.
	g := openflow.Group{ID: id, Type: openflow.GroupSelect, Hash: openflow.HashDatapath}
	if len(chosen) > 256 {
		g.Hash = openflow.HashFields
	}
	for _, e := range chosen {
		g.Buckets = append(g.Buckets, openflow.Bucket{Weight: 100, Actions: actions(openflow.Set(endpointField[f], openflow.Addr(e.Addr())), openflow.Resubmit(TableServiceEndpoint))})
	}
	if former, had := c.balancers[id]; !had || !former.Same(g) {
		c.balancers[id] = g
		c.regrouped[id] = struct{}{}
	}
}

// endpointFlow translates to an endpoint that was chosen.
func (sp *servicePort) endpointFlow(f int, e netip.AddrPort) openflow.Flow {
	var acts []openflow.Action
	if sp.sticky > 0 {
		acts = append(acts, sp.remember(f, e.Addr()))
	}
	if proto := protoNumber(sp.wire.GetProtocol(), 0); proto == openflow.ProtoSCTP {
		acts = append(acts, sp.associate(f, e)...)
		acts = append(acts, openflow.Set(ipDstField[f], openflow.Addr(e.Addr())), openflow.Set(openflow.FieldSCTPDst, openflow.Uint(uint64(e.Port()))),
			openflow.GotoTable(TableRevision))
	} else {
		acts = append(acts, openflow.CT{Commit: true, Zone: zone, Recirc: true, Table: TableRevision,
			NAT:  openflow.NAT{Kind: openflow.NATDst, MinAddr: e.Addr(), MaxAddr: e.Addr(), MinPort: e.Port(), MaxPort: e.Port()},
			Exec: []openflow.Action{openflow.Load(labelOfService, uint64(sp.id))}})
	}
	return sp.flow(TableServiceEndpoint, prioHigh, actions(acts...), append([]openflow.Field{familyField(f), openflow.IPProto(protoNumber(sp.wire.GetProtocol(), 0)), forService(sp.id)}, atEndpoint(e.Addr())...)...)
}

// remember holds a client to an endpoint.
func (sp *servicePort) remember(f int, endpoint netip.Addr) openflow.Action {
	return sp.learn(f, TableServiceAffinity, prioNormal, uint16(sp.sticky),
		openflow.LearnMatchValue(openflow.FieldMetadata, openflow.Uint(uint64(sp.id))),
		openflow.LearnMatch(ipSrcField[f]),
		openflow.LearnLoadValue(openflow.Addr(endpoint), openflow.WholeField(endpointField[f])))
}

// associate holds an association to an endpoint, and has what comes back from
// that bear the Service's address and port.
func (sp *servicePort) associate(f int, e netip.AddrPort) []openflow.Action {
	whole := openflow.WholeField
	flip := func(from, to openflow.FieldID) openflow.LearnSpec {
		return openflow.LearnSpec{From: whole(from), To: whole(to)}
	}
	sctp := openflow.LearnMatchValue(openflow.FieldIPProto, openflow.Uint(openflow.ProtoSCTP))
	there := sp.learn(f, TableServiceAffinity, prioHigh, sctpIdle, sctp,
		openflow.LearnMatchValue(openflow.FieldMetadata, openflow.Uint(uint64(sp.id))),
		openflow.LearnMatch(ipSrcField[f]),
		openflow.LearnMatch(openflow.FieldSCTPSrc),
		openflow.LearnLoadValue(openflow.Addr(e.Addr()), whole(endpointField[f])))
	back := sp.learn(f, TableServiceReply, prioNormal, sctpIdle, sctp,
		openflow.LearnMatchValue(ipSrcField[f], openflow.Addr(e.Addr())),
		openflow.LearnMatchValue(openflow.FieldSCTPSrc, openflow.Uint(uint64(e.Port()))),
		flip(ipSrcField[f], ipDstField[f]),
		flip(openflow.FieldSCTPSrc, openflow.FieldSCTPDst),
		openflow.LearnLoad(whole(ipDstField[f]), whole(ipSrcField[f])),
		openflow.LearnLoad(whole(openflow.FieldSCTPDst), whole(openflow.FieldSCTPSrc)))
	return []openflow.Action{there, back}
}

// learn makes a flow of a client's packet that lasts as long as it is used.
func (sp *servicePort) learn(f int, table uint8, priority, idle uint16, specs ...openflow.LearnSpec) openflow.Action {
	family := openflow.LearnMatchValue(openflow.FieldEthType, openflow.Uint(uint64(etherTypes[f])))
	return openflow.Learn{Table: table, Priority: priority, IdleTimeout: idle, Cookie: cookie(KindLearned, sp.id), Limit: learnedMost,
		Specs: append([]openflow.LearnSpec{family}, specs...)}
}
