package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"sort"
	"strings"
)

// Ethernet types that matches presuppose.
const (
	EtherIPv4 = 0x0800
	EtherARP  = 0x0806
	EtherIPv6 = 0x86dd
)

// IP protocols.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
	ProtoSCTP   = 132
)

// Types of ICMPv6 that neighbour discovery uses.
const (
	NDSolicit = 135
	NDAdvert  = 136
)

// Field is one condition of a match: the packet's field, masked, equals Value.
// A condition on some bits only has a Mask; a full mask says "all of it".
type Field struct {
	ID    FieldID
	Value Value
	Mask  Value
}

// Exact tells whether the field must equal Value in every bit.
func (f Field) Exact() bool { return f.Mask == f.ID.full() }

// Match is a condition on packets, immutable and comparable. The zero Match
// takes every packet.
type Match struct {
	// oxm is canonical: known fields in ascending order of their ids, values cut
	// to their masks, full masks left out, all prerequisites there; then fields
	// that we do not know, as they came, in the order of their bytes.
	oxm string
}

// Hash is a number of the match, the same in every process: FNV-1a of its bytes.
func (m Match) Hash() uint32 {
	h := uint32(2166136261)
	for i := range len(m.oxm) {
		h = (h ^ uint32(m.oxm[i])) * 16777619
	}
	return h
}

func exact(id FieldID, v Value) Field { return Field{id, v, id.full()} }

// Masked is a condition on some bits of any field; a zero mask is none.
func Masked(id FieldID, value, mask Value) Field { return Field{id, value, mask} }

// Exactly is a condition on the whole of any field.
func Exactly(id FieldID, value Value) Field { return exact(id, value) }

// InPort matches the port by which the packet came in.
func InPort(port uint32) Field { return exact(FieldInPort, Uint(uint64(port))) }

// EthType matches the Ethernet type.
func EthType(t uint16) Field { return exact(FieldEthType, Uint(uint64(t))) }

// IPv4 matches IPv4 packets.
func IPv4() Field { return EthType(EtherIPv4) }

// IPv6 matches IPv6 packets.
func IPv6() Field { return EthType(EtherIPv6) }

// ARP matches ARP packets.
func ARP() Field { return EthType(EtherARP) }

// EthSrc matches the sender's hardware address.
func EthSrc(mac [6]byte) Field { return exact(FieldEthSrc, MAC(mac)) }

// EthDst matches the receiver's hardware address.
func EthDst(mac [6]byte) Field { return exact(FieldEthDst, MAC(mac)) }

// EthDstMasked matches a part of the receiver's hardware address.
func EthDstMasked(mac, mask [6]byte) Field { return Field{FieldEthDst, MAC(mac), MAC(mask)} }

// IPProto matches the protocol above IP; the match needs a family besides.
func IPProto(p uint8) Field { return exact(FieldIPProto, Uint(uint64(p))) }

func prefix(v4, v6 FieldID, p netip.Prefix) Field {
	if p.Addr().Is4() {
		return Field{v4, Addr(p.Addr()), Ones(32-p.Bits(), p.Bits())}
	}
	return Field{v6, Addr(p.Addr()), Ones(128-p.Bits(), p.Bits())}
}

// IPSrc matches the source address; it implies the prefix's family, also when
// the prefix has no bits.
func IPSrc(p netip.Prefix) Field { return prefix(FieldIPv4Src, FieldIPv6Src, p) }

// IPDst matches the destination address; it implies the prefix's family, also
// when the prefix has no bits.
func IPDst(p netip.Prefix) Field { return prefix(FieldIPv4Dst, FieldIPv6Dst, p) }

// ARPOp matches the operation of an ARP packet: 1 request, 2 reply.
func ARPOp(op uint16) Field { return exact(FieldARPOp, Uint(uint64(op))) }

// ARPSpa matches the protocol address of an ARP packet's sender, an IPv4 prefix.
func ARPSpa(p netip.Prefix) Field { return prefix(FieldARPSPA, FieldARPSPA, p) }

// ARPTpa matches the protocol address that an ARP packet asks for, an IPv4 prefix.
func ARPTpa(p netip.Prefix) Field { return prefix(FieldARPTPA, FieldARPTPA, p) }

// ARPSha matches the hardware address that an ARP packet's sender claims.
func ARPSha(mac [6]byte) Field { return exact(FieldARPSHA, MAC(mac)) }

