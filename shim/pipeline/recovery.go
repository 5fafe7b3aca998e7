package pipeline

import (
	"time"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// A switch that restarts has forgotten which connections are allowed. What comes
// first of one may be what its server says, which the rules would judge as if the
// server began it. So for a while such packets are judged as what answers the
// connection, by the shim:
//
//	ConntrackState   TCP, new, neither SYN nor RST:
//	                   judged, as an answer      ct(commit, marked recovered) -> EgressMetric
//	                   judged, as none; or by    ServiceLB, as ever
//	                   its ports the client's
//	                   otherwise                 to the controller, and nowhere else
//	                 SYN of a recovered one      ServiceLB, always
//
// The shim asks Answers, and puts the packet back by Recovered. The flows are a lease,
// as that of DNS answers: with nobody there such packets are soon judged as ever.
// A recovered connection lets no SYN through that the rules do not: so whoever makes
// one up, by a packet that is no answer, has begun nothing by it.

// RecoveryController is the id of the connection that packets go to which may be of a
// forgotten connection, and RecoveryMeter the meter that limits them.
const (
	RecoveryController = 9
	RecoveryMeter      = 5
)

// recoveryRate is how many such packets a second there are to be, of all Pods. What is
// beyond is lost, and sent again.
const recoveryRate = 5000

// RecoveryLease is how long the flows of Recovery last.
const RecoveryLease = leaseSeconds * time.Second

const tcpRST = 4

// highPorts are those that clients are given by themselves, and above: from 32,768 on.
const highPorts = 1 << 15

// Priorities in ConntrackState, below those of LetEstablished.
const (
	prioRecovered  = prioHigh - 1 // An answer, and what is not to skip the rules.
	prioAsked      = prioHigh - 2 // To be judged as ever.
	prioRecovering = prioHigh - 3
)

// Recovery are the flows that have what may be of a forgotten connection judged as its
// answer.
func Recovery() (out []openflow.Flow) {
	put := func(priority uint16, acts openflow.Actions, match ...openflow.Field) {
		out = append(out, openflow.Flow{Table: TableConntrackState, Priority: priority, Match: openflow.NewMatch(match...), Cookie: cookie(KindRecovery, 0),
			HardTimeout: leaseSeconds, Actions: acts})
	}
	for _, family := range []openflow.Field{openflow.IPv4(), openflow.IPv6()} {
		unknown := func(more ...openflow.Field) []openflow.Field {
			return append(more, family, openflow.IPProto(openflow.ProtoTCP), openflow.TCPFlags(0, tcpSYN|tcpRST),
				openflow.CtState(openflow.CtNew|openflow.CtTrk, openflow.CtNew|openflow.CtTrk))
		}
		put(prioRecovered, actions(openflow.CT{Commit: true, Zone: zone, Exec: allowed(markAllowed | markRecovered)},
			openflow.SetReg(0, bitBypass, bitBypass), openflow.GotoTable(TableEgressMetric)), unknown(openflow.Reg(0, bitAnswer, bitAnswer))...)
		put(prioAsked, actions(openflow.GotoTable(TableServiceLB)),
			unknown(openflow.L4Src(openflow.ProtoTCP, highPorts, highPorts), openflow.L4Dst(openflow.ProtoTCP, 0, highPorts))...)
		// The host's own is allowed anyway.
		put(prioRecovering, actions(openflow.Controller{ControllerID: RecoveryController, MaxLen: wholePacket, MeterID: RecoveryMeter}),
			unknown(openflow.Reg(0, 0, bitNoAnswer|bitOwnHost))...)
	}
	return out
}

// Recovered are the actions that put a packet back which Recovery took, judged as the
// answer to a connection, or as none.
func Recovered(answer bool) openflow.Actions {
	bit := bitNoAnswer
	if answer {
		bit = bitAnswer
	}
	return actions(openflow.SetReg(0, bit, bit), openflow.Resubmit(TableClassifier))
}

// Answers says whether a packet of TCP that came in by a port may be the answer to a
// connection that is allowed, at each end that is here. What is for a Service is none:
// what its connections were translated to is forgotten.
func (c *Compiler) Answers(inPort uint32, h Hit) bool {
	h.Src, h.Dst, h.SrcPort, h.DstPort = h.Dst, h.Src, h.DstPort, h.SrcPort
	if c.ClusterIP(h.Src) != "" {
		return false
	}
	server := c.ports[inPort]
	if server != nil && !c.Judge(ingressDirection, inPort, h) {
		return false
	}
	for _, n := range c.names[h.Src] {
		if client := c.endpoints[n.key]; client != nil && client.port != nil {
			return c.Judge(egressDirection, client.port.OFPort, h)
		}
	}
	return server != nil
}

// recoveredFlows are there for every node: recovered connections outlast the lease.
func (c *Compiler) recoveredFlows(put func(table uint8, priority uint16, acts openflow.Actions, match ...openflow.Field)) {
	for _, family := range []openflow.Field{openflow.IPv4(), openflow.IPv6()} {
		put(TableConntrackState, prioRecovered, actions(openflow.GotoTable(TableServiceLB)),
			family, openflow.IPProto(openflow.ProtoTCP), openflow.TCPFlags(tcpSYN, tcpSYN), openflow.CtMark(markRecovered, markRecovered))
	}
}
