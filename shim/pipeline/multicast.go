package pipeline

import (
	"math"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/igmp"
)

// What a Pod sends to a multicast group is judged like what it sends anywhere, then
// goes to those of the node's Pods that joined the group, and to nobody else. Each
// copy is judged by the ingress rules of its receiver. What has no member is dropped.
//
//	Conntrack    IGMP, from a Pod          to the controller, and nowhere else
//	Forwarding   a group that has members  a group of the switch: register 1=port, resubmit(Multicast), for each
//	Multicast    back to the sender        dropped: its own stack has it
//	             otherwise                 AntreaPolicyIngressRule and on
//	Commit       a group                   Output
//
// Whoever reads the messages of IGMP asks JudgeIGMP, and tells SetMembers. No
// connection is marked as allowed: nothing answers a group from the group's address,
// so that every packet is judged.

// MulticastController is the id of the connection that IGMP goes to.
const MulticastController = 7

var groupAddresses = netip.MustParsePrefix("224.0.0.0/4")

// casting is who is a member of what, and which rules are about that.
type casting struct {
	policies map[*policy]struct{} // That have rules for IGMP.
	members  []igmp.Member        // As they were told, in order.
	in       map[netip.Addr][]uint32
	pairs    map[netip.Addr][]openflow.FlowKey // The flows of a group, which has a group of the switch by the same number.
}

func newCasting() casting {
	return casting{policies: make(map[*policy]struct{}), in: make(map[netip.Addr][]uint32), pairs: make(map[netip.Addr][]openflow.FlowKey)}
}

// SetMembers is who is a member of which groups, in order, for the next Update. It
// says whether any is another than before.
func (c *Compiler) SetMembers(list []igmp.Member) bool {
	if slices.Equal(list, c.casting.members) {
		return false
	}
	c.casting.members = slices.Clone(list)
	return true
}

// multicastFlows are there for every node.
func (c *Compiler) multicastFlows(put func(table uint8, priority uint16, acts openflow.Actions, match ...openflow.Field)) {
	put(TableConntrack, prioTop, actions(openflow.Controller{ControllerID: MulticastController, MaxLen: wholePacket}),
		openflow.Reg(regSource, sourcePod, maskSource), openflow.IPDst(groupAddresses), openflow.IPProto(igmp.Protocol))
	put(TableMulticast, prioMiss, actions(openflow.SetEthSrc(c.cfg.LocalMAC), openflow.Resubmit(TableAntreaPolicyIngressRule)))
	put(TableConntrackCommit, prioTop, actions(openflow.GotoTable(TableOutput)), openflow.IPDst(groupAddresses))
}

// cast brings the flows and groups up to date that forward to members. One whose
// port is not open, or another's, is none.
func (c *Compiler) cast() {
	m := &c.casting
	if len(m.members) == 0 && len(m.in) == 0 {
		return
	}
	now := make(map[netip.Addr][]uint32)
	if c.sharing == nil {
		for _, member := range m.members {
			if ep := c.ports[member.Port.Number]; ep != nil && ep.port.ID == member.Port.ID && igmp.Forwarded(member.Group) {
				now[member.Group] = append(now[member.Group], member.Port.Number)
			}
		}
	}
	for group := range m.in {
		if now[group] == nil {
			c.setGroupMembers(group, nil)
		}
	}
	for group, ports := range now {
		if !slices.Equal(m.in[group], ports) {
			c.setGroupMembers(group, ports)
		}
	}
	m.in = now
}

// setGroupMembers has what is sent to a group forwarded to ports, in order, and to
// no others.
func (c *Compiler) setGroupMembers(group netip.Addr, ports []uint32) {
	addr := group.As4()
	id := be32(addr[:])
	c.regrouped[id] = struct{}{}
	for _, key := range c.casting.pairs[group] {
		c.flows.unset("multicast", key)
	}
	delete(c.casting.pairs, group)
	delete(c.balancers, id)
	if len(ports) == 0 {
		return
	}
	put := func(table uint8, priority uint16, acts openflow.Actions, match ...openflow.Field) {
		f := openflow.Flow{Table: table, Priority: priority, Match: openflow.NewMatch(match...), Cookie: cookie(KindMulticast, id), Actions: acts}
		c.flows.set("multicast", f)
		c.casting.pairs[group] = append(c.casting.pairs[group], f.Key())
	}
	mac := [6]byte{1, 0, 0x5e, addr[1] & 0x7f, addr[2], addr[3]} // RFC 1112, section 6.4.
	put(TableForwarding, prioTop+1, actions(openflow.SetEthDst(mac), openflow.ToGroup(id)), openflow.Reg(regSource, sourcePod, maskSource), openflow.IPDst(host(group)))
	g := openflow.Group{ID: id, Type: openflow.GroupAll}
	for _, port := range ports {
		put(TableMulticast, prioNormal, openflow.Drop(), openflow.InPort(port), openflow.IPDst(host(group)), openflow.Reg(regOutput, port, math.MaxUint32))
		g.Buckets = append(g.Buckets, openflow.Bucket{Actions: actions(openflow.SetReg(regOutput, port, math.MaxUint32), openflow.Resubmit(TableMulticast))})
	}
	c.balancers[id] = g
}

// CastPort is the open port of a number, of a Pod that has an IPv4 address.
func (c *Compiler) CastPort(ofport uint32) (igmp.Port, bool) {
	ep := c.ports[ofport]
	if ep == nil || !ep.families[0] {
		return igmp.Port{}, false
	}
	return igmp.Port{Number: ofport, ID: ep.port.ID}, true
}

// CastPorts are the open ports of Pods that have an IPv4 address.
func (c *Compiler) CastPorts() (out []igmp.Port) {
	for ofport := range c.ports {
		if p, ok := c.CastPort(ofport); ok {
			out = append(out, p)
		}
	}
	return out
}

// Ask are the actions that bring a query to a Pod's port.
func Ask(port uint32) openflow.Actions { return actions(openflow.OutputPort(port)) }

// Forwards says whether a flow forwards to members of a group.
func Forwards(f openflow.Flow) bool {
	kind, _, ours := ParseCookie(f.Cookie)
	return ours && kind == KindMulticast
}