// NDTarget matches the address that neighbour discovery is about. The match
// needs ICMPv6Type(NDSolicit) or ICMPv6Type(NDAdvert), or an option of one.
func NDTarget(p netip.Prefix) Field {
	return Field{FieldNDTarget, Addr(p.Addr()), Ones(128-p.Bits(), p.Bits())}
}

// NDSll matches the source link-layer option of a neighbour solicitation.
func NDSll(mac [6]byte) Field { return exact(FieldNDSLL, MAC(mac)) }

// NDTll matches the target link-layer option of a neighbour advertisement.
func NDTll(mac [6]byte) Field { return exact(FieldNDTLL, MAC(mac)) }

func l4(proto uint8, tcp, udp, sctp FieldID, port, mask uint16) Field {
	id := tcp
	switch proto {
	case ProtoTCP:
	case ProtoUDP:
		id = udp
	case ProtoSCTP:
		id = sctp
	default:
		panic(fmt.Sprintf("openflow: protocol %d has no ports", proto))
	}
	return Field{id, Uint(uint64(port)), Uint(uint64(mask))}
}

// L4Src matches the source port of TCP, UDP or SCTP, under a mask; it implies
// the protocol, also when the mask is zero. The match needs a family besides.
func L4Src(proto uint8, port, mask uint16) Field {
	return l4(proto, FieldTCPSrc, FieldUDPSrc, FieldSCTPSrc, port, mask)
}

// L4Dst matches the destination port of TCP, UDP or SCTP, under a mask; it
// implies the protocol, also when the mask is zero. The match needs a family
// besides.
func L4Dst(proto uint8, port, mask uint16) Field {
	return l4(proto, FieldTCPDst, FieldUDPDst, FieldSCTPDst, port, mask)
}

// TCPFlags matches flags of a TCP segment; the match needs a family besides.
func TCPFlags(flags, mask uint16) Field {
	return Field{FieldTCPFlags, Uint(uint64(flags)), Uint(uint64(mask))}
}

// ICMPType matches the type of an ICMP message for IPv4.
func ICMPType(t uint8) Field { return exact(FieldICMPType, Uint(uint64(t))) }

// ICMPCode matches the code of an ICMP message for IPv4.
func ICMPCode(c uint8) Field { return exact(FieldICMPCode, Uint(uint64(c))) }

// ICMPv6Type matches the type of an ICMP message for IPv6.
func ICMPv6Type(t uint8) Field { return exact(FieldICMPv6Type, Uint(uint64(t))) }

// ICMPv6Code matches the code of an ICMP message for IPv6.
func ICMPv6Code(c uint8) Field { return exact(FieldICMPv6Code, Uint(uint64(c))) }

// Reg matches bits of register n.
func Reg(n int, value, mask uint32) Field {
	return Field{FieldReg(n), Uint(uint64(value)), Uint(uint64(mask))}
}

// States of a packet's connection, for CtState.
const (
	CtNew  = 0x01 // it would begin a connection
	CtEst  = 0x02 // its connection exists
	CtRel  = 0x04 // it is related to a connection, such as an ICMP error
	CtRpl  = 0x08 // it goes against its connection's direction
	CtInv  = 0x10 // it fits no connection
	CtTrk  = 0x20 // it went through the connection tracker
	CtSNAT = 0x40 // its source is translated
	CtDNAT = 0x80 // its destination is translated
)

// CtState matches connection states: those of mask must be as in value.
func CtState(value, mask uint32) Field {
	return Field{FieldCTState, Uint(uint64(value)), Uint(uint64(mask))}
}

// CtZone matches the zone in which the packet was tracked last.
func CtZone(zone uint16) Field { return exact(FieldCTZone, Uint(uint64(zone))) }

// CtMark matches bits of the connection's mark.
func CtMark(value, mask uint32) Field {
	return Field{FieldCTMark, Uint(uint64(value)), Uint(uint64(mask))}
}

// CtLabel matches bits of the connection's label, both big-endian.
func CtLabel(value, mask [16]byte) Field { return Field{FieldCTLabel, value, mask} }

// ConjID matches packets that satisfy every clause of a conjunction.
func ConjID(id uint32) Field { return exact(FieldConjID, Uint(uint64(id))) }

// PktMark matches bits of the packet's mark.
func PktMark(value, mask uint32) Field {
	return Field{FieldPktMark, Uint(uint64(value)), Uint(uint64(mask))}
}

