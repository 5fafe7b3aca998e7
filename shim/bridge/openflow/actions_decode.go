package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

var errShortAction = errors.New("action: cut short")

// List are the steps, in order; where a table follows, Goto is the last.
func (a Actions) List() []Action {
	list, err := decodeSteps(a.steps, 0)
	if err != nil {
		list = []Action{Foreign(a.steps)} // only of Actions that were read
	}
	if a.next != 0 {
		list = append(list, Goto(a.next-1))
	}
	return list
}

// Size is the number of bytes that the Actions take in a message; a message has
// at most 65,535.
func (a Actions) Size() int { return len(a.steps) + 2*instructionHeader }

// maxNesting bounds actions within actions; OpenFlow needs two levels.
const maxNesting = 3

// decodeSteps reads a list of OpenFlow actions. What is unknown, or encoded in
// another way than this package encodes it, becomes Foreign, so that the steps
// always encode to the bytes they came from.
func decodeSteps(s string, depth int) ([]Action, error) {
	if depth > maxNesting {
		return nil, errors.New("action: nested too deep")
	}
	var out []Action
	for s != "" {
		if len(s) < 8 {
			return nil, errShortAction
		}
		length := int(be16(s[2:]))
		if length < 8 || length%8 != 0 || length > len(s) {
			return nil, fmt.Errorf("action: length %d of %d", length, len(s))
		}
		one := s[:length]
		s = s[length:]
		out = append(out, decodeStep(one, depth))
	}
	return out, nil
}

func decodeStep(s string, depth int) Action {
	if a := parseStep(s, depth); a != nil && string(a.append(nil)) == s {
		return a
	}
	return Foreign(s)
}

// parseStep reads one action whose length was checked; nil: not one of ours.
func parseStep(s string, depth int) Action {
	switch be16(s) {
	case actionOutput:
		if len(s) == 16 {
			return Output{Port: be32(s[4:]), MaxLen: be16(s[8:])}
		}
	case actionGroup:
		return ToGroup(be32(s[4:]))
	case actionMeter:
		return MeterBy(be32(s[4:]))
	case actionSetField:
		e, _, err := cutOXM(s[4:])
		if err != nil {
			return nil
		}
		if f, ok := e.field(); ok {
			return SetField(f)
		}
	case actionCopyField:
		return parseMove(s)
	case typeExperimenter:
		if len(s) >= 16 && be32(s[4:]) == niciraVendor {
			return parseNicira(s, depth)
		}
	}
	return nil
}

func parseNicira(s string, depth int) Action {
	switch be16(s[8:]) {
	case nxResubmitTable:
		return Resubmit(s[12])
	case nxOutputReg:
		if len(s) == 24 {
			if r, ok := parseBits(be32(s[12:]), be16(s[10:])); ok {
				return OutputReg{r}
			}
		}
	case nxConjunction:
		a := Conjunction{Clause: s[10], Clauses: s[11], ID: be32(s[12:])}
		if a.Clauses >= 2 && a.Clauses <= 64 && a.Clause < a.Clauses {
			return a
		}
	case nxController2:
		return parseController(s)
	case nxCT:
		return parseCT(s, depth)
	case nxLearn, nxLearn2:
		return parseLearn(s)
	}
	return nil
}

func parseBits(header uint32, offsetAndLen uint16) (Bits, bool) {
	id, ok := fieldByHeader(uint16(header>>16), uint8(header>>9)&0x7f)
	if !ok {
		return Bits{}, false
	}
	r := Bits{id, offsetAndLen >> 6, offsetAndLen&0x3f + 1}
	return r, int(r.Offset)+int(r.Len) <= id.Bits()
}

func parseMove(s string) Action {
	if len(s) != 24 {
		return nil
	}
	n := be16(s[4:])
	from, ok1 := fieldByHeader(be16(s[12:]), s[14]>>1)
	to, ok2 := fieldByHeader(be16(s[16:]), s[18]>>1)
	if !ok1 || !ok2 || n == 0 {
		return nil
	}
	a := Move{Bits{from, be16(s[6:]), n}, Bits{to, be16(s[8:]), n}}
	if int(a.From.Offset)+int(n) > from.Bits() || int(a.To.Offset)+int(n) > to.Bits() {
		return nil
	}
	return a
}

func parseController(s string) Action {
	a := Controller{}
	rest := s[16:]
	for rest != "" {
		typ, content, tail, err := cutProp(rest)
		if err != nil {
			return nil
		}
		rest = tail
		switch {
		case typ == propMaxLen && len(content) >= 2:
			a.MaxLen = be16(content)
		case typ == propControllerID && len(content) >= 2:
			a.ControllerID = be16(content)
		case typ == propReason && len(content) >= 1:
			a.Reason = content[0]
		case typ == propUserData:
			a.UserData = content
		case typ == propPause && content == "":
			a.Pause = true
		case typ == propMeterID && len(content) == 4:
			a.MeterID = be32(content)
		default:
			return nil
		}
	}
	return a
}

