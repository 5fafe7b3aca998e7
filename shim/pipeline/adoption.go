package pipeline

import (
	"net/netip"
	"slices"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// While a bridge is adopted, the flows of whoever had it serve the ports that
// are not under our tables yet. Table 0 divides the packets, ahead of every flow
// of theirs; what it does not name is theirs as before:
//
//	from an adopted port                   as ever
//	to the MAC of an adopted Pod           judged like what the host forwards
//	to a group, and not of ND              dropped: no bridge would spare adopted ports
//	handed over, to an adopted Pod's MAC   dropped: it is not for that MAC's address
//
// What an adopted Pod sends to one that is not, and ARP and ND for none of ours,
// is handed over to their flows once it is judged: it is looked up in table 0
// again, with a mark that makes our flows there step aside.

// Sharing is what a compiler must know of the ports that are not adopted.
type Sharing struct {
	Others [][6]byte // MACs of their Pods, as far as they are known.
}

// Priorities of the dividing flows in table 0.
const (
	prioSharedTop   = 65535 - iota // Adopted ports, and what is handed over wrongly.
	prioSharedOwn                  // The host itself, to an adopted Pod.
	prioSharedTo                   // Others, to an adopted Pod.
	prioSharedHost                 // Groups, between the host and the uplink.
	prioSharedGroup                // The lowest.
)

var (
	groupBit   = [6]byte{1}
	fromShared = openflow.Reg(0, 0, bitHanded) // Not handed over.
	handOver   = []openflow.Action{openflow.SetReg(0, bitHanded, bitHanded), openflow.Resubmit(TableClassifier)}
)

// Shareable says whether others' flows and ours can be on one bridge: theirs are
// in none of our tables but the first, and let ours come first there.
func Shareable(theirs openflow.Flow) bool {
	if theirs.Table == TableClassifier {
		return theirs.Priority < prioSharedGroup
	}
	return TableName(theirs.Table) == ""
}

// DividesPort says whether a flow of ours brings a port under our tables, and
// which.
func DividesPort(f openflow.Flow) (ofport uint32, ok bool) {
	kind, id, ours := ParseCookie(f.Cookie)
	return id, ours && kind == KindPort && f.Table == TableClassifier && f.Match == classify(id, f.Priority == prioSharedTop)
}

// DoubtsPort says whether a flow of ours keeps a port's packets from skipping
// the rules: see Port.Doubt.
func DoubtsPort(f openflow.Flow) (ofport uint32, ok bool) {
	kind, id, ours := ParseCookie(f.Cookie)
	return id, ours && kind == KindPort && f.Table == TableConntrackState
}

// Closes says whether a flow is the one that drops what is nobody's: then
// nothing is shared.
func Closes(f openflow.Flow) bool {
	return f.Table == TableClassifier && f.Priority == prioMiss && f.Match == openflow.NewMatch()
}

func classify(ofport uint32, shared bool) openflow.Match {
	if shared {
		return openflow.NewMatch(openflow.InPort(ofport), fromShared)
	}
	return openflow.NewMatch(openflow.InPort(ofport))
}

// Share begins a sharing, or changes it, or with nil ends it. The next Update
// brings what that changes.
func (c *Compiler) Share(s *Sharing) {
	switched := (s == nil) != (c.sharing == nil)
	if s != nil {
		s = &Sharing{Others: slices.Clone(s.Others)}
	}
	c.sharing = s
	c.hostFlows()
	if !switched {
		return
	}
	for _, ep := range c.endpoints {
		for _, key := range ep.flows {
			c.flows.unset(ep.owner, key)
		}
		ep.flows = nil
		c.portFlows(ep)
	}
}

// LetEstablished lets TCP segments go on that conntrack takes for the beginning
// of a connection and that are not: their connections are older than our flows.
func (c *Compiler) LetEstablished(on bool) {
	for _, f := range [][]openflow.Field{{openflow.IPv4()}, {openflow.IPv6()}} {
		flow := openflow.Flow{Table: TableConntrackState, Priority: prioHigh, Cookie: cookie(KindStatic, 0),
			Match: openflow.NewMatch(append(f, openflow.IPProto(openflow.ProtoTCP), openflow.TCPFlags(0, tcpSYN),
				openflow.CtState(openflow.CtNew|openflow.CtTrk, openflow.CtNew|openflow.CtTrk))...),
			Actions: actions(openflow.CT{Commit: true, Zone: zone, Exec: allowed(markAllowed)},
				openflow.SetReg(0, bitBypass, bitBypass), openflow.GotoTable(TableEgressMetric))}
		if on {
			c.flows.set("", flow)
		} else {
			c.flows.unset("", flow.Key())
		}
	}
}

const tcpSYN = 2

// Fits says whether a port could be opened: the state knows its Pod, and the
// Pod has no other.
func (c *Compiler) Fits(p Port) bool {
	ep := c.endpoints[c.endpointKey(&p)]
	return ep != nil && ep.port == nil && ep.unfit(&p) == ""
}

// EndpointKey is the key of the endpoint that a port belongs to; empty where
// there is none.
func (c *Compiler) EndpointKey(p Port) string { return c.endpointKey(&p) }

// Addresses are those that the state has for a port's Pod.
func (c *Compiler) Addresses(p Port) []netip.Addr {
	if ep := c.endpoints[c.endpointKey(&p)]; ep != nil {
		return ep.ips
	}
	return nil
}

// hostFlows are those static flows that are others while a bridge is shared.
func (c *Compiler) hostFlows() {
	for _, key := range c.divided {
		c.flows.unset("", key)
	}
	c.divided = nil
	put := func(table uint8, priority uint16, acts openflow.Actions, match ...openflow.Field) {
		f := openflow.Flow{Table: table, Priority: priority, Match: openflow.NewMatch(match...), Cookie: cookie(KindStatic, 0), Actions: acts}
		c.flows.set("", f)
		c.divided = append(c.divided, f.Key())
	}
	local, uplink := openflow.InPort(openflow.PortLocal), openflow.InPort(c.cfg.Uplink)
	toLocal, toUplink := actions(openflow.OutputPort(openflow.PortLocal)), actions(openflow.OutputPort(c.cfg.Uplink))
	fromPod, fromHost := openflow.Reg(regSource, sourcePod, maskSource), openflow.Reg(regSource, sourceHost, maskSource)

	resolve := toLocal
	if c.sharing == nil {
		if c.cfg.HostMAC != [6]byte{} {
			put(TableClassifier, prioHigh, fromOwnHost, local, openflow.EthSrc(c.cfg.HostMAC))
		}
		put(TableClassifier, prioNormal, fromOthers, local)
		put(TableClassifier, prioMiss, openflow.Drop())
		if c.cfg.Uplink != 0 { // The node's own link: it must not cut itself off.
			put(TableClassifier, prioTop, toLocal, uplink)
			put(TableResolution, prioDefault+4, toUplink, fromHost) // Ahead of it is what is for Pods.
		}
	} else {
		resolve = actions(handOver...)
		for _, family := range []openflow.Field{openflow.IPv4(), openflow.IPv6()} {
			group := []openflow.Field{fromShared, family, openflow.EthDstMasked(groupBit, groupBit)}
			put(TableClassifier, prioSharedGroup, openflow.Drop(), group...)
			if c.cfg.Uplink != 0 {
				put(TableClassifier, prioSharedHost, toLocal, append(slices.Clone(group), uplink)...)
				put(TableClassifier, prioSharedHost, toUplink, append(slices.Clone(group), local)...)
			}
		}
		for t := uint8(openflow.NDSolicit - 2); t <= openflow.NDAdvert; t++ { // Routers' messages, and neighbours'.
			put(TableClassifier, prioSharedTo, actions(handOver...), fromShared, openflow.ICMPv6Type(t), openflow.EthDstMasked(groupBit, groupBit))
		}
		for _, mac := range c.sharing.Others {
			put(TableForwarding, prioDefault+1, actions(openflow.SetReg(regOutput, handedOutput, 0xffffffff), openflow.GotoTable(TableIngressMetric)),
				fromPod, openflow.EthDst(mac))
		}
		put(TableOutput, prioNormal, actions(handOver...), openflow.Reg(regOutput, handedOutput, 0xffffffff))
	}
	// ARP and ND that are for no open Pod are for the host.
	put(TableResolution, prioDefault, resolve, openflow.ARP(), fromPod)
	for _, t := range []uint8{openflow.NDSolicit, openflow.NDAdvert} {
		put(TableResolution, prioDefault+2, resolve, openflow.ICMPv6Type(t), fromPod)
	}
}

var (
	fromOwnHost = actions(openflow.SetReg(regSource, sourceHost|bitOwnHost, maskSource|bitOwnHost), openflow.GotoTable(TableResolution))
	fromOthers  = actions(openflow.SetReg(regSource, sourceHost, maskSource), openflow.GotoTable(TableResolution))
)

// sharedPortFlows divide table 0 for an open port.
func (c *Compiler) sharedPortFlows(p *Port, put func(table uint8, priority uint16, acts openflow.Actions, match ...openflow.Field)) {
	to := openflow.EthDst(p.MAC)
	put(TableClassifier, prioSharedTo, fromOthers, fromShared, to)
	if c.cfg.HostMAC != [6]byte{} {
		put(TableClassifier, prioSharedOwn, fromOwnHost, fromShared, to, openflow.InPort(openflow.PortLocal), openflow.EthSrc(c.cfg.HostMAC))
	}
	put(TableClassifier, prioSharedTop, openflow.Drop(), openflow.Reg(0, bitHanded, bitHanded), to)
}
