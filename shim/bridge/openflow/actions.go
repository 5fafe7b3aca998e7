package openflow

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Reserved ports.
const (
	PortInPort     uint32 = 0xfffffff8 // back where the packet came from
	PortNormal     uint32 = 0xfffffffa
	PortController uint32 = 0xfffffffd
	PortLocal      uint32 = 0xfffffffe // the bridge's own interface
	PortAny        uint32 = 0xffffffff
)

// Action is one step that a flow or bucket takes: one of the types of this
// package whose name ends the list of NewActions' documentation.
type Action interface {
	// append writes the step as OpenFlow does.
	append(b []byte) []byte
	// String is the step in the text form of ovs-ofctl.
	String() string
}

// Actions are the steps that a flow takes, immutable and comparable. The zero
// Actions drop the packet.
type Actions struct {
	steps string // a list of OpenFlow actions
	next  uint16 // table of goto_table plus one; 0: none
}

// NewActions makes Actions of steps: Output, OutputReg, SetField, Move, CT,
// Conjunction, Controller, ToGroup, MeterBy, Resubmit, Learn, Foreign, and last,
// at most once, Goto. None means drop. It panics where Goto is not last: OpenFlow
// executes it last wherever it stands.
func NewActions(list ...Action) Actions {
	var (
		buf [256]byte
		out Actions
	)
	steps := buf[:0]
	for i, a := range list {
		if g, ok := a.(Goto); ok {
			if i != len(list)-1 {
				panic("openflow: goto_table must be the last action")
			}
			out.next = uint16(g) + 1
			continue
		}
		steps = a.append(steps)
	}
	out.steps = string(steps)
	return out
}

// Drop are the Actions that drop the packet.
func Drop() Actions { return Actions{} }

// IsDrop tells whether nothing happens to the packet.
func (a Actions) IsDrop() bool { return a == Actions{} }

// Goto continues in a later table, after all other steps.
type Goto uint8

// GotoTable is Goto.
func GotoTable(table uint8) Action { return Goto(table) }

func (g Goto) append(b []byte) []byte { return b }

// Output sends the packet out of a port.
type Output struct {
	Port uint32
	// MaxLen is how much of the packet a controller receives; 0 for ports.
	MaxLen uint16
}

// OutputPort sends the packet out of a port; nothing leaves by the port that
// the packet came from.
func OutputPort(port uint32) Action { return Output{Port: port} }

// InPortOutput sends the packet back out of the port that it came from.
func InPortOutput() Action { return Output{Port: PortInPort} }

func (a Output) append(b []byte) []byte {
	b = append(b, 0, 0, 0, 16)
	b = binary.BigEndian.AppendUint32(b, a.Port)
	b = binary.BigEndian.AppendUint16(b, a.MaxLen)
	return append(b, 0, 0, 0, 0, 0, 0)
}

// Bits is a range of bits of a field.
type Bits struct {
	Field  FieldID
	Offset uint16 // of the lowest bit
	Len    uint16 // 1 to 128
}

// WholeField is every bit of a field.
func WholeField(id FieldID) Bits { return Bits{id, 0, uint16(id.Bits())} }

// RegBits is a range of bits of register n.
func RegBits(n int, offset, length uint16) Bits { return Bits{FieldReg(n), offset, length} }

func (r Bits) check() {
	if r.Len == 0 || int(r.Offset)+int(r.Len) > r.Field.Bits() {
		panic(fmt.Sprintf("openflow: bits %d+%d exceed field %s", r.Offset, r.Len, r.Field))
	}
}

// OutputReg sends the packet out of the port that some bits name.
type OutputReg struct {
	From Bits
}

// OutputRegister sends the packet out of the port that register n names.
func OutputRegister(n int) Action { return OutputReg{WholeField(FieldReg(n))} }

func (a OutputReg) append(b []byte) []byte {
	a.From.check()
	b = appendNicira(b, 24, nxOutputReg)
	b = binary.BigEndian.AppendUint16(b, a.From.Offset<<6|(a.From.Len-1))
	b = binary.BigEndian.AppendUint32(b, a.From.Field.header(false, fields[a.From.Field].width))
	return append(b, 0xff, 0xff, 0, 0, 0, 0, 0, 0)
}

