package openflow

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// FieldID names a field that matches and actions can refer to.
type FieldID uint8

// The fields that this package knows. Their order is the canonical order of a
// match: every field comes after those that it presupposes.
const (
	FieldInPort FieldID = iota
	FieldEthSrc
	FieldEthDst
	FieldEthType
	FieldVLANVID
	FieldIPProto
	FieldIPFrag
	FieldIPTTL
	FieldIPDSCP
	FieldIPECN
	FieldIPv4Src
	FieldIPv4Dst
	FieldIPv6Src
	FieldIPv6Dst
	FieldARPOp
	FieldARPSPA
	FieldARPTPA
	FieldARPSHA
	FieldARPTHA
	FieldTCPSrc
	FieldTCPDst
	FieldTCPFlags
	FieldUDPSrc
	FieldUDPDst
	FieldSCTPSrc
	FieldSCTPDst
	FieldICMPType
	FieldICMPCode
	FieldICMPv6Type
	FieldICMPv6Code
	FieldNDTarget
	FieldNDSLL
	FieldNDTLL
	FieldTunID
	FieldMetadata
	FieldReg0
)

// Further fields, after the sixteen registers.
const (
	FieldPktMark FieldID = FieldReg0 + 16 + iota
	FieldCTState
	FieldCTZone
	FieldCTMark
	FieldCTLabel
	FieldCTProto
	FieldCTIPv4Src
	FieldCTIPv4Dst
	FieldCTIPv6Src
	FieldCTIPv6Dst
	FieldCTTPSrc
	FieldCTTPDst
	FieldConjID
	fieldXXReg0 // the 128-bit registers; no match has them, see FieldXXReg

	fieldCount = fieldXXReg0 + 4
)

// FieldReg is the id of register n, which must be below 16.
func FieldReg(n int) FieldID {
	if n < 0 || n > 15 {
		panic(fmt.Sprintf("openflow: no register %d", n))
	}
	return FieldReg0 + FieldID(n)
}

// FieldXXReg is the id of the 128-bit register n, which must be below 4. It is
// the same bits as four registers, the one of the lowest number on top: number 2
// is the registers 8 to 11. Matches on it are matches on these.
func FieldXXReg(n int) FieldID {
	if n < 0 || n > 3 {
		panic(fmt.Sprintf("openflow: no 128-bit register %d", n))
	}
	return fieldXXReg0 + FieldID(n)
}

// Registers are the four registers that a 128-bit register is, the highest
// first; false where the field is none.
func (id FieldID) Registers() (out [4]FieldID, ok bool) {
	if id < fieldXXReg0 || id >= fieldCount {
		return out, false
	}
	for i := range out {
		out[i] = FieldReg(int(id-fieldXXReg0)*4 + i)
	}
	return out, true
}

// Classes of OXM headers.
const (
	classNXM0         = 0x0000 // the fields of OpenFlow 1.0
	classNXM1         = 0x0001 // Nicira extensions
	classOpenFlow     = 0x8000
	classPacketReg    = 0x8001 // 64-bit registers, each two of ours
	classExperimenter = 0xffff
)

type fieldInfo struct {
	name     string // as ovs-ofctl writes it
	class    uint16
	number   uint8
	width    uint8 // bytes on the wire
	bits     uint8 // significant low bits; 0: all
	maskable bool
}

