package packetlog

import (
	"encoding/binary"
	"net/netip"
)

// Forged is what a record tells of a packet that is not from who it says,
// besides what it tells of any.
type Forged struct {
	SourceMAC [6]byte // Of the frame.
	EtherType uint16  // Of a frame that is not IP; zero: IP. Of ARP, Src and Dst of the Packet are sender and target.
	// ClaimedMAC is what ARP (the sender's) or neighbour discovery (the source's
	// or target's) says of a hardware address; zero where it says nothing.
	ClaimedMAC [6]byte
	Target     netip.Addr // Of neighbour discovery. Not valid: it is none.
}

const (
	etherIPv4, etherARP, etherIPv6, etherVLAN = 0x0800, 0x0806, 0x86dd, 0x8100

	ndSolicit, ndAdvert, ndRedirect      = 135, 136, 137
	ndSourceLinkLayer, ndTargetLinkLayer = 1, 2
)

// ParseForged reads what there is to read of a frame, of whatever protocol: only
// one without an Ethernet header is an error.
func ParseForged(frame []byte) (Packet, error) {
	if len(frame) < 14 {
		return Packet{}, errShort
	}
	p, err := Parse(frame)
	if p.Forged.SourceMAC = [6]byte(frame[6:12]); err == nil {
		p.neighbour(frame)
		return p, nil
	}
	etherType, rest := cutEtherType(frame)
	p.Forged.EtherType = etherType
	if etherType == etherARP && len(rest) >= 28 && binary.BigEndian.Uint16(rest[2:]) == etherIPv4 && rest[4] == 6 && rest[5] == 4 {
		p.Forged.ClaimedMAC = [6]byte(rest[8:14])
		p.Src, p.Dst = netip.AddrFrom4([4]byte(rest[14:18])), netip.AddrFrom4([4]byte(rest[24:28]))
	}
	return p, nil
}

// cutEtherType splits the header off a frame of at least its length. Of a VLAN
// tag that is cut off the type is the tag's.
func cutEtherType(frame []byte) (etherType uint16, rest []byte) {
	etherType, rest = binary.BigEndian.Uint16(frame[12:]), frame[14:]
	if etherType == etherVLAN && len(rest) >= 4 {
		return binary.BigEndian.Uint16(rest[2:]), rest[4:]
	}
	return etherType, rest
}

// neighbour reads target and link-layer option of neighbour discovery without
// extension headers, which is how it is sent.
func (p *Packet) neighbour(frame []byte) {
	const ip, fixed = 40, 24
	if p.Proto != protoICMPv6 || !p.HasICMP || p.ICMPType < ndSolicit || p.ICMPType > ndRedirect {
		return
	}
	_, b := cutEtherType(frame)
	if len(b) < ip+fixed || b[6] != protoICMPv6 {
		return
	}
	p.Forged.Target = netip.AddrFrom16([16]byte(b[ip+8 : ip+fixed]))
	want := byte(ndTargetLinkLayer)
	if p.ICMPType == ndSolicit {
		want = ndSourceLinkLayer
	}
	b = b[ip+fixed:]
	if p.ICMPType == ndRedirect { // Its destination comes between.
		b = b[min(16, len(b)):]
	}
	for len(b) >= 8 && b[1] != 0 {
		if b[0] == want {
			p.Forged.ClaimedMAC = [6]byte(b[2:8])
			return
		}
		b = b[min(int(b[1])*8, len(b)):]
	}
}
