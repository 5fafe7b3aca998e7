package packetlog

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Packet is what a record needs of a packet's headers.
type Packet struct {
	Src, Dst netip.Addr
	Proto    uint8  // IANA number; of IPv6, behind the extension headers.
	Length   uint32 // Of the IP packet, from its header.
	// Ports are there where HasPorts says so: not in later fragments, and not
	// where the copy ends before them.
	HasPorts         bool
	SrcPort, DstPort uint16
	TCPFlags         uint8
	HasICMP          bool
	ICMPType         uint8
	ICMPCode         uint8
	Forged           Forged // Zero where ParseForged did not read it.
}

var errNotIP = errors.New("not an IP packet")
var errShort = errors.New("packet is cut short")

// IP protocols.
const (
	protoICMP, protoTCP, protoUDP, protoICMPv6, protoSCTP = 1, 6, 17, 58, 132
	extHopByHop, extRouting, extFragment, extDestination  = 0, 43, 44, 60
)

// Parse reads the headers of an Ethernet frame, of which the end may be
// missing.
func Parse(frame []byte) (Packet, error) {
	if len(frame) < 14 {
		return Packet{}, errShort
	}
	etherType, rest := cutEtherType(frame)
	switch etherType {
	case etherIPv4:
		return parseIPv4(rest)
	case etherIPv6:
		return parseIPv6(rest)
	}
	if etherType == etherVLAN {
		return Packet{}, errShort
	}
	return Packet{}, errNotIP
}

// ParseIP reads the headers of an IP packet, of which the end may be missing.
func ParseIP(packet []byte) (Packet, error) {
	if len(packet) == 0 {
		return Packet{}, errShort
	}
	if packet[0]>>4 == 6 {
		return parseIPv6(packet)
	}
	return parseIPv4(packet)
}

func parseIPv4(b []byte) (Packet, error) {
	if len(b) < 20 {
		return Packet{}, errShort
	}
	header := int(b[0]&0xf) * 4
	if b[0]>>4 != 4 || header < 20 {
		return Packet{}, errNotIP
	}
	p := Packet{Src: netip.AddrFrom4([4]byte(b[12:16])), Dst: netip.AddrFrom4([4]byte(b[16:20])), Proto: b[9],
		Length: uint32(binary.BigEndian.Uint16(b[2:]))}
	if len(b) < header || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return p, nil
	}
	p.transport(b[header:])
	return p, nil
}

func parseIPv6(b []byte) (Packet, error) {
	if len(b) < 40 {
		return Packet{}, errShort
	}
	if b[0]>>4 != 6 {
		return Packet{}, errNotIP
	}
	p := Packet{Src: netip.AddrFrom16([16]byte(b[8:24])), Dst: netip.AddrFrom16([16]byte(b[24:40])), Proto: b[6],
		Length: 40 + uint32(binary.BigEndian.Uint16(b[4:]))}
	b = b[40:]
	for len(b) >= 8 {
		size := 0
		switch p.Proto {
		case extHopByHop, extRouting, extDestination:
			size = 8 + int(b[1])*8
		case extFragment:
			if binary.BigEndian.Uint16(b[2:])&0xfff8 != 0 {
				p.Proto = b[0]
				return p, nil
			}
			size = 8
		default:
			p.transport(b)
			return p, nil
		}
		if len(b) < size {
			return p, nil
		}
		p.Proto, b = b[0], b[size:]
	}
	return p, nil
}

func (p *Packet) transport(b []byte) {
	switch p.Proto {
	case protoTCP, protoUDP, protoSCTP:
		if len(b) < 4 {
			return
		}
		p.HasPorts, p.SrcPort, p.DstPort = true, binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		if p.Proto == protoTCP && len(b) >= 14 {
			p.TCPFlags = b[13]
		}
	case protoICMP, protoICMPv6:
		if len(b) >= 2 {
			p.HasICMP, p.ICMPType, p.ICMPCode = true, b[0], b[1]
		}
	}
}
