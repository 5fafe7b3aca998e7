package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Packet is a packet as flows see it: the fields of its headers, without
// payload. Those that its kind does not have are zero.
type Packet struct {
	InPort         uint32
	EthSrc, EthDst [6]byte
	EthType        uint16
	IPSrc, IPDst   netip.Addr
	IPProto        uint8
	TTL            uint8
	SrcPort        uint16 // TCP, UDP, SCTP
	DstPort        uint16 // TCP, UDP, SCTP
	TCPFlags       uint16
	ICMPType       uint8 // for either family
	ICMPCode       uint8
	ICMPID         uint16 // of echo requests and replies
	ARPOp          uint16
	ARPSPA, ARPTPA netip.Addr
	ARPSHA, ARPTHA [6]byte
	NDTarget       netip.Addr
	NDSLL, NDTLL   [6]byte
	// Inner is the packet that an ICMP error is about: addresses, protocol and
	// ports.
	Inner *Packet
}

// TCP flags.
const (
	TCPFin = 0x01
	TCPSyn = 0x02
	TCPRst = 0x04
	TCPPsh = 0x08
	TCPAck = 0x10
	TCPUrg = 0x20
)

// Frame is the packet on the wire, with valid checksums.
func (p *Packet) Frame() []byte {
	b := make([]byte, 0, 128)
	b = append(b, p.EthDst[:]...)
	b = append(b, p.EthSrc[:]...)
	b = binary.BigEndian.AppendUint16(b, p.EthType)
	switch p.EthType {
	case openflow.EtherARP:
		b = append(b, 0, 1, 8, 0, 6, 4)
		b = binary.BigEndian.AppendUint16(b, p.ARPOp)
		b = append(b, p.ARPSHA[:]...)
		b = append(b, as4(p.ARPSPA)...)
		b = append(b, p.ARPTHA[:]...)
		b = append(b, as4(p.ARPTPA)...)
	case openflow.EtherIPv4, openflow.EtherIPv6:
		b = append(b, p.ip()...)
	}
	for len(b) < 60 {
		b = append(b, 0)
	}
	return b
}

func as4(a netip.Addr) []byte {
	if !a.Is4() {
		return make([]byte, 4)
	}
	v := a.As4()
	return v[:]
}

// ip is the packet from its IP header on.
func (p *Packet) ip() []byte {
	body := p.transport()
	ttl := p.TTL
	if ttl == 0 {
		ttl = 64
	}
	if p.IPSrc.Is4() {
		h := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, ttl, p.IPProto, 0, 0}
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
		h = append(h, as4(p.IPSrc)...)
		h = append(h, as4(p.IPDst)...)
		binary.BigEndian.PutUint16(h[10:], checksum(0, h))
		return append(h, body...)
	}
	if p.IPProto == openflow.ProtoICMPv6 && (p.ICMPType == openflow.NDSolicit || p.ICMPType == openflow.NDAdvert) {
		ttl = 255
	}
	h := []byte{0x60, 0, 0, 0, 0, 0, p.IPProto, ttl}
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	src, dst := p.IPSrc.As16(), p.IPDst.As16()
	h = append(append(h, src[:]...), dst[:]...)
	return append(h, body...)
}

// transport is the packet from the header above IP on.
func (p *Packet) transport() []byte {
	var b []byte
	sumAt := -1
	switch p.IPProto {
	case openflow.ProtoTCP:
		b = make([]byte, 20)
		b[12], sumAt = 5<<4|byte(p.TCPFlags>>8), 16
		b[13] = byte(p.TCPFlags)
		binary.BigEndian.PutUint16(b[14:], 0xffff)
	case openflow.ProtoUDP:
		b, sumAt = make([]byte, 8), 6
		binary.BigEndian.PutUint16(b[4:], 8)
	case openflow.ProtoSCTP: // An INIT chunk: tag, window, streams out and in, first TSN.
		b = append(make([]byte, 12), 1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1)
	case openflow.ProtoICMP, openflow.ProtoICMPv6:
		b, sumAt = p.icmp(), 2
	default:
		return make([]byte, 8)
	}
	if p.IPProto != openflow.ProtoICMP && p.IPProto != openflow.ProtoICMPv6 {
		binary.BigEndian.PutUint16(b, p.SrcPort)
		binary.BigEndian.PutUint16(b[2:], p.DstPort)
	}
	if p.IPProto == openflow.ProtoSCTP {
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	}
	if sumAt >= 0 {
		binary.BigEndian.PutUint16(b[sumAt:], checksum(p.pseudoSum(len(b)), b))
	}
	return b
}

