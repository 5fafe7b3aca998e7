package openflow

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Learn makes a flow of the packet: it adds one to a table, or replaces the one
// with the same key there, each time that the switch works out what becomes of a
// packet. Packets meet the learned flow later, never the one that made it.
type Learn struct {
	Table    uint8 // not 255
	Priority uint16
	// IdleTimeout and HardTimeout, in seconds, are those of the learned flow.
	IdleTimeout, HardTimeout uint16
	Cookie                   uint64 // of the learned flow
	// Limit, where it is not zero, is how many flows of this cookie the table may
	// hold; beyond it nothing is learned, nor is learned anew what is there. Open
	// vSwitch 3.1 does not hold a controller's packets to it.
	Limit uint32
	// Specs are what the learned flow matches and does, in order: the family comes
	// before an address, the protocol before a port.
	Specs []LearnSpec
}

// LearnSpec copies bits into a learned flow: of the packet's field where From has
// bits, and otherwise of Value.
type LearnSpec struct {
	From  Bits  // Len 0: Value counts
	Value Value // its lowest bits, as many as To has
	To    Bits
	Load  bool // the learned flow sets To; otherwise it matches it
}

// LearnMatch has the learned flow match a field by what the packet has there.
func LearnMatch(id FieldID) LearnSpec {
	return LearnSpec{From: WholeField(id), To: WholeField(id)}
}

// LearnMatchValue has the learned flow match a field by a value.
func LearnMatchValue(id FieldID, v Value) LearnSpec {
	return LearnSpec{Value: v, To: WholeField(id)}
}

// LearnLoad has the learned flow set bits to what the packet has in others.
func LearnLoad(from, to Bits) LearnSpec { return LearnSpec{From: from, To: to, Load: true} }

// LearnLoadValue has the learned flow set bits to a value.
func LearnLoadValue(v Value, to Bits) LearnSpec { return LearnSpec{Value: v, To: to, Load: true} }

// Parts of a spec's header; below them stands the number of bits.
const (
	learnImmediate = 1 << 13
	learnLoad      = 1 << 11
	learnBits      = 0x3ff
	learnHeader    = 32 // of the action, without Limit
)

func (a Learn) append(b []byte) []byte {
	if a.Table == AllTables {
		panic("openflow: learn into table 255")
	}
	start := len(b)
	subtype := uint16(nxLearn)
	if a.Limit != 0 {
		subtype = nxLearn2
	}
	b = appendNicira(b, 0, subtype)
	b = binary.BigEndian.AppendUint16(b, a.IdleTimeout)
	b = binary.BigEndian.AppendUint16(b, a.HardTimeout)
	b = binary.BigEndian.AppendUint16(b, a.Priority)
	b = binary.BigEndian.AppendUint64(b, a.Cookie)
	b = append(b, 0, 0, a.Table, 0, 0, 0, 0, 0)
	if a.Limit != 0 {
		b = binary.BigEndian.AppendUint32(b, a.Limit)
		b = append(b, 0, 0, 0, 0)
	}
	for i := range a.Specs {
		b = a.Specs[i].append(b)
	}
	return padAction(b, start)
}

func (s *LearnSpec) append(b []byte) []byte {
	s.To.check()
	header := s.To.Len
	if s.Load {
		header |= learnLoad
	}
	if s.From.Len != 0 {
		s.From.check()
		if s.From.Len != s.To.Len {
			panic("openflow: learn between ranges of different length")
		}
		b = binary.BigEndian.AppendUint16(b, header)
		b = s.From.appendLearned(b)
		return s.To.appendLearned(b)
	}
	if !s.Value.AndNot(Ones(0, int(s.To.Len))).IsZero() {
		panic(fmt.Sprintf("openflow: learned value of %s exceeds %d bits", s.To.Field, s.To.Len))
	}
	b = binary.BigEndian.AppendUint16(b, header|learnImmediate)
	b = append(b, s.Value[16-immediateLen(s.To.Len):]...)
	return s.To.appendLearned(b)
}

// immediateLen is the length of a value of so many bits, in whole 16-bit words.
func immediateLen(bits uint16) int { return int(bits+15) / 16 * 2 }

func (r Bits) appendLearned(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, r.Field.learnHeader())
	return binary.BigEndian.AppendUint16(b, r.Offset)
}

// oldNumbers are the numbers of the fields that a learn action names by their
// oldest headers: those of class NXM 0, and then of class NXM 1.
var oldNumbers = [2]map[FieldID]uint8{
	{
		FieldEthDst: 1, FieldEthSrc: 2, FieldEthType: 3, FieldIPProto: 6, FieldIPv4Src: 7, FieldIPv4Dst: 8,
		FieldTCPSrc: 9, FieldTCPDst: 10, FieldUDPSrc: 11, FieldUDPDst: 12, FieldICMPType: 13, FieldICMPCode: 14,
		FieldARPOp: 15, FieldARPSPA: 16, FieldARPTPA: 17,
	},
	{
		FieldTunID: 16, FieldARPSHA: 17, FieldARPTHA: 18, FieldIPv6Src: 19, FieldIPv6Dst: 20, FieldICMPv6Type: 21,
		FieldICMPv6Code: 22, FieldNDTarget: 23, FieldNDSLL: 24, FieldNDTLL: 25, FieldIPECN: 28, FieldTCPFlags: 34,
	},
}

