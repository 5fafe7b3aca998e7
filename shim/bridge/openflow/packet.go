package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// PacketIn is a packet that a flow sent to a controller.
type PacketIn struct {
	Packet   []byte // the frame, or its beginning
	FullLen  uint32 // length of the whole frame
	Table    uint8  // where the flow stands
	Cookie   uint64 // of the flow
	Reason   uint8  // one of Reason…
	UserData []byte // of the Controller action
	Metadata Metadata
	// Paused tells that the packet waits for AppendResume.
	Paused bool
	raw    []byte // the properties, for the resume
}

// Metadata are the fields that came with a packet-in: its port, registers and
// connection.
type Metadata struct {
	oxm  string // As it came. Each entry is whole.
	regs [16]uint32
	has  uint16 // Which of regs came.
}

// Field is the value of one field; fields that are zero are not sent. Few are
// looked at, of packet-ins that may be many: they are looked for as they came.
func (m Metadata) Field(id FieldID) (Value, bool) {
	if n := int(id) - int(FieldReg0); n >= 0 && n < len(m.regs) {
		return Uint(uint64(m.regs[n])), m.has&(1<<n) != 0
	}
	high, low, number := byte(fields[id].class>>8), byte(fields[id].class), fields[id].number<<1
	for rest := m.oxm; len(rest) >= 4; rest = rest[4+int(rest[3]):] {
		if rest[0] != high || rest[1] != low || rest[2]&^1 != number {
			continue
		}
		e, _, err := cutOXM(rest)
		if err != nil {
			return Value{}, false
		}
		f, ok := e.field()
		return f.Value.And(f.Mask), ok && !f.Mask.IsZero()
	}
	return Value{}, false
}

// read takes what came, and of it the registers, in whatever width they came.
func (m *Metadata) read(oxm string) error {
	m.oxm = oxm
	first := fields[FieldXXReg(0)]
	for rest := oxm; rest != ""; {
		e, tail, err := cutOXM(rest)
		if err != nil {
			return err
		}
		rest = tail
		values, masks := e.body, ""
		if e.hasMask { // Such as a pair of registers, of which one is zero.
			values, masks = e.body[:len(e.body)/2], e.body[len(e.body)/2:]
		}
		switch n := int(e.number); {
		case e.class == fields[FieldReg0].class && n < len(m.regs) && len(values) == 4:
			m.set(n, values, masks)
		case e.class == classPacketReg && n < 8 && len(values) == 8:
			m.set(2*n, values, masks)
		case e.class == first.class && e.number >= first.number && n < int(first.number)+4 && len(values) == 16:
			m.set(4*(n-int(first.number)), values, masks)
		}
	}
	return nil
}

// set sets registers from the nth on; no masks: all of their bits.
func (m *Metadata) set(n int, values, masks string) {
	for ; values != ""; values = values[4:] {
		mask := ^uint32(0)
		if masks != "" {
			mask, masks = be32(masks), masks[4:]
		}
		if mask != 0 {
			m.regs[n] |= be32(values) & mask
			m.has |= 1 << n
		}
		n++
	}
}

// InPort is the port by which the packet came in.
func (m Metadata) InPort() uint32 { return uint32(m.number(FieldInPort)) }

// Reg is register n.
func (m Metadata) Reg(n int) uint32 { return m.regs[n] }

// CtState is the state of the packet's connection: a sum of Ct….
func (m Metadata) CtState() uint32 { return uint32(m.number(FieldCTState)) }

// CtMark is the mark of the packet's connection.
func (m Metadata) CtMark() uint32 { return uint32(m.number(FieldCTMark)) }

// CtLabel is the label of the packet's connection.
func (m Metadata) CtLabel() Value {
	v, _ := m.Field(FieldCTLabel)
	return v
}