// TunID matches the tunnel's id.
func TunID(id uint64) Field { return exact(FieldTunID, Uint(id)) }

// NewMatch makes a match of conditions, all of which must hold, and adds the
// prerequisites that they imply: the family of an address, the protocol of a
// port. It panics where conditions contradict each other, or presuppose what
// they do not determine (a port without a family): both are faults of the
// program that no packet could reveal. MakeMatch returns them as errors.
func NewMatch(list ...Field) Match {
	m, err := MakeMatch(list...)
	if err != nil {
		panic("openflow: " + err.Error())
	}
	return m
}

// MakeMatch is NewMatch for conditions that may be wrong.
func MakeMatch(list ...Field) (Match, error) {
	var b matchBuilder
	for _, f := range list {
		if err := b.add(f); err != nil {
			return Match{}, err
		}
	}
	if err := b.imply(); err != nil {
		return Match{}, err
	}
	return b.match(), nil
}

// fieldSet is a set of fields.
type fieldSet [2]uint64

var _ = [1]struct{}{}[fieldCount>>7] // Fields fit into a fieldSet.

func (s *fieldSet) add(id FieldID)      { s[id>>6] |= 1 << (id & 63) }
func (s *fieldSet) has(id FieldID) bool { return s[id>>6]>>(id&63)&1 != 0 }

// next is the first field of the set from id on; fieldCount if there is none.
func (s *fieldSet) next(id FieldID) FieldID {
	for ; id < fieldCount; id = (id | 63) + 1 {
		if rest := s[id>>6] >> (id & 63); rest != 0 {
			return id + FieldID(bits.TrailingZeros64(rest))
		}
	}
	return fieldCount
}

// matchBuilder collects conditions; present tells which fields were named, even
// if under a zero mask.
type matchBuilder struct {
	present fieldSet
	value   [fieldCount]Value
	mask    [fieldCount]Value
	unknown []string
}

func (b *matchBuilder) add(f Field) error {
	if f.ID >= fieldCount {
		return fmt.Errorf("match: unknown field %d", f.ID)
	}
	if four, ok := f.ID.Registers(); ok {
		return b.addWide(f, four)
	}
	mask := f.Mask.And(f.ID.full())
	if !f.ID.Maskable() && !mask.IsZero() && mask != f.ID.full() {
		return fmt.Errorf("match: %s cannot be masked", f.ID)
	}
	if !f.Value.AndNot(f.ID.full()).IsZero() {
		return fmt.Errorf("match: value of %s exceeds %d bits", f.ID, f.ID.Bits())
	}
	value := f.Value.And(mask)
	if b.present.has(f.ID) {
		common := mask.And(b.mask[f.ID])
		if value.And(common) != b.value[f.ID].And(common) {
			return fmt.Errorf("match: contradictory conditions on %s", f.ID)
		}
		mask, value = mask.Or(b.mask[f.ID]), value.Or(b.value[f.ID])
	}
	b.present.add(f.ID)
	b.value[f.ID], b.mask[f.ID] = value, mask
	return nil
}

// addWide adds a condition on a 128-bit register as those on its registers, which
// is how the switch gives it back.
func (b *matchBuilder) addWide(f Field, four [4]FieldID) error {
	low := Uint(0xffffffff)
	for i, id := range four {
		down := 32*i - 96
		if err := b.add(Field{id, f.Value.Shift(down).And(low), f.Mask.Shift(down).And(low)}); err != nil {
			return err
		}
	}
	return nil
}

// prerequisite says what must hold where any field of a range is named. Zero
// means nothing is asked.
type prerequisite struct {
	first, last FieldID
	need        FieldID
	value       uint64
}

// From the deepest field to the shallowest, so that one pass suffices.
var prerequisites = []prerequisite{
	{FieldNDSLL, FieldNDSLL, FieldICMPv6Type, NDSolicit},
	{FieldNDTLL, FieldNDTLL, FieldICMPv6Type, NDAdvert},
	{FieldNDTarget, FieldNDTLL, FieldICMPv6Code, 0},
	{FieldICMPv6Type, FieldNDTLL, FieldIPProto, ProtoICMPv6},
	{FieldICMPType, FieldICMPCode, FieldIPProto, ProtoICMP},
	{FieldSCTPSrc, FieldSCTPDst, FieldIPProto, ProtoSCTP},
	{FieldUDPSrc, FieldUDPDst, FieldIPProto, ProtoUDP},
	{FieldTCPSrc, FieldTCPFlags, FieldIPProto, ProtoTCP},
	{FieldICMPv6Type, FieldNDTLL, FieldEthType, EtherIPv6},
	{FieldICMPType, FieldICMPCode, FieldEthType, EtherIPv4},
	{FieldARPOp, FieldARPTHA, FieldEthType, EtherARP},
	{FieldIPv6Src, FieldIPv6Dst, FieldEthType, EtherIPv6},
	{FieldIPv4Src, FieldIPv4Dst, FieldEthType, EtherIPv4},
	{FieldCTIPv4Src, FieldCTIPv4Dst, FieldEthType, EtherIPv4},
	{FieldCTIPv6Src, FieldCTIPv6Dst, FieldEthType, EtherIPv6},
}

