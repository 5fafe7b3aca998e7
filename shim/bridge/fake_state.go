package bridge

import (
	"net/netip"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// state is one copy of the packet on its way.
type state struct {
	packet Packet
	md     tracking
	// fields beyond the packet's headers: registers, ct fields, marks.
	extra [openflow.NumFields]openflow.Value
	// held tells that a controller holds the packet.
	held bool
}

func (s *state) matches(conditions []openflow.Field) bool {
	for i := range conditions {
		c := &conditions[i]
		if s.get(c.ID).And(c.Mask) != c.Value {
			return false
		}
	}
	return true
}

func (s *state) bits(r openflow.Bits) openflow.Value {
	return s.get(r.Field).Shift(-int(r.Offset)).And(openflow.Ones(0, int(r.Len)))
}

func (s *state) setBits(r openflow.Bits, v openflow.Value) {
	mask := openflow.Ones(int(r.Offset), int(r.Len))
	s.set(r.Field, s.get(r.Field).AndNot(mask).Or(v.Shift(int(r.Offset)).And(mask)))
}

func addr(a netip.Addr) openflow.Value {
	if !a.IsValid() {
		return openflow.Value{}
	}
	return openflow.Addr(a)
}

// get is the content of a field; one that the packet does not have is zero.
func (s *state) get(id openflow.FieldID) openflow.Value {
	p := &s.packet
	number := func(n uint64, has bool) openflow.Value {
		if !has {
			return openflow.Value{}
		}
		return openflow.Uint(n)
	}
	ipv4, ipv6 := p.EthType == openflow.EtherIPv4, p.EthType == openflow.EtherIPv6
	ip := ipv4 || ipv6
	proto := uint8(0)
	if ip {
		proto = p.IPProto
	}
	switch id {
	case openflow.FieldInPort:
		return openflow.Uint(uint64(p.InPort))
	case openflow.FieldEthSrc:
		return openflow.MAC(p.EthSrc)
	case openflow.FieldEthDst:
		return openflow.MAC(p.EthDst)
	case openflow.FieldEthType:
		return openflow.Uint(uint64(p.EthType))
	case openflow.FieldIPProto:
		return number(uint64(p.IPProto), ip)
	case openflow.FieldIPTTL:
		return number(uint64(p.TTL), ip)
	case openflow.FieldIPv4Src, openflow.FieldIPv6Src:
		if (id == openflow.FieldIPv4Src) == ipv4 && ip {
			return addr(p.IPSrc)
		}
	case openflow.FieldIPv4Dst, openflow.FieldIPv6Dst:
		if (id == openflow.FieldIPv4Dst) == ipv4 && ip {
			return addr(p.IPDst)
		}
	case openflow.FieldARPOp:
		return openflow.Uint(uint64(p.ARPOp))
	case openflow.FieldARPSPA:
		return addr(p.ARPSPA)
	case openflow.FieldARPTPA:
		return addr(p.ARPTPA)
	case openflow.FieldARPSHA:
		return openflow.MAC(p.ARPSHA)
	case openflow.FieldARPTHA:
		return openflow.MAC(p.ARPTHA)
	case openflow.FieldTCPSrc:
		return number(uint64(p.SrcPort), proto == openflow.ProtoTCP)
	case openflow.FieldTCPDst:
		return number(uint64(p.DstPort), proto == openflow.ProtoTCP)
	case openflow.FieldTCPFlags:
		return number(uint64(p.TCPFlags), proto == openflow.ProtoTCP)
	case openflow.FieldUDPSrc:
		return number(uint64(p.SrcPort), proto == openflow.ProtoUDP)
	case openflow.FieldUDPDst:
		return number(uint64(p.DstPort), proto == openflow.ProtoUDP)
	case openflow.FieldSCTPSrc:
		return number(uint64(p.SrcPort), proto == openflow.ProtoSCTP)
	case openflow.FieldSCTPDst:
		return number(uint64(p.DstPort), proto == openflow.ProtoSCTP)
	case openflow.FieldICMPType, openflow.FieldICMPv6Type:
		return number(uint64(p.ICMPType), proto == openflow.ProtoICMP || proto == openflow.ProtoICMPv6)
	case openflow.FieldICMPCode, openflow.FieldICMPv6Code:
		return number(uint64(p.ICMPCode), proto == openflow.ProtoICMP || proto == openflow.ProtoICMPv6)
	case openflow.FieldNDTarget:
		return addr(p.NDTarget)
	case openflow.FieldNDSLL:
		return openflow.MAC(p.NDSLL)
	case openflow.FieldNDTLL:
		return openflow.MAC(p.NDTLL)
	}
	if four, ok := id.Registers(); ok {
		var out openflow.Value
		for _, reg := range four {
			out = out.Shift(32).Or(s.extra[reg])
		}
		return out
	}
	return s.extra[id]
}

// set overwrites a field.
func (s *state) set(id openflow.FieldID, v openflow.Value) {
	p := &s.packet
	n := v.Uint64()
	switch id {
	case openflow.FieldEthSrc:
		p.EthSrc = v.MAC()
	case openflow.FieldEthDst:
		p.EthDst = v.MAC()
	case openflow.FieldIPTTL:
		p.TTL = uint8(n)
	case openflow.FieldIPv4Src:
		p.IPSrc = v.IPv4()
	case openflow.FieldIPv4Dst:
		p.IPDst = v.IPv4()
	case openflow.FieldIPv6Src:
		p.IPSrc = v.IPv6()
	case openflow.FieldIPv6Dst:
		p.IPDst = v.IPv6()
	case openflow.FieldARPOp:
		p.ARPOp = uint16(n)
	case openflow.FieldARPSPA:
		p.ARPSPA = v.IPv4()
	case openflow.FieldARPTPA:
		p.ARPTPA = v.IPv4()
	case openflow.FieldARPSHA:
		p.ARPSHA = v.MAC()
	case openflow.FieldARPTHA:
		p.ARPTHA = v.MAC()
	case openflow.FieldTCPSrc, openflow.FieldUDPSrc, openflow.FieldSCTPSrc:
		p.SrcPort = uint16(n)
	case openflow.FieldTCPDst, openflow.FieldUDPDst, openflow.FieldSCTPDst:
		p.DstPort = uint16(n)
	default:
		if four, ok := id.Registers(); ok {
			for i, reg := range four {
				s.extra[reg] = v.Shift(32*i - 96).And(openflow.Uint(0xffffffff))
			}
			return
		}
		s.extra[id] = v
	}
}

// metadata are the fields that a packet-in carries: those that are not zero.
func (s *state) metadata() openflow.Metadata {
	list := []openflow.Field{openflow.InPort(s.packet.InPort)}
	for id, v := range s.extra {
		if !v.IsZero() {
			list = append(list, openflow.Exactly(openflow.FieldID(id), v))
		}
	}
	return openflow.NewMetadata(list...)
}

func (s *state) clearTracked() {
	for id := openflow.FieldCTState; id <= openflow.FieldCTTPDst; id++ {
		s.extra[id] = openflow.Value{}
	}
}

func (s *state) setTracked(v verdict, zone uint16) {
	s.clearTracked()
	put := func(id openflow.FieldID, n uint64) { s.extra[id] = openflow.Uint(n) }
	put(openflow.FieldCTState, uint64(v.state))
	put(openflow.FieldCTZone, uint64(zone))
	s.extra[openflow.FieldCTMark], s.extra[openflow.FieldCTLabel] = v.mark, v.label
	if v.state&openflow.CtInv != 0 || !v.orig.src.IsValid() {
		return
	}
	put(openflow.FieldCTProto, uint64(v.orig.proto))
	switch v.orig.proto { // of ICMP, the type and code of the request stand there
	case openflow.ProtoICMP:
		put(openflow.FieldCTTPSrc, 8)
	case openflow.ProtoICMPv6:
		put(openflow.FieldCTTPSrc, 128)
	default:
		put(openflow.FieldCTTPSrc, uint64(v.orig.sport))
		put(openflow.FieldCTTPDst, uint64(v.orig.dport))
	}
	src, dst := openflow.FieldCTIPv6Src, openflow.FieldCTIPv6Dst
	if v.orig.src.Is4() {
		src, dst = openflow.FieldCTIPv4Src, openflow.FieldCTIPv4Dst
	}
	s.extra[src], s.extra[dst] = openflow.Addr(v.orig.src), openflow.Addr(v.orig.dst)
}