var fields = [fieldCount]fieldInfo{
	FieldInPort:     {"in_port", classOpenFlow, 0, 4, 0, false},
	FieldEthSrc:     {"dl_src", classOpenFlow, 4, 6, 0, true},
	FieldEthDst:     {"dl_dst", classOpenFlow, 3, 6, 0, true},
	FieldEthType:    {"dl_type", classOpenFlow, 5, 2, 0, false},
	FieldVLANVID:    {"vlan_vid", classOpenFlow, 6, 2, 13, true},
	FieldIPProto:    {"nw_proto", classOpenFlow, 10, 1, 0, false},
	FieldIPFrag:     {"nw_frag", classNXM1, 26, 1, 2, true},
	FieldIPTTL:      {"nw_ttl", classNXM1, 29, 1, 0, false},
	FieldIPDSCP:     {"ip_dscp", classOpenFlow, 8, 1, 6, false},
	FieldIPECN:      {"nw_ecn", classOpenFlow, 9, 1, 2, false},
	FieldIPv4Src:    {"nw_src", classOpenFlow, 11, 4, 0, true},
	FieldIPv4Dst:    {"nw_dst", classOpenFlow, 12, 4, 0, true},
	FieldIPv6Src:    {"ipv6_src", classOpenFlow, 26, 16, 0, true},
	FieldIPv6Dst:    {"ipv6_dst", classOpenFlow, 27, 16, 0, true},
	FieldARPOp:      {"arp_op", classOpenFlow, 21, 2, 0, false},
	FieldARPSPA:     {"arp_spa", classOpenFlow, 22, 4, 0, true},
	FieldARPTPA:     {"arp_tpa", classOpenFlow, 23, 4, 0, true},
	FieldARPSHA:     {"arp_sha", classOpenFlow, 24, 6, 0, true},
	FieldARPTHA:     {"arp_tha", classOpenFlow, 25, 6, 0, true},
	FieldTCPSrc:     {"tcp_src", classOpenFlow, 13, 2, 0, true},
	FieldTCPDst:     {"tcp_dst", classOpenFlow, 14, 2, 0, true},
	FieldTCPFlags:   {"tcp_flags", classOpenFlow, 42, 2, 12, true},
	FieldUDPSrc:     {"udp_src", classOpenFlow, 15, 2, 0, true},
	FieldUDPDst:     {"udp_dst", classOpenFlow, 16, 2, 0, true},
	FieldSCTPSrc:    {"sctp_src", classOpenFlow, 17, 2, 0, true},
	FieldSCTPDst:    {"sctp_dst", classOpenFlow, 18, 2, 0, true},
	FieldICMPType:   {"icmp_type", classOpenFlow, 19, 1, 0, false},
	FieldICMPCode:   {"icmp_code", classOpenFlow, 20, 1, 0, false},
	FieldICMPv6Type: {"icmpv6_type", classOpenFlow, 29, 1, 0, false},
	FieldICMPv6Code: {"icmpv6_code", classOpenFlow, 30, 1, 0, false},
	FieldNDTarget:   {"nd_target", classOpenFlow, 31, 16, 0, true},
	FieldNDSLL:      {"nd_sll", classOpenFlow, 32, 6, 0, true},
	FieldNDTLL:      {"nd_tll", classOpenFlow, 33, 6, 0, true},
	FieldTunID:      {"tun_id", classOpenFlow, 38, 8, 0, true},
	FieldMetadata:   {"metadata", classOpenFlow, 2, 8, 0, true},
	FieldReg0:       {"reg0", classNXM1, 0, 4, 0, true},
	FieldReg0 + 1:   {"reg1", classNXM1, 1, 4, 0, true},
	FieldReg0 + 2:   {"reg2", classNXM1, 2, 4, 0, true},
	FieldReg0 + 3:   {"reg3", classNXM1, 3, 4, 0, true},
	FieldReg0 + 4:   {"reg4", classNXM1, 4, 4, 0, true},
	FieldReg0 + 5:   {"reg5", classNXM1, 5, 4, 0, true},
	FieldReg0 + 6:   {"reg6", classNXM1, 6, 4, 0, true},
	FieldReg0 + 7:   {"reg7", classNXM1, 7, 4, 0, true},
	FieldReg0 + 8:   {"reg8", classNXM1, 8, 4, 0, true},
	FieldReg0 + 9:   {"reg9", classNXM1, 9, 4, 0, true},
	FieldReg0 + 10:  {"reg10", classNXM1, 10, 4, 0, true},
	FieldReg0 + 11:  {"reg11", classNXM1, 11, 4, 0, true},
	FieldReg0 + 12:  {"reg12", classNXM1, 12, 4, 0, true},
	FieldReg0 + 13:  {"reg13", classNXM1, 13, 4, 0, true},
	FieldReg0 + 14:  {"reg14", classNXM1, 14, 4, 0, true},
	FieldReg0 + 15:  {"reg15", classNXM1, 15, 4, 0, true},
	FieldPktMark:    {"pkt_mark", classNXM1, 33, 4, 0, true},
	FieldCTState:    {"ct_state", classNXM1, 105, 4, 0, true},
	FieldCTZone:     {"ct_zone", classNXM1, 106, 2, 0, false},
	FieldCTMark:     {"ct_mark", classNXM1, 107, 4, 0, true},
	FieldCTLabel:    {"ct_label", classNXM1, 108, 16, 0, true},
	FieldCTProto:    {"ct_nw_proto", classNXM1, 119, 1, 0, false},
	FieldCTIPv4Src:  {"ct_nw_src", classNXM1, 120, 4, 0, true},
	FieldCTIPv4Dst:  {"ct_nw_dst", classNXM1, 121, 4, 0, true},
	FieldCTIPv6Src:  {"ct_ipv6_src", classNXM1, 122, 16, 0, true},
	FieldCTIPv6Dst:  {"ct_ipv6_dst", classNXM1, 123, 16, 0, true},
	FieldCTTPSrc:    {"ct_tp_src", classNXM1, 124, 2, 0, true},
	FieldCTTPDst:    {"ct_tp_dst", classNXM1, 125, 2, 0, true},
	FieldConjID:     {"conj_id", classNXM1, 37, 4, 0, false},
	fieldXXReg0:     {"xxreg0", classNXM1, 111, 16, 0, true},
	fieldXXReg0 + 1: {"xxreg1", classNXM1, 112, 16, 0, true},
	fieldXXReg0 + 2: {"xxreg2", classNXM1, 113, 16, 0, true},
	fieldXXReg0 + 3: {"xxreg3", classNXM1, 114, 16, 0, true},
}