// imply adds what the named fields presuppose and checks what it cannot add.
func (b *matchBuilder) imply() error {
	for _, p := range prerequisites {
		for id := b.present.next(p.first); id <= p.last; id = b.present.next(id + 1) {
			if err := b.add(exact(p.need, Uint(p.value))); err != nil {
				return fmt.Errorf("match: %s needs %s=%d, which another condition excludes", id, p.need, p.value)
			}
		}
	}
	family := b.present.has(FieldEthType) && (b.value[FieldEthType] == Uint(EtherIPv4) || b.value[FieldEthType] == Uint(EtherIPv6))
	for id := FieldIPProto; id <= FieldIPECN; id++ {
		if b.present.has(id) && !family {
			return fmt.Errorf("match: %s needs a family: IPv4 or IPv6", id)
		}
	}
	for id := FieldCTProto; id <= FieldCTTPDst; id++ {
		if b.present.has(id) && !family {
			return fmt.Errorf("match: %s needs a family: IPv4 or IPv6", id)
		}
		if b.present.has(id) && !b.tracked() {
			return fmt.Errorf("match: %s needs a ct_state that only a valid connection has", id)
		}
	}
	if b.present.has(FieldNDTarget) {
		if t := b.value[FieldICMPv6Type]; t != Uint(NDSolicit) && t != Uint(NDAdvert) {
			return errors.New("match: nd_target needs ICMPv6 type 135 or 136")
		}
	}
	return nil
}

// tracked tells whether the condition on ct_state excludes packets that have no
// valid connection: it asks for a bit that such a packet lacks, or says +trk-inv.
func (b *matchBuilder) tracked() bool {
	value, mask := b.value[FieldCTState].Uint64(), b.mask[FieldCTState].Uint64()
	return value&(CtNew|CtEst|CtRel|CtRpl|CtSNAT|CtDNAT) != 0 ||
		value&CtTrk != 0 && mask&CtInv != 0 && value&CtInv == 0
}

func (b *matchBuilder) match() Match {
	var out [256]byte
	oxm := out[:0]
	for id := b.present.next(0); id < fieldCount; id = b.present.next(id + 1) {
		if !b.mask[id].IsZero() {
			oxm = appendOXM(oxm, id, b.value[id], b.mask[id])
		}
	}
	if len(b.unknown) > 0 {
		sort.Strings(b.unknown)
		for _, u := range b.unknown {
			oxm = append(oxm, u...)
		}
	}
	return Match{oxm: string(oxm)}
}

func appendOXM(b []byte, id FieldID, value, mask Value) []byte {
	width := fields[id].width
	if mask == id.full() {
		b = binary.BigEndian.AppendUint32(b, id.header(false, width))
		return append(b, value[16-width:]...)
	}
	b = binary.BigEndian.AppendUint32(b, id.header(true, 2*width))
	b = append(b, value[16-width:]...)
	return append(b, mask[16-width:]...)
}

// IsAny tells whether the match takes every packet.
func (m Match) IsAny() bool { return m.oxm == "" }

// Foreign tells whether the match has conditions on fields that this package
// does not know; Fields leaves them out.
func (m Match) Foreign() bool {
	foreign := false
	m.walk(func(f Field, known bool) { foreign = foreign || !known })
	return foreign
}

// Fields are the conditions of the match, in canonical order.
func (m Match) Fields() []Field {
	var out []Field
	m.walk(func(f Field, known bool) {
		if known {
			out = append(out, f)
		}
	})
	return out
}