// learnHeader is the header by which the switch gives the field back in a learn
// action: the oldest that it has.
func (id FieldID) learnHeader() uint32 {
	f := fields[id]
	for class, numbers := range oldNumbers {
		if n, ok := numbers[id]; ok {
			return uint32(class)<<16 | uint32(n)<<9 | uint32(f.width)
		}
	}
	return id.header(false, f.width)
}

// learnedFields finds a field by its learnHeader.
var learnedFields = func() map[uint32]FieldID {
	out := map[uint32]FieldID{}
	for id := range fieldCount {
		out[id.learnHeader()] = id
	}
	return out
}()

// parseLearn reads what append writes; nil: not that.
func parseLearn(s string) Action {
	if len(s) < learnHeader {
		return nil
	}
	a := Learn{
		IdleTimeout: be16(s[10:]),
		HardTimeout: be16(s[12:]),
		Priority:    be16(s[14:]),
		Cookie:      be64(s[16:]),
		Table:       s[26],
	}
	rest := s[learnHeader:]
	if be16(s[8:]) == nxLearn2 {
		if len(rest) < 8 {
			return nil
		}
		a.Limit, rest = be32(rest), rest[8:]
	}
	for len(rest) >= 2 && be16(rest) != 0 {
		spec, tail, ok := cutLearnSpec(rest)
		if !ok {
			return nil
		}
		a.Specs, rest = append(a.Specs, spec), tail
	}
	if a.Table == AllTables {
		return nil
	}
	return a
}

// cutLearnSpec splits the first spec off.
func cutLearnSpec(s string) (spec LearnSpec, tail string, ok bool) {
	header := be16(s)
	n := header & learnBits
	if header&^(learnImmediate|learnLoad|learnBits) != 0 || n == 0 || n > 128 {
		return spec, "", false
	}
	spec.Load = header&learnLoad != 0
	s = s[2:]
	if header&learnImmediate == 0 {
		if spec.From, s, ok = cutLearnedBits(s, n); !ok {
			return spec, "", false
		}
	} else {
		size := immediateLen(n)
		if len(s) < size {
			return spec, "", false
		}
		copy(spec.Value[16-size:], s)
		s = s[size:]
		if !spec.Value.AndNot(Ones(0, int(n))).IsZero() {
			return spec, "", false
		}
	}
	spec.To, s, ok = cutLearnedBits(s, n)
	return spec, s, ok
}

func cutLearnedBits(s string, n uint16) (Bits, string, bool) {
	if len(s) < 6 {
		return Bits{}, "", false
	}
	id, ok := learnedFields[be32(s)]
	if !ok {
		return Bits{}, "", false
	}
	r := Bits{id, be16(s[4:]), n}
	return r, s[6:], int(r.Offset)+int(r.Len) <= id.Bits()
}

func (a Learn) String() string {
	parts := []string{fmt.Sprintf("table=%d", a.Table)}
	add := func(say bool, format string, value any) {
		if say {
			parts = append(parts, fmt.Sprintf(format, value))
		}
	}
	add(a.IdleTimeout != 0, "idle_timeout=%d", a.IdleTimeout)
	add(a.HardTimeout != 0, "hard_timeout=%d", a.HardTimeout)
	add(a.Priority != 0x8000, "priority=%d", a.Priority) // what is not said is that
	add(a.Cookie != 0, "cookie=0x%x", a.Cookie)
	add(a.Limit != 0, "limit=%d", a.Limit)
	for _, spec := range a.Specs {
		parts = append(parts, spec.String())
	}
	return "learn(" + strings.Join(parts, ",") + ")"
}

// String is the spec in the text form of ovs-ofctl.
func (s LearnSpec) String() string {
	whole := int(s.To.Len) == s.To.Field.Bits()
	switch {
	case s.Load && s.From.Len != 0:
		return "load:" + s.From.movable() + "->" + s.To.movable()
	case s.Load:
		return "load:" + hexText(s.Value) + "->" + s.To.movable()
	case s.From == s.To:
		return s.To.movable()
	case s.From.Len != 0:
		return s.To.movable() + "=" + s.From.movable()
	case whole:
		return s.To.Field.actionName() + "=" + Exactly(s.To.Field, s.Value).valueText()
	}
	return s.To.movable() + "=" + hexText(s.Value)
}