// fieldByHeader finds a field by class and number of its OXM header.
func fieldByHeader(class uint16, number uint8) (FieldID, bool) {
	switch class {
	case classNXM1:
		id := nxmFields[number&0x7f]
		return id - 1, id != 0
	case classOpenFlow:
		id := oxmFields[number&0x7f]
		return id - 1, id != 0
	}
	return 0, false
}

// nxmFields and oxmFields hold id+1 by number; 0 means unknown.
var nxmFields, oxmFields = indexFields()

func indexFields() (nxm, oxm [128]FieldID) {
	for id, f := range fields {
		if f.class == classNXM1 {
			nxm[f.number] = FieldID(id) + 1
		} else {
			oxm[f.number] = FieldID(id) + 1
		}
	}
	return nxm, oxm
}

// String is the field's name in the text form of ovs-ofctl.
func (id FieldID) String() string {
	if id < fieldCount {
		return fields[id].name
	}
	return fmt.Sprintf("field(%d)", uint8(id))
}

// Bits is the field's width in bits.
func (id FieldID) Bits() int {
	if f := fields[id]; f.bits != 0 {
		return int(f.bits)
	}
	return int(fields[id].width) * 8
}

// Maskable tells whether a match may look at a part of the field.
func (id FieldID) Maskable() bool { return fields[id].maskable }

func (id FieldID) header(hasMask bool, length uint8) uint32 {
	f := &fields[id]
	h := uint32(f.class)<<16 | uint32(f.number)<<9 | uint32(length)
	if hasMask {
		h |= 1 << 8
	}
	return h
}

// Value is a field's content: an unsigned number of up to 128 bits, big-endian,
// so that its last byte holds the lowest bits whatever the field's width.
type Value [16]byte

// Uint is the Value of a number.
func Uint(v uint64) (out Value) {
	binary.BigEndian.PutUint64(out[8:], v)
	return out
}

// MAC is the Value of a hardware address.
func MAC(mac [6]byte) (out Value) {
	copy(out[10:], mac[:])
	return out
}

// Addr is the Value of an address: 32 bits of IPv4 or 128 of IPv6.
func Addr(a netip.Addr) (out Value) {
	if a.Is4() {
		b := a.As4()
		copy(out[12:], b[:])
		return out
	}
	return a.As16()
}

// Uint64 is the low 64 bits as a number.
func (v Value) Uint64() uint64 { return binary.BigEndian.Uint64(v[8:]) }

// MAC is the low 48 bits as a hardware address.
func (v Value) MAC() (out [6]byte) {
	copy(out[:], v[10:])
	return out
}

// IPv4 is the low 32 bits as an address.
func (v Value) IPv4() netip.Addr { return netip.AddrFrom4([4]byte(v[12:])) }

// IPv6 is the whole value as an address.
func (v Value) IPv6() netip.Addr { return netip.AddrFrom16(v) }

// And is the bitwise and.
func (v Value) And(o Value) Value {
	for i := range v {
		v[i] &= o[i]
	}
	return v
}

// Or is the bitwise or.
func (v Value) Or(o Value) Value {
	for i := range v {
		v[i] |= o[i]
	}
	return v
}

// AndNot clears the bits of o.
func (v Value) AndNot(o Value) Value {
	for i := range v {
		v[i] &^= o[i]
	}
	return v
}

// IsZero tells whether no bit is set.
func (v Value) IsZero() bool { return v == Value{} }

// Ones is a Value with n bits set from bit offset on.
func Ones(offset, n int) (out Value) {
	// Of 64 bits at a time, since each field of each flow asks; a shift by 64
	// and more leaves none.
	below := func(bits int) (hi, lo uint64) {
		return uint64(1)<<max(bits-64, 0) - 1, uint64(1)<<bits - 1
	}
	hi, lo := below(min(max(offset+n, 0), 128))
	fromHi, fromLo := below(min(max(offset, 0), 128))
	binary.BigEndian.PutUint64(out[:8], hi&^fromHi)
	binary.BigEndian.PutUint64(out[8:], lo&^fromLo)
	return out
}

// Shift moves the bits left by n, or right where n is negative.
func (v Value) Shift(n int) Value {
	hi, lo := binary.BigEndian.Uint64(v[:8]), binary.BigEndian.Uint64(v[8:])
	switch {
	case n >= 64:
		hi, lo = lo<<(n-64), 0
	case n > 0:
		hi, lo = hi<<n|lo>>(64-n), lo<<n
	case n <= -64:
		hi, lo = 0, hi>>(-n-64)
	case n < 0:
		hi, lo = hi>>-n, lo>>-n|hi<<(64+n)
	}
	binary.BigEndian.PutUint64(v[:8], hi)
	binary.BigEndian.PutUint64(v[8:], lo)
	return v
}

// full is the mask of the whole field.
func (id FieldID) full() Value { return Ones(0, id.Bits()) }

// NumFields is one more than the greatest FieldID.
const NumFields = int(fieldCount)