// Field is the condition on one field; false where there is none. It looks at the
// others' headers alone: reports of packets are read by it.
func (m Match) Field(id FieldID) (Field, bool) {
	high, low, number := byte(fields[id].class>>8), byte(fields[id].class), fields[id].number<<1
	for rest := m.oxm; len(rest) >= 4 && len(rest) >= 4+int(rest[3]); rest = rest[4+int(rest[3]):] {
		if rest[0] != high || rest[1] != low || rest[2]&^1 != number {
			continue
		}
		e, _, err := cutOXM(rest)
		if err != nil {
			return Field{}, false
		}
		return e.field()
	}
	return Field{}, false
}

// With adds conditions to the match, as NewMatch would have.
func (m Match) With(list ...Field) Match {
	return NewMatch(append(m.Fields(), list...)...)
}

func (m Match) walk(visit func(f Field, known bool)) {
	for rest := m.oxm; rest != ""; {
		entry, tail, err := cutOXM(rest)
		if err != nil {
			return
		}
		f, known := entry.field()
		visit(f, known)
		rest = tail
	}
}

// oxmEntry is one checked TLV of a match or of packet metadata.
type oxmEntry struct {
	class   uint16
	number  uint8
	hasMask bool
	body    string // value, then mask if there is one
	raw     string
}

var errShortOXM = errors.New("oxm: cut short")

// cutOXM splits the first TLV off.
func cutOXM(s string) (oxmEntry, string, error) {
	if len(s) < 4 {
		return oxmEntry{}, "", errShortOXM
	}
	length := int(s[3])
	if len(s) < 4+length {
		return oxmEntry{}, "", errShortOXM
	}
	e := oxmEntry{
		class:   uint16(s[0])<<8 | uint16(s[1]),
		number:  s[2] >> 1,
		hasMask: s[2]&1 != 0,
		body:    s[4 : 4+length],
		raw:     s[:4+length],
	}
	if e.hasMask && e.class != classExperimenter && length%2 != 0 {
		return oxmEntry{}, "", errors.New("oxm: mask and value differ in length")
	}
	return e, s[4+length:], nil
}

// field reads a TLV that maps to exactly one known field.
func (e oxmEntry) field() (Field, bool) {
	id, ok := fieldByHeader(e.class, e.number)
	if !ok {
		return Field{}, false
	}
	width := int(fields[id].width)
	f := Field{ID: id, Mask: id.full()}
	switch {
	case !e.hasMask && len(e.body) == width:
		copy(f.Value[16-width:], e.body)
	case e.hasMask && len(e.body) == 2*width:
		copy(f.Value[16-width:], e.body[:width])
		f.Mask = Value{}
		copy(f.Mask[16-width:], e.body[width:])
	default:
		return Field{}, false
	}
	return f, true
}

// decodeOXM reads TLVs into a builder, which splits wide registers into ours, and
// keeps what is unknown.
func (b *matchBuilder) decodeOXM(s string) error {
	for s != "" {
		e, tail, err := cutOXM(s)
		if err != nil {
			return err
		}
		s = tail
		if b.splitRegisters(e) {
			continue
		}
		f, ok := e.field()
		if !ok {
			b.unknown = append(b.unknown, e.raw)
			continue
		}
		f.Value = f.Value.And(f.Mask)
		if err := b.add(f); err != nil {
			return err
		}
	}
	return nil
}

// splitRegisters takes a 64-bit register apart.
func (b *matchBuilder) splitRegisters(e oxmEntry) bool {
	if e.class != classPacketReg || e.number >= 8 {
		return false
	}
	first, words := int(e.number)*2, 2
	want := words * 4
	if e.hasMask {
		want *= 2
	}
	if len(e.body) != want {
		return false
	}
	for i := range words {
		f := Field{ID: FieldReg(first + i), Mask: Uint(0xffffffff)}
		copy(f.Value[12:], e.body[i*4:i*4+4])
		if e.hasMask {
			copy(f.Mask[12:], e.body[words*4+i*4:words*4+i*4+4])
		}
		f.Value = f.Value.And(f.Mask)
		if f.Mask.IsZero() {
			continue
		}
		if err := b.add(f); err != nil {
			return false
		}
	}
	return true
}

// decodeMatch reads the TLVs of a flow's match.
func decodeMatch(s string) (Match, error) {
	var b matchBuilder
	if err := b.decodeOXM(s); err != nil {
		return Match{}, err
	}
	return b.match(), nil
}

// Compare orders matches, in no order but a fixed one.
func (m Match) Compare(o Match) int { return strings.Compare(m.oxm, o.oxm) }