// SetField overwrites the bits of a field that Mask names.
type SetField Field

// Set overwrites a whole field.
func Set(id FieldID, v Value) Action { return SetField{id, v, id.full()} }

// SetMasked overwrites bits of a field.
func SetMasked(id FieldID, value, mask Value) Action { return SetField{id, value.And(mask), mask} }

// SetReg overwrites the bits of register n that mask names.
func SetReg(n int, value, mask uint32) Action {
	return SetMasked(FieldReg(n), Uint(uint64(value)), Uint(uint64(mask)))
}

// Load writes a number into a range of bits.
func Load(to Bits, value uint64) Action {
	to.check()
	return SetMasked(to.Field, Uint(value).Shift(int(to.Offset)), Ones(int(to.Offset), int(to.Len)))
}

// SetEthSrc overwrites the sender's hardware address.
func SetEthSrc(mac [6]byte) Action { return Set(FieldEthSrc, MAC(mac)) }

// SetEthDst overwrites the receiver's hardware address.
func SetEthDst(mac [6]byte) Action { return Set(FieldEthDst, MAC(mac)) }

// SetCtMark overwrites bits of the connection's mark, in CT.Exec.
func SetCtMark(value, mask uint32) Action {
	return SetMasked(FieldCTMark, Uint(uint64(value)), Uint(uint64(mask)))
}

// SetCtLabel overwrites bits of the connection's label, in CT.Exec.
func SetCtLabel(value, mask [16]byte) Action { return SetMasked(FieldCTLabel, value, mask) }

func (a SetField) append(b []byte) []byte {
	start := len(b)
	b = append(b, 0, 25, 0, 0)
	b = appendOXM(b, a.ID, a.Value.And(a.Mask), a.Mask)
	return padAction(b, start)
}

// Move copies bits of a field into another; both ranges are as long.
type Move struct {
	From, To Bits
}

// MoveBits copies bits of a field into another.
func MoveBits(from, to Bits) Action { return Move{from, to} }

func (a Move) append(b []byte) []byte {
	a.From.check()
	a.To.check()
	if a.From.Len != a.To.Len {
		panic("openflow: move between ranges of different length")
	}
	start := len(b)
	b = append(b, 0, 28, 0, 0)
	b = binary.BigEndian.AppendUint16(b, a.From.Len)
	b = binary.BigEndian.AppendUint16(b, a.From.Offset)
	b = binary.BigEndian.AppendUint16(b, a.To.Offset)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, a.From.Field.header(false, fields[a.From.Field].width))
	b = binary.BigEndian.AppendUint32(b, a.To.Field.header(false, fields[a.To.Field].width))
	return padAction(b, start)
}

// CT sends the packet through the connection tracker.
type CT struct {
	Commit bool
	Force  bool // with Commit: replace an entry of the other direction
	Zone   uint16
	// ZoneFrom, where its Len is not zero, is where the zone stands instead.
	ZoneFrom Bits
	// Recirc continues the packet in Table once it is tracked; without it the
	// packet goes on as it was, and only its copy is tracked.
	Recirc bool
	Table  uint8
	NAT    NAT
	// Exec are changes of ct_mark and ct_label: SetField and Move. Commit only.
	Exec []Action
}

// Kinds of translation.
const (
	NATNone    NATKind = iota // leave addresses alone
	NATApply                  // apply what the connection was committed with
	NATSrc                    // translate the source
	NATDst                    // translate the destination
	NATSrcAuto                // source, without a range
)

// NATKind is a kind of translation.
type NATKind uint8

// NAT says how the connection tracker translates. A zero MaxAddr or MaxPort
// says that the range ends where it begins; a zero MinPort leaves ports alone.
type NAT struct {
	Kind             NATKind
	MinAddr, MaxAddr netip.Addr
	MinPort, MaxPort uint16
	flags            uint16 // persistent, hash, random, as read
}