func (p *Packet) icmp() []byte {
	b := []byte{p.ICMPType, p.ICMPCode, 0, 0, 0, 0, 0, 0}
	switch {
	case p.Inner != nil:
		return append(b, p.Inner.ip()...)
	case p.IPProto == openflow.ProtoICMPv6 && (p.ICMPType == openflow.NDSolicit || p.ICMPType == openflow.NDAdvert):
		target := p.NDTarget.As16()
		b = append(b, target[:]...)
		if p.NDSLL != [6]byte{} {
			b = append(append(b, 1, 1), p.NDSLL[:]...)
		}
		if p.NDTLL != [6]byte{} {
			b = append(append(b, 2, 1), p.NDTLL[:]...)
		}
	default:
		binary.BigEndian.PutUint16(b[4:], p.ICMPID)
	}
	return b
}

// pseudoSum is the part of the checksum that the IP header contributes; ICMP for
// IPv4 has none.
func (p *Packet) pseudoSum(length int) uint32 {
	if p.IPProto == openflow.ProtoICMP {
		return 0
	}
	sum := uint32(p.IPProto) + uint32(length)
	for _, a := range []netip.Addr{p.IPSrc, p.IPDst} {
		raw := a.AsSlice()
		for i := 0; i+1 < len(raw); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(raw[i:]))
		}
	}
	return sum
}