// CtTuple are the addresses and ports of the connection's first packet, before
// translation; invalid addresses where the packet was not tracked.
func (m Metadata) CtTuple() (src, dst netip.AddrPort) {
	for _, v4 := range []bool{true, false} {
		sID, dID := FieldCTIPv6Src, FieldCTIPv6Dst
		if v4 {
			sID, dID = FieldCTIPv4Src, FieldCTIPv4Dst
		}
		s, ok1 := m.Field(sID)
		d, ok2 := m.Field(dID)
		if !ok1 && !ok2 {
			continue
		}
		sa, da := s.IPv6(), d.IPv6()
		if v4 {
			sa, da = s.IPv4(), d.IPv4()
		}
		sp, dp := uint16(m.number(FieldCTTPSrc)), uint16(m.number(FieldCTTPDst))
		return netip.AddrPortFrom(sa, sp), netip.AddrPortFrom(da, dp)
	}
	return netip.AddrPort{}, netip.AddrPort{}
}

func (m Metadata) number(id FieldID) uint64 {
	v, _ := m.Field(id)
	return v.Uint64()
}

// NewMetadata makes metadata of fields; fakes use it.
func NewMetadata(list ...Field) Metadata {
	var b matchBuilder
	for _, f := range list {
		_ = b.add(f)
	}
	var m Metadata
	_ = m.read(b.match().oxm) // It is whole.
	return m
}

// Properties of NXT_PACKET_IN2.
const (
	pinPacket       = 0
	pinFullLen      = 1
	pinTable        = 3
	pinCookie       = 4
	pinReason       = 5
	pinMetadata     = 6
	pinUserData     = 7
	pinContinuation = 8
)

// IsPacketIn tells whether a message is one that DecodePacketIn reads.
func IsPacketIn(m Message) bool {
	return m.Type == TypeExperimenter && len(m.Body) >= 8 &&
		binary.BigEndian.Uint32(m.Body) == niciraVendor && binary.BigEndian.Uint32(m.Body[4:]) == nxPacketIn2
}

// DecodePacketIn reads a packet-in. It keeps nothing of body.
func DecodePacketIn(body []byte) (PacketIn, error) {
	if len(body) < 8 || binary.BigEndian.Uint32(body) != niciraVendor || binary.BigEndian.Uint32(body[4:]) != nxPacketIn2 {
		return PacketIn{}, errors.New("packet-in: not of the form NXT_PACKET_IN2")
	}
	var p PacketIn
	all := string(body[8:])
	for s := all; s != ""; {
		typ, content, tail, err := cutProp(s)
		if err != nil {
			return PacketIn{}, fmt.Errorf("packet-in: %w", err)
		}
		if err := p.take(typ, content); err != nil {
			return PacketIn{}, fmt.Errorf("packet-in: property %d: %w", typ, err)
		}
		s = tail
	}
	if p.FullLen == 0 {
		p.FullLen = uint32(len(p.Packet))
	}
	if p.Paused {
		p.raw = []byte(all)
	}
	return p, nil
}

func (p *PacketIn) take(typ uint16, content string) error {
	short := func(n int) error {
		if len(content) < n {
			return fmt.Errorf("%d bytes where %d are needed", len(content), n)
		}
		return nil
	}
	switch typ {
	case pinPacket:
		p.Packet = []byte(content)
	case pinFullLen:
		if err := short(4); err != nil {
			return err
		}
		p.FullLen = be32(content)
	case pinTable:
		if err := short(1); err != nil {
			return err
		}
		p.Table = content[0]
	case pinCookie:
		if err := short(12); err != nil {
			return err
		}
		p.Cookie = be64(content[4:])
	case pinReason:
		if err := short(1); err != nil {
			return err
		}
		p.Reason = content[0]
	case pinMetadata:
		return p.Metadata.read(content)
	case pinUserData:
		p.UserData = []byte(content)
	case pinContinuation:
		p.Paused = true
	}
	return nil
}