func (a CT) append(b []byte) []byte {
	start := len(b)
	b = appendNicira(b, 0, nxCT)
	var flags uint16
	if a.Commit {
		flags |= 1
	}
	if a.Force {
		flags |= 2
	}
	b = binary.BigEndian.AppendUint16(b, flags)
	if a.ZoneFrom.Len != 0 {
		b = binary.BigEndian.AppendUint32(b, a.ZoneFrom.Field.header(false, fields[a.ZoneFrom.Field].width))
		b = binary.BigEndian.AppendUint16(b, a.ZoneFrom.Offset<<6|(a.ZoneFrom.Len-1))
	} else {
		b = append(b, 0, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, a.Zone)
	}
	table := byte(0xff)
	if a.Recirc {
		table = a.Table
	}
	b = append(b, table, 0, 0, 0, 0, 0)
	b = a.NAT.append(b)
	for _, e := range a.Exec {
		b = e.append(b)
	}
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	return b
}

// Flags of translation and of its range.
const (
	natSrc, natDst             = 1, 2
	natMin4, natMax4           = 1, 2
	natMin6, natMax6           = 4, 8
	natMinPort, natMaxPort     = 16, 32
	natPersistent, natHash     = 4, 8
	natRandom                  = 16
	natKnown                   = natSrc | natDst | natPersistent | natHash | natRandom
	natRangeKnown          int = 0x3f
)

func (n NAT) append(b []byte) []byte {
	if n.Kind == NATNone {
		return b
	}
	start := len(b)
	flags := n.flags
	switch n.Kind {
	case NATSrc, NATSrcAuto:
		flags |= natSrc
	case NATDst:
		flags |= natDst
	}
	b = appendNicira(b, 0, nxNAT)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, flags)
	ranges := 0
	at := len(b)
	b = append(b, 0, 0)
	put := func(addr netip.Addr, v4, v6 int) {
		switch {
		case addr.Is4():
			a4 := addr.As4()
			b, ranges = append(b, a4[:]...), ranges|v4
		case addr.Is6():
			a16 := addr.As16()
			b, ranges = append(b, a16[:]...), ranges|v6
		}
	}
	put(n.MinAddr, natMin4, natMin6)
	if n.MaxAddr != n.MinAddr {
		put(n.MaxAddr, natMax4, natMax6)
	}
	if n.MinAddr.IsValid() && n.MinPort != 0 {
		b, ranges = binary.BigEndian.AppendUint16(b, n.MinPort), ranges|natMinPort
		if n.MaxPort != 0 && n.MaxPort != n.MinPort {
			b, ranges = binary.BigEndian.AppendUint16(b, n.MaxPort), ranges|natMaxPort
		}
	}
	binary.BigEndian.PutUint16(b[at:], uint16(ranges))
	return padAction(b, start)
}

// Conjunction says that the packet satisfies one clause (counted from 0) of a
// conjunction. A flow that has one has nothing else but further ones.
type Conjunction struct {
	ID      uint32
	Clause  uint8
	Clauses uint8
}

func (a Conjunction) append(b []byte) []byte {
	if a.Clauses < 2 || a.Clauses > 64 || a.Clause >= a.Clauses {
		panic(fmt.Sprintf("openflow: conjunction %d has no clause %d of %d", a.ID, a.Clause, a.Clauses))
	}
	b = appendNicira(b, 16, nxConjunction)
	b = append(b, a.Clause, a.Clauses)
	return binary.BigEndian.AppendUint32(b, a.ID)
}

// Controller sends a copy of the packet, or the packet itself where it pauses,
// to the controllers whose id is ControllerID, with UserData.
type Controller struct {
	ControllerID uint16
	MaxLen       uint16 // how much of the packet is asked for; 0 or 0xffff: all, as Open vSwitch 3.1 sends anyway
	MeterID      uint32 // limits the copies, not the packets; 0: none
	UserData     string // any bytes
	Pause        bool   // hold the packet until a controller resumes it
	Reason       uint8  // 0 and ReasonAction: because a flow says so
}