// cutProp splits the first property off, without its padding.
func cutProp(s string) (typ uint16, content, tail string, err error) {
	if len(s) < 4 {
		return 0, "", "", errors.New("property: cut short")
	}
	length := int(be16(s[2:]))
	padded := (length + 7) &^ 7
	if length < 4 || padded > len(s) {
		return 0, "", "", fmt.Errorf("property: length %d of %d", length, len(s))
	}
	return be16(s), s[4:length], s[padded:], nil
}

func parseCT(s string, depth int) Action {
	if len(s) < 24 {
		return nil
	}
	flags := be16(s[10:])
	a := CT{Commit: flags&1 != 0, Force: flags&2 != 0}
	if src := be32(s[12:]); src != 0 {
		r, ok := parseBits(src, be16(s[16:]))
		if !ok {
			return nil
		}
		a.ZoneFrom = r
	} else {
		a.Zone = be16(s[16:])
	}
	if s[18] != 0xff {
		a.Recirc, a.Table = true, s[18]
	}
	rest := s[24:]
	if len(rest) >= 16 && be16(rest) == typeExperimenter && be32(rest[4:]) == niciraVendor && be16(rest[8:]) == nxNAT {
		length := int(be16(rest[2:]))
		if length < 16 || length > len(rest) {
			return nil
		}
		nat, ok := parseNAT(rest[:length])
		if !ok {
			return nil
		}
		a.NAT, rest = nat, rest[length:]
	}
	exec, err := decodeSteps(rest, depth+1)
	if err != nil {
		return nil
	}
	a.Exec = exec
	return a
}

func parseNAT(s string) (NAT, bool) {
	flags, ranges := be16(s[12:]), int(be16(s[14:]))
	if flags&^natKnown != 0 || ranges&^natRangeKnown != 0 {
		return NAT{}, false
	}
	n := NAT{flags: flags &^ (natSrc | natDst)}
	rest := s[16:]
	take := func(bit, size int) (string, bool) {
		if ranges&bit == 0 {
			return "", true
		}
		if len(rest) < size {
			return "", false
		}
		v := rest[:size]
		rest = rest[size:]
		return v, true
	}
	for _, part := range []struct {
		bit, size int
		store     func(v string)
	}{
		{natMin4, 4, func(v string) { n.MinAddr = netip.AddrFrom4([4]byte([]byte(v))) }},
		{natMax4, 4, func(v string) { n.MaxAddr = netip.AddrFrom4([4]byte([]byte(v))) }},
		{natMin6, 16, func(v string) { n.MinAddr = netip.AddrFrom16([16]byte([]byte(v))) }},
		{natMax6, 16, func(v string) { n.MaxAddr = netip.AddrFrom16([16]byte([]byte(v))) }},
		{natMinPort, 2, func(v string) { n.MinPort = be16(v) }},
		{natMaxPort, 2, func(v string) { n.MaxPort = be16(v) }},
	} {
		v, ok := take(part.bit, part.size)
		if !ok {
			return NAT{}, false
		}
		if v != "" {
			part.store(v)
		}
	}
	switch flags & (natSrc | natDst) {
	case 0:
		n.Kind = NATApply
	case natSrc:
		n.Kind = NATSrc
		if !n.MinAddr.IsValid() {
			n.Kind = NATSrcAuto
		}
	case natDst:
		n.Kind = NATDst
	default:
		return NAT{}, false
	}
	return n, true
}

// decodeInstructions reads the instructions of a flow. Those that we do not
// write (clear, write-actions, write-metadata) are kept as a Foreign step, so
// that such a flow never equals one of ours.
func decodeInstructions(s string) (Actions, error) {
	var out Actions
	var foreign []byte
	for s != "" {
		if len(s) < 8 {
			return Actions{}, errors.New("instruction: cut short")
		}
		length := int(be16(s[2:]))
		if length < 8 || length%8 != 0 || length > len(s) {
			return Actions{}, fmt.Errorf("instruction: length %d of %d", length, len(s))
		}
		switch be16(s) {
		case instructionGoto:
			out.next = uint16(s[4]) + 1
		case instructionApply:
			if _, err := decodeSteps(s[instructionHeader:length], 0); err != nil {
				return Actions{}, err
			}
			out.steps += s[instructionHeader:length]
		default:
			foreign = append(foreign, s[:length]...)
		}
		s = s[length:]
	}
	out.steps += string(foreign)
	return out, nil
}

func be16(s string) uint16 { return uint16(s[0])<<8 | uint16(s[1]) }

func be32(s string) uint32 { return uint32(be16(s))<<16 | uint32(be16(s[2:])) }

func be64(s string) uint64 { return binary.BigEndian.Uint64([]byte(s[:8])) }