// AppendResume writes the message that lets a paused packet go on where it
// stopped, as it is.
func AppendResume(b []byte, xid uint32, p *PacketIn) []byte {
	start := len(b)
	b = appendNiciraHeader(b, xid, nxResume)
	b = append(b, p.raw...)
	return finish(b, start)
}

// PacketOut is a packet that a controller sends.
type PacketOut struct {
	InPort uint32 // where it pretends to come from; 0: PortController
	// Actions are what happens to it; PortTable sends it through the tables.
	Actions Actions
	Packet  []byte
}

// PortTable is the port that hands a PacketOut to table 0.
const PortTable uint32 = 0xfffffff9

// AppendPacketOut writes the message that sends a packet.
func AppendPacketOut(b []byte, xid uint32, p *PacketOut) []byte {
	port := p.InPort
	if port == 0 {
		port = PortController
	}
	start := len(b)
	b = appendHeader(b, typePacketOut, xid)
	b = append(b, 0xff, 0xff, 0xff, 0xff)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.Actions.steps)))
	b = append(b, 0, 0)
	b = appendMatch(b, NewMatch(InPort(port)))
	b = append(b, p.Actions.steps...)
	b = append(b, p.Packet...)
	return finish(b, start)
}

// ConntrackFilter chooses connections to forget: those whose original source
// and destination, and the reply's, are as given; invalid addresses choose all.
type ConntrackFilter struct {
	Zone               uint16
	AnyZone            bool // Zone counts for nothing.
	OrigSrc, OrigDst   netip.Addr
	ReplySrc, ReplyDst netip.Addr
	Proto              uint8 // 0: any
	// Ports of the original direction, an address of it and Proto being given,
	// where WithPorts says so. Of ICMP SrcPort is the identifier of echo requests;
	// SCTP has none here. Of TCP and UDP 0 is any.
	WithPorts        bool
	SrcPort, DstPort uint16
}

// AppendConntrackFlush writes the message that forgets connections.
func AppendConntrackFlush(b []byte, xid uint32, f ConntrackFilter) []byte {
	start := len(b)
	b = appendNiciraHeader(b, xid, nxCTFlush)
	b = append(b, f.Proto, 0, 0, 0, 0, 0, 0, 0)
	tuple := func(typ uint16, src, dst netip.Addr) {
		if !src.IsValid() && !dst.IsValid() {
			return
		}
		at := len(b)
		b = binary.BigEndian.AppendUint16(b, typ)
		b = append(b, 0, 0, 0, 0, 0, 0)
		for i, a := range []netip.Addr{src, dst} {
			if a.IsValid() {
				v := a.As16()
				b = appendProp(b, uint16(i), v[:])
			}
		}
		if typ == 0 && f.WithPorts {
			switch f.Proto {
			case ProtoICMP, ProtoICMPv6:
				b = appendProp(b, 4, []byte{byte(f.SrcPort >> 8), byte(f.SrcPort), 0, 0})
				echo := byte(8)
				if f.Proto == ProtoICMPv6 {
					echo = 128
				}
				b = appendProp(b, 5, []byte{echo, 0, 0, 0})
				b = appendProp(b, 6, []byte{0, 0, 0, 0})
			case ProtoTCP, ProtoUDP:
				b = appendProp(b, 2, []byte{byte(f.SrcPort >> 8), byte(f.SrcPort), 0, 0})
				b = appendProp(b, 3, []byte{byte(f.DstPort >> 8), byte(f.DstPort), 0, 0})
			}
		}
		binary.BigEndian.PutUint16(b[at+2:], uint16(len(b)-at))
	}
	tuple(0, f.OrigSrc, f.OrigDst)
	tuple(1, f.ReplySrc, f.ReplyDst)
	if !f.AnyZone {
		b = appendProp(b, 2, []byte{byte(f.Zone >> 8), byte(f.Zone), 0, 0})
	}
	return finish(b, start)
}