// Reasons of a packet-in.
const (
	ReasonNoMatch     = 0
	ReasonAction      = 1
	ReasonInvalidTTL  = 2
	ReasonActionSet   = 3
	ReasonGroup       = 4
	ReasonPacketOut   = 5
	propMaxLen        = 0
	propControllerID  = 1
	propReason        = 2
	propUserData      = 3
	propPause         = 4
	propMeterID       = 5
	wholePacket       = 0xffff
	nxResubmitTable   = 14
	nxOutputReg       = 15
	nxLearn           = 16
	nxLearn2          = 45
	nxConjunction     = 34
	nxCT              = 35
	nxNAT             = 36
	nxController      = 20
	nxController2     = 37
	niciraVendor      = 0x00002320
	typeExperimenter  = 0xffff
	actionSetField    = 25
	actionCopyField   = 28
	actionMeter       = 29
	actionGroup       = 22
	actionOutput      = 0
	oldPortInPort     = 0xfff8 // In 16 bits.
	instructionGoto   = 1
	instructionApply  = 4
	instructionHeader = 8
)

func (a Controller) append(b []byte) []byte {
	start := len(b)
	b = appendNicira(b, 0, nxController2)
	b = append(b, 0, 0, 0, 0, 0, 0)
	if a.MaxLen != 0 && a.MaxLen != wholePacket {
		b = appendProp(b, propMaxLen, []byte{byte(a.MaxLen >> 8), byte(a.MaxLen), 0, 0})
	}
	if a.ControllerID != 0 {
		b = appendProp(b, propControllerID, []byte{byte(a.ControllerID >> 8), byte(a.ControllerID), 0, 0})
	}
	if a.Reason != 0 && a.Reason != ReasonAction {
		b = appendProp(b, propReason, []byte{a.Reason, 0, 0, 0})
	}
	if a.UserData != "" {
		b = appendProp(b, propUserData, []byte(a.UserData))
	}
	if a.Pause {
		b = appendProp(b, propPause, nil)
	}
	if a.MeterID != 0 {
		b = appendProp(b, propMeterID, binary.BigEndian.AppendUint32(nil, a.MeterID))
	}
	return padAction(b, start)
}

// ToGroup hands the packet to a group.
type ToGroup uint32

func (a ToGroup) append(b []byte) []byte {
	b = append(b, 0, actionGroup, 0, 8)
	return binary.BigEndian.AppendUint32(b, uint32(a))
}

// MeterBy drops the packet where it exceeds a meter.
type MeterBy uint32

func (a MeterBy) append(b []byte) []byte {
	b = append(b, 0, actionMeter, 0, 8)
	return binary.BigEndian.AppendUint32(b, uint32(a))
}

// Resubmit looks the packet up in a table, any table, and comes back: what was
// done to its fields there stays.
type Resubmit uint8

func (a Resubmit) append(b []byte) []byte {
	b = appendNicira(b, 16, nxResubmitTable)
	b = binary.BigEndian.AppendUint16(b, oldPortInPort)
	return append(b, byte(a), 0, 0, 0)
}

// Foreign is a step or instruction that this package does not know, as read.
type Foreign string

func (a Foreign) append(b []byte) []byte { return append(b, a...) }

func appendNicira(b []byte, length uint16, subtype uint16) []byte {
	b = append(b, 0xff, 0xff)
	b = binary.BigEndian.AppendUint16(b, length)
	b = binary.BigEndian.AppendUint32(b, niciraVendor)
	return binary.BigEndian.AppendUint16(b, subtype)
}

// appendProp writes a property: type, length without padding, content, padding.
// Numbers of one or two bytes count as four.
func appendProp(b []byte, typ uint16, content []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(content)))
	b = append(b, content...)
	return pad8(b, len(content)+4)
}

// pad8 adds zeros after n bytes until their number is a multiple of eight.
func pad8(b []byte, n int) []byte {
	for ; n%8 != 0; n++ {
		b = append(b, 0)
	}
	return b
}

// padAction pads the action that began at start and writes its length.
func padAction(b []byte, start int) []byte {
	b = pad8(b, len(b)-start)
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	return b
}

// appendInstructions writes the Actions of a flow as OpenFlow's instructions.
func (a Actions) appendInstructions(b []byte) []byte {
	if a.steps != "" {
		b = append(b, 0, instructionApply)
		b = binary.BigEndian.AppendUint16(b, uint16(instructionHeader+len(a.steps)))
		b = append(b, 0, 0, 0, 0)
		b = append(b, a.steps...)
	}
	if a.next != 0 {
		b = append(b, 0, instructionGoto, 0, 8, byte(a.next-1), 0, 0, 0)
	}
	return b
}