func checksum(sum uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

var errShortFrame = errors.New("frame: cut short")

// ParseFrame reads the headers of a frame; what is cut short is an error.
func ParseFrame(frame []byte) (Packet, error) {
	var p Packet
	if len(frame) < 14 {
		return p, errShortFrame
	}
	p.EthDst, p.EthSrc = [6]byte(frame), [6]byte(frame[6:])
	p.EthType = binary.BigEndian.Uint16(frame[12:])
	b := frame[14:]
	switch p.EthType {
	case openflow.EtherARP:
		if len(b) < 28 {
			return p, errShortFrame
		}
		p.ARPOp = binary.BigEndian.Uint16(b[6:])
		p.ARPSHA, p.ARPTHA = [6]byte(b[8:]), [6]byte(b[18:])
		p.ARPSPA, p.ARPTPA = netip.AddrFrom4([4]byte(b[14:])), netip.AddrFrom4([4]byte(b[24:]))
	case openflow.EtherIPv4, openflow.EtherIPv6:
		return p, p.parseIP(b)
	}
	return p, nil
}

func (p *Packet) parseIP(b []byte) error {
	if len(b) < 1 {
		return errShortFrame
	}
	if b[0]>>4 == 4 {
		n := int(b[0]&15) * 4
		if n < 20 || len(b) < n {
			return errShortFrame
		}
		p.TTL, p.IPProto = b[8], b[9]
		p.IPSrc, p.IPDst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		if total := int(binary.BigEndian.Uint16(b[2:])); total >= n && total <= len(b) {
			b = b[:total]
		}
		return p.parseTransport(b[n:])
	}
	if len(b) < 40 {
		return errShortFrame
	}
	p.IPProto, p.TTL = b[6], b[7]
	p.IPSrc, p.IPDst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	if n := int(binary.BigEndian.Uint16(b[4:])); 40+n <= len(b) {
		b = b[:40+n]
	}
	return p.parseTransport(b[40:])
}

func (p *Packet) parseTransport(b []byte) error {
	least := map[uint8]int{openflow.ProtoTCP: 14, openflow.ProtoUDP: 8, openflow.ProtoSCTP: 12, openflow.ProtoICMP: 8, openflow.ProtoICMPv6: 8}
	n, known := least[p.IPProto]
	if !known {
		return nil
	}
	if len(b) < n {
		return errShortFrame
	}
	switch p.IPProto {
	case openflow.ProtoTCP:
		p.TCPFlags = binary.BigEndian.Uint16(b[12:]) & 0xfff
	case openflow.ProtoICMP, openflow.ProtoICMPv6:
		p.parseICMP(b)
		return nil
	}
	p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	return nil
}

func (p *Packet) parseICMP(b []byte) {
	p.ICMPType, p.ICMPCode = b[0], b[1]
	switch {
	case p.isICMPError():
		inner := Packet{EthType: p.EthType}
		if inner.parseIP(b[8:]) == nil {
			p.Inner = &inner
		}
	case p.IPProto == openflow.ProtoICMPv6 && (p.ICMPType == openflow.NDSolicit || p.ICMPType == openflow.NDAdvert):
		if len(b) < 24 {
			return
		}
		p.NDTarget = netip.AddrFrom16([16]byte(b[8:]))
		for opt := b[24:]; len(opt) >= 8 && opt[1] > 0 && len(opt) >= int(opt[1])*8; opt = opt[int(opt[1])*8:] {
			switch opt[0] {
			case 1:
				p.NDSLL = [6]byte(opt[2:])
			case 2:
				p.NDTLL = [6]byte(opt[2:])
			}
		}
	default:
		p.ICMPID = binary.BigEndian.Uint16(b[4:])
	}
}

func (p *Packet) isICMPError() bool {
	switch p.IPProto {
	case openflow.ProtoICMP:
		return p.ICMPType == 3 || p.ICMPType == 4 || p.ICMPType == 5 || p.ICMPType == 11 || p.ICMPType == 12
	case openflow.ProtoICMPv6:
		return p.ICMPType >= 1 && p.ICMPType <= 4
	}
	return false
}

// String describes the packet as Trace takes it.
func (p *Packet) String() string {
	parts := []string{fmt.Sprintf("in_port=%d,dl_src=%s,dl_dst=%s", p.InPort, macText(p.EthSrc), macText(p.EthDst))}
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	switch p.EthType {
	case openflow.EtherARP:
		add("arp,arp_op=%d,arp_spa=%s,arp_tpa=%s,arp_sha=%s,arp_tha=%s", p.ARPOp, p.ARPSPA, p.ARPTPA, macText(p.ARPSHA), macText(p.ARPTHA))
	case openflow.EtherIPv4:
		add("dl_type=0x0800,nw_proto=%d,nw_src=%s,nw_dst=%s,nw_ttl=%d", p.IPProto, p.IPSrc, p.IPDst, max(p.TTL, 1))
	case openflow.EtherIPv6:
		add("dl_type=0x86dd,nw_proto=%d,ipv6_src=%s,ipv6_dst=%s,nw_ttl=%d", p.IPProto, p.IPSrc, p.IPDst, max(p.TTL, 1))
	default:
		add("dl_type=0x%04x", p.EthType)
	}
	switch {
	case p.EthType != openflow.EtherIPv4 && p.EthType != openflow.EtherIPv6:
	case p.IPProto == openflow.ProtoTCP:
		add("tcp_src=%d,tcp_dst=%d,tcp_flags=0x%x", p.SrcPort, p.DstPort, p.TCPFlags)
	case p.IPProto == openflow.ProtoUDP:
		add("udp_src=%d,udp_dst=%d", p.SrcPort, p.DstPort)
	case p.IPProto == openflow.ProtoSCTP:
		add("sctp_src=%d,sctp_dst=%d", p.SrcPort, p.DstPort)
	case p.IPProto == openflow.ProtoICMP:
		add("icmp_type=%d,icmp_code=%d", p.ICMPType, p.ICMPCode)
	case p.IPProto == openflow.ProtoICMPv6:
		add("icmpv6_type=%d,icmpv6_code=%d", p.ICMPType, p.ICMPCode)
		if p.NDTarget.IsValid() {
			add("nd_target=%s", p.NDTarget)
		}
		if p.NDSLL != [6]byte{} {
			add("nd_sll=%s", macText(p.NDSLL))
		}
		if p.NDTLL != [6]byte{} {
			add("nd_tll=%s", macText(p.NDTLL))
		}
	}
	return strings.Join(parts, ",")
}

func macText(m [6]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
