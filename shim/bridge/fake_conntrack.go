package bridge

import (
	"net/netip"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// conntrack is a connection tracker as the userspace datapath's: what is a new,
// established, related or invalid packet is judged as there, sequence numbers
// and timeouts aside.
type conntrack struct {
	entries map[tuple]entry
}

// tuple is what tells connections apart. Protocols that are neither TCP, UDP nor
// ICMP are told apart by their addresses only, as in Open vSwitch.
type tuple struct {
	zone         uint16
	proto        uint8
	src, dst     netip.Addr
	sport, dport uint16
}

func (t tuple) reversed() tuple {
	t.src, t.dst, t.sport, t.dport = t.dst, t.src, t.dport, t.sport
	return t
}

type entry struct {
	conn  *connection
	reply bool // the tuple is that of the reply
}

type connection struct {
	orig, reply tuple // as packets of each direction arrive
	replied     bool
	nat         openflow.NATKind
	mark        openflow.Value
	label       openflow.Value
}

func newConntrack() conntrack { return conntrack{map[tuple]entry{}} }

func (c *conntrack) flush(gone func(*connection) bool) {
	for key, e := range c.entries {
		if gone(e.conn) {
			delete(c.entries, key)
		}
	}
}

// tracking is what the tracker noted on a packet; it outlives recirculation,
// unlike the ct fields that flows match.
type tracking struct {
	state uint32
	zone  uint16
}

// verdict is what the tracker found.
type verdict struct {
	state       uint32
	conn        *connection // nil: none is committed
	orig        tuple       // of the connection, or of the packet that would begin one
	mark, label openflow.Value
}

// track sends a packet through the tracker, translating it in place.
func (c *conntrack) track(p *Packet, md *tracking, a *openflow.CT, zone uint16) verdict {
	if md.zone != zone {
		md.state = 0
	}
	md.zone = zone
	key, related, ok := p.tuple(zone)
	if !ok {
		md.state = openflow.CtInv | openflow.CtTrk
		return verdict{state: md.state}
	}
	translated := md.state & (openflow.CtSNAT | openflow.CtDNAT)
	e, found := c.lookup(key, translated != 0)
	if found && a.Force && e.reply {
		c.flush(func(o *connection) bool { return o == e.conn })
		found = false
	}
	md.state = translated
	v := verdict{orig: key}
	switch {
	case found:
		v.conn, v.orig = e.conn, e.conn.orig
		md.state |= e.conn.update(p, e.reply, related)
		if md.state&openflow.CtInv == 0 && a.NAT.Kind != openflow.NATNone && translated == 0 && e.conn.nat != openflow.NATNone {
			md.state |= p.translate(e.conn, e.reply, related)
		}
	case related || !p.mayBegin():
		md.state = openflow.CtInv
	default:
		md.state |= openflow.CtNew
		if a.Commit {
			v.conn = c.commit(key, &a.NAT)
			if v.conn.nat != openflow.NATNone {
				md.state |= p.translate(v.conn, false, false)
			}
		}
	}
	md.state |= openflow.CtTrk
	v.state = md.state
	if v.conn != nil {
		v.mark, v.label = v.conn.mark, v.conn.label
	}
	return v
}

// lookup finds the connection of a packet. One that was translated in this zone
// before no longer bears its own tuple, but the reverse of the reply's.
func (c *conntrack) lookup(key tuple, translated bool) (entry, bool) {
	if e, ok := c.entries[key]; ok {
		return e, true
	}
	if translated {
		if e, ok := c.entries[key.reversed()]; ok {
			e.reply = !e.reply
			return e, true
		}
	}
	return entry{}, false
}

// tuple is the packet's, or for an ICMP error that of a reply to the packet
// that it is about.
func (p *Packet) tuple(zone uint16) (key tuple, related, ok bool) {
	if !p.IPSrc.IsValid() || p.EthType != openflow.EtherIPv4 && p.EthType != openflow.EtherIPv6 {
		return tuple{}, false, false
	}
	if p.isICMPError() {
		if p.Inner == nil {
			return tuple{}, false, false
		}
		inner, _, ok := p.Inner.tuple(zone)
		return inner.reversed(), true, ok
	}
	key = tuple{zone: zone, proto: p.IPProto, src: p.IPSrc, dst: p.IPDst}
	switch p.IPProto {
	case openflow.ProtoTCP, openflow.ProtoUDP:
		key.sport, key.dport = p.SrcPort, p.DstPort
	case openflow.ProtoICMP, openflow.ProtoICMPv6:
		request, reply := p.echo()
		if !request && !reply {
			return tuple{}, false, false
		}
		key.sport, key.dport = p.ICMPID, p.ICMPID
	}
	return key, false, true
}

func (p *Packet) echo() (request, reply bool) {
	if p.IPProto == openflow.ProtoICMPv6 {
		return p.ICMPType == 128, p.ICMPType == 129
	}
	return p.ICMPType == 8, p.ICMPType == 0
}

// mayBegin tells whether the packet may be the first of a connection.
func (p *Packet) mayBegin() bool {
	switch p.IPProto {
	case openflow.ProtoTCP:
		return !p.badFlags() && p.TCPFlags&(TCPSyn|TCPAck) != TCPSyn|TCPAck
	case openflow.ProtoICMP, openflow.ProtoICMPv6:
		request, _ := p.echo()
		return request
	}
	return true
}

func (p *Packet) badFlags() bool {
	f := p.TCPFlags
	if f&TCPSyn != 0 && f&(TCPRst|TCPFin) != 0 || f&(TCPSyn|TCPAck|TCPRst) == 0 {
		return true
	}
	return f&TCPAck == 0 && f&(TCPFin|TCPPsh|TCPUrg) != 0
}

// update notes that a packet of the connection came and returns its state.
func (c *connection) update(p *Packet, reply, related bool) uint32 {
	var state uint32
	if reply {
		state |= openflow.CtRpl
	}
	if related {
		return state | openflow.CtRel
	}
	if p.IPProto == openflow.ProtoTCP {
		if p.badFlags() {
			return openflow.CtInv
		}
		// An ACK counts as established even if nobody ever answered.
		if p.TCPFlags&(TCPSyn|TCPAck) == TCPSyn && !c.replied && !reply {
			return openflow.CtNew
		}
		c.replied = c.replied || reply
		return state | openflow.CtEst
	}
	c.replied = c.replied || reply
	if !c.replied {
		return openflow.CtNew
	}
	return state | openflow.CtEst
}

// commit makes a connection of a packet's tuple.
func (c *conntrack) commit(key tuple, nat *openflow.NAT) *connection {
	conn := &connection{orig: key, reply: key.reversed()}
	switch nat.Kind {
	case openflow.NATSrc, openflow.NATDst:
		conn.nat = nat.Kind
		c.choose(conn, nat)
	}
	c.entries[conn.orig] = entry{conn, false}
	c.entries[conn.reply] = entry{conn, true}
	return conn
}

// choose takes the first translation of the range that no other connection has.
func (c *conntrack) choose(conn *connection, nat *openflow.NAT) {
	last := nat.MaxAddr
	if !last.IsValid() {
		last = nat.MinAddr
	}
	for addr := nat.MinAddr; addr.IsValid() && addr.Compare(last) <= 0; addr = addr.Next() {
		for port := uint32(nat.MinPort); port <= uint32(max(nat.MinPort, nat.MaxPort)); port++ {
			if nat.Kind == openflow.NATSrc {
				conn.reply.dst = addr
				if port != 0 {
					conn.reply.dport = uint16(port)
				}
			} else {
				conn.reply.src = addr
				if port != 0 {
					conn.reply.sport = uint16(port)
				}
			}
			if _, taken := c.entries[conn.reply]; !taken {
				return
			}
		}
	}
}

// translate rewrites the packet as its connection says.
func (p *Packet) translate(c *connection, reply, related bool) uint32 {
	to := c.reply.reversed() // how a packet of the original direction leaves
	if reply {
		to = c.orig.reversed()
	}
	src := (c.nat == openflow.NATSrc) != reply
	if related {
		p.translateRelated(c, reply)
	} else {
		if src {
			p.IPSrc = to.src
			p.SrcPort = portOf(p, to.sport, p.SrcPort)
		} else {
			p.IPDst = to.dst
			p.DstPort = portOf(p, to.dport, p.DstPort)
		}
	}
	if src {
		return openflow.CtSNAT
	}
	return openflow.CtDNAT
}

// portOf is a port after translation: of protocols whose ports are not tracked it
// is what it was.
func portOf(p *Packet, port, was uint16) uint16 {
	if p.IPProto == openflow.ProtoTCP || p.IPProto == openflow.ProtoUDP {
		return port
	}
	return was
}

// translateRelated rewrites an ICMP error and the packet that it is about.
func (p *Packet) translateRelated(c *connection, reply bool) {
	inner := *p.Inner
	to := c.reply
	if reply {
		to = c.orig
	}
	inner.IPSrc, inner.IPDst = to.src, to.dst
	inner.SrcPort, inner.DstPort = portOf(&inner, to.sport, inner.SrcPort), portOf(&inner, to.dport, inner.DstPort)
	p.Inner = &inner
	if (c.nat == openflow.NATSrc) != reply {
		p.IPSrc = to.dst
	} else {
		p.IPDst = to.src
	}
}
