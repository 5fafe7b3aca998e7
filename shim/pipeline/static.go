package pipeline

import (
	"net/netip"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Addresses that are nobody's: of groups, those that have no member.
var multicast = []netip.Prefix{
	groupAddresses,
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("ff00::/8"),
}

// Types of ICMPv6 messages that routers send; none of them is a Pod.
var routerMessages = []uint8{134, 137}

// staticFlows are there for every node; so are those of hostFlows, in one way or
// another.
func (c *Compiler) staticFlows() {
	put := func(table uint8, priority uint16, acts openflow.Actions, match ...openflow.Field) {
		c.flows.set("", openflow.Flow{Table: table, Priority: priority, Match: openflow.NewMatch(match...), Cookie: cookie(KindStatic, 0), Actions: acts})
	}
	next := func(table uint8) openflow.Actions { return actions(openflow.GotoTable(table)) }
	// A connection that has not the mark yet begins with this packet.
	commit := func(table uint8, priority uint16, mark uint32, match []openflow.Field, tracked ...openflow.Action) {
		acts := append(tracked, openflow.GotoTable(TableOutput))
		put(table, priority, actions(acts...), match...)
		put(table, priority+1, actions(append([]openflow.Action{openflow.Resubmit(TableEgressSession)}, acts...)...),
			append([]openflow.Field{openflow.CtMark(0, mark)}, match...)...)
	}
	fromPod := openflow.Reg(regSource, sourcePod, maskSource)
	bypass := openflow.Reg(0, bitBypass, bitBypass)
	families := [][]openflow.Field{{openflow.IPv4()}, {openflow.IPv6()}}

	c.hostFlows()
	put(TableSpoofGuard, prioMiss, openflow.Drop())

	for _, t := range []uint8{openflow.NDSolicit, openflow.NDAdvert} {
		put(TableResolution, prioDefault+1, openflow.Drop(), openflow.ICMPv6Type(t))
	}
	for _, f := range families {
		put(TableResolution, prioDefault, next(TableConntrack), f...)
		put(TableConntrack, prioDefault, actions(track), f...)
	}
	put(TableResolution, prioMiss, openflow.Drop())
	put(TableConntrack, prioMiss, openflow.Drop())

	// SCTP is tracked by its pair of addresses alone. So each server port has a
	// zone: a packet is a reply if the pair is allowed in the zone of the port
	// that it comes from; everything else is judged, packet by packet. Of two
	// that both serve and call one port, each way has a mark of its own. ICMP
	// errors do not tell the port, so the pair has an entry for them beside, in the
	// zone of all traffic.
	zoneBits := openflow.RegBits(regZone, 0, 16)
	for _, f := range families {
		sctp := append([]openflow.Field{openflow.IPProto(openflow.ProtoSCTP)}, f...)
		put(TableConntrack, prioNormal, actions(openflow.MoveBits(openflow.WholeField(openflow.FieldSCTPSrc), zoneBits),
			openflow.CT{ZoneFrom: zoneBits, Recirc: true, Table: TableSCTPState}), sctp...)
		put(TableConntrackCommit, prioNormal, actions(openflow.MoveBits(openflow.WholeField(openflow.FieldSCTPDst), zoneBits),
			openflow.CT{ZoneFrom: zoneBits, Recirc: true, Table: TableSCTPCommit}), sctp...)
		for state, mark := range map[uint32]uint32{0: markAllowed, openflow.CtRpl: markAllowedBack} {
			// An error about a packet does not tell its zone: see markErrors.
			commit(TableSCTPCommit, prioNormal, mark, append([]openflow.Field{openflow.CtState(state|openflow.CtTrk, openflow.CtRpl|openflow.CtTrk)}, sctp...),
				openflow.CT{Commit: true, ZoneFrom: zoneBits, Exec: allowed(mark)},
				openflow.CT{Commit: true, Zone: zone, Exec: []openflow.Action{openflow.SetCtMark(markErrors, markErrors)}})
		}
	}
	put(TableSCTPCommit, prioMiss, openflow.Drop())
	put(TableRuleMetric, prioMiss, openflow.Drop())
	put(TableEgressSession, prioMiss, next(TableIngressSession))
	put(TableIngressSession, prioMiss, openflow.Actions{}) // Back to be marked.

	skip := actions(openflow.SetReg(0, bitBypass, bitBypass), openflow.GotoTable(TableEgressMetric))
	isAllowed := openflow.CtMark(markAllowed, markAllowed)
	put(TableConntrackState, prioTop, openflow.Drop(), openflow.CtState(openflow.CtInv|openflow.CtTrk, openflow.CtInv|openflow.CtTrk))
	est, rel := uint32(openflow.CtEst|openflow.CtTrk), uint32(openflow.CtRel|openflow.CtTrk)
	put(TableConntrackState, prioNormal, skip, openflow.CtState(est, est), isAllowed)
	put(TableConntrackState, prioNormal, skip, openflow.CtState(rel, rel|est), isAllowed)
	put(TableConntrackState, prioNormal-1, skip, openflow.CtState(rel, rel|est), openflow.CtMark(markErrors, markErrors))
	put(TableConntrackState, prioMiss, next(TableServiceLB))
	c.recoveredFlows(put)
	back := uint32(openflow.CtEst | openflow.CtRpl | openflow.CtTrk)
	reply := actions(openflow.SetReg(0, bitBypass, bitBypass), openflow.Resubmit(TableServiceReply), openflow.GotoTable(TableEgressMetric))
	put(TableSCTPState, prioNormal, reply, openflow.CtState(back, back), isAllowed)
	put(TableSCTPState, prioNormal, reply, openflow.CtState(est, back), openflow.CtMark(markAllowedBack, markAllowedBack))
	put(TableSCTPState, prioMiss, next(TableServiceLB))
	c.serviceFlows(put)

	chain := []uint8{TableAntreaPolicyEgressRule, TableEgressRule, TableEgressDefaultRule, TableEgressMetric, TableForwarding}
	for i := range len(chain) - 1 {
		put(chain[i], prioMiss, next(chain[i+1]))
	}

	for _, dir := range bothDirections {
		s := stepsOf[staged][dir]
		put(s.policy, prioMiss, next(s.k8s))
		put(s.k8s, prioMiss, next(s.last))
		put(s.last, prioMiss, openflow.Actions{}) // Back to where it was asked.
		s = stepsOf[enforced][dir]
		c.flows.set("", openflow.Flow{Table: s.metric, Priority: prioTop, Match: openflow.NewMatch(openflow.Reg(s.allowed, 0, 0xffffffff), s.differs(verdictAllow)),
			Cookie: cookie(KindDefault, 0), Actions: actions(c.logAction(0, true), openflow.GotoTable(s.metric+1))})
	}

	for _, p := range multicast {
		put(TableForwarding, prioTop, openflow.Drop(), openflow.IPDst(p))
	}
	put(TableForwarding, prioDefault, actions(openflow.SetEthDst(c.cfg.LocalMAC), openflow.SetReg(regOutput, localOutput, 0xffffffff),
		openflow.GotoTable(TableIngressMetric)), fromPod)
	put(TableForwarding, prioMiss, openflow.Drop())

	put(TableAntreaPolicyIngressRule, prioSkip+1, next(TableIngressMetric), bypass) // Also where the host answers.
	put(TableAntreaPolicyIngressRule, prioSkip, next(TableIngressMetric), openflow.Reg(0, bitOwnHost, bitOwnHost))
	chain = []uint8{TableAntreaPolicyIngressRule, TableIngressRule, TableIngressDefaultRule, TableIngressMetric, TableConntrackCommit}
	for i := range len(chain) - 1 {
		put(chain[i], prioMiss, next(chain[i+1]))
	}

	put(TableConntrackCommit, prioHigh, next(TableOutput), bypass)
	for _, f := range families {
		commit(TableConntrackCommit, prioDefault, markAllowed, append([]openflow.Field{openflow.CtState(openflow.CtTrk, openflow.CtTrk|openflow.CtInv)}, f...),
			openflow.CT{Commit: true, Zone: zone, Exec: allowed(markAllowed)})
	}
	put(TableConntrackCommit, prioMiss, openflow.Drop())
	c.multicastFlows(put)
	c.flows.set("", c.Touch())
	put(TableNameAnswer, prioMiss, actions(openflow.OutputRegister(regOutput)))
}

// track looks a packet's connection up, and translates it as the connection is.
var track = openflow.CT{Zone: zone, NAT: openflow.NAT{Kind: openflow.NATApply}, Recirc: true, Table: TableConntrackState}

// allowed marks a connection as allowed, with the rules that allowed it.
func allowed(mark uint32) []openflow.Action {
	return []openflow.Action{
		openflow.SetCtMark(mark, mark),
		openflow.MoveBits(openflow.RegBits(regEgressRule, 0, 32), openflow.Bits{Field: openflow.FieldCTLabel, Offset: labelEgress, Len: 32}),
		openflow.MoveBits(openflow.RegBits(regIngressRule, 0, 32), openflow.Bits{Field: openflow.FieldCTLabel, Offset: labelIngress, Len: 32}),
	}
}
