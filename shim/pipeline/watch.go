package pipeline

import (
	"net/netip"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// A probe is one real packet that is sent to see what becomes of it. Flows of its
// own, which end by themselves, copy it and its answers where they leave the
// bridge, and forward them as ever.

// WatchController is the controller id of the connection that the copies go to.
const WatchController = 5

// watchSeconds is how long the flows that watch a probe are there at the most.
const watchSeconds = 8

// prioWatch is ahead of all else in Output.
const prioWatch = 65000

// Probe is the first packet of a connection.
type Probe struct {
	ID       uint32 // Of this shim's.
	Src, Dst netip.Addr
	Proto    uint8  // TCP, UDP, SCTP, ICMP or ICMPv6: an echo request.
	SrcPort  uint16 // Of ICMP the identifier.
	DstPort  uint16
}

// Types of ICMP messages that probes meet: requests, replies, and errors that
// say that the destination cannot be reached.
var echoTypes = map[uint8]struct{ request, reply, unreachable uint8 }{openflow.ProtoICMP: {8, 0, 3}, openflow.ProtoICMPv6: {128, 129, 1}}

// EchoRequest is the ICMP type of a probe by a protocol; zero for other protocols.
func EchoRequest(proto uint8) uint8 { return echoTypes[proto].request }

// EchoReply is the ICMP type of the answer to a probe by a protocol.
func EchoReply(proto uint8) uint8 { return echoTypes[proto].reply }

// WatchFlows copy a probe and what may answer it. Of echo messages they copy all
// between the two.
func WatchFlows(p Probe) []openflow.Flow {
	acts := actions(openflow.Controller{ControllerID: WatchController, MaxLen: logBytes}, openflow.OutputRegister(regOutput))
	watch := func(fields ...openflow.Field) openflow.Flow {
		return openflow.Flow{Table: TableOutput, Priority: prioWatch, Match: openflow.NewMatch(fields...), Cookie: cookie(KindWatch, p.ID), HardTimeout: watchSeconds, Actions: acts}
	}
	src, dst := host(p.Src), host(p.Dst)
	family, icmp := uint8(openflow.ProtoICMP), openflow.ICMPType
	if p.Src.Is6() {
		family, icmp = openflow.ProtoICMPv6, openflow.ICMPv6Type
	}
	errors := watch(openflow.IPDst(src), icmp(echoTypes[family].unreachable))
	if types, is := echoTypes[p.Proto]; is {
		return []openflow.Flow{watch(openflow.IPSrc(src), openflow.IPDst(dst), icmp(types.request)), watch(openflow.IPSrc(dst), openflow.IPDst(src), icmp(types.reply)), errors}
	}
	there := watch(openflow.IPSrc(src), openflow.IPDst(dst), openflow.L4Src(p.Proto, p.SrcPort, 0xffff), openflow.L4Dst(p.Proto, p.DstPort, 0xffff))
	back := watch(openflow.IPSrc(dst), openflow.IPDst(src), openflow.L4Src(p.Proto, p.DstPort, 0xffff), openflow.L4Dst(p.Proto, p.SrcPort, 0xffff))
	return []openflow.Flow{there, back, errors}
}

// Watches says whether a flow watches a probe, and which.
func Watches(cookie uint64) (probe uint32, ok bool) {
	kind, id, ours := ParseCookie(cookie)
	return id, ours && kind == KindWatch
}

// Passing says whether a flow is ours, nobody's desired one, and goes by itself:
// one that watches a probe, that was learned, that has DNS answers held, or connections
// recovered.
func Passing(cookie uint64) bool {
	kind, _, ours := ParseCookie(cookie)
	return ours && (kind == KindWatch || kind == KindLearned || kind == KindLease || kind == KindRecovery)
}

// Learns says whether a table has flows that come and go by themselves.
func Learns(table uint8) bool {
	return table == TableServiceAffinity || table == TableServiceReply || table == TableNameAnswer
}

// OpenPort is the open port of a Pod.
func (c *Compiler) OpenPort(pod Pod) (port Port, ips []netip.Addr, ok bool) {
	for _, ep := range c.ports {
		if ep.wire.GetNamespace() == pod.Namespace && ep.wire.GetName() == pod.Name {
			return *ep.port, ep.ips, true
		}
	}
	return Port{}, nil, false
}

// Gateway is the MAC by which Pods reach the host.
func (c *Compiler) Gateway() [6]byte { return c.cfg.LocalMAC }

// Step is one look-up of a packet: the flow that it hit, or none, whose cookie
// is zero.
type Step struct {
	Table  uint8
	Cookie uint64
}

// Decisions are those of the flows that a packet hit that decided: the rules,
// with what they say of it, and where it did not pass what dropped it.
func (c *Compiler) Decisions(trail []Step, h Hit, passed bool) []*policyv1.ProbeDecision {
	var out []*policyv1.ProbeDecision
	denied := false
	var last Step
	for _, s := range trail {
		kind, _, ours := ParseCookie(s.Cookie)
		if ours && kind == KindCount {
			continue // It comes after what decided.
		}
		last = s
		if !ours || (kind != KindRule && kind != KindIsolation) {
			continue
		}
		h.Table, h.Cookie = s.Table, s.Cookie
		a, known := c.Attribute(h)
		if !known || a.Action == policyv1.Action_ACTION_PASS {
			continue
		}
		denied = a.Action == policyv1.Action_ACTION_DROP || a.Action == policyv1.Action_ACTION_REJECT
		out = append(out, &policyv1.ProbeDecision{Direction: a.Direction, Action: a.Action, Table: a.Table, TableNumber: uint32(s.Table), Policies: a.Policies, Rule: a.Rule,
			Isolation: a.Isolation, Meaning: kindNames[kind], Cookie: s.Cookie})
	}
	if passed || denied {
		return out
	}
	return append(out, &policyv1.ProbeDecision{Direction: direction(last.Table), Action: policyv1.Action_ACTION_DROP, Table: TableName(last.Table), TableNumber: uint32(last.Table),
		Meaning: c.Describe(openflow.Flow{Table: last.Table, Cookie: last.Cookie}).GetKind(), Cookie: last.Cookie})
}

// PortOf is the open port by which an address is reached; zero where there is none.
func (c *Compiler) PortOf(a netip.Addr) uint32 {
	for ofport, ep := range c.ports {
		for _, ip := range ep.ips {
			if ip == a {
				return ofport
			}
		}
	}
	return 0
}
