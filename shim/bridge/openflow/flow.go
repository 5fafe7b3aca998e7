package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// FlowKey identifies a flow in a bridge: a second flow with the same key
// replaces the first.
type FlowKey struct {
	Table    uint8
	Priority uint16
	Match    Match
}

// Flow is one entry of a bridge's tables.
type Flow struct {
	Table    uint8
	Priority uint16
	Match    Match
	// Cookie is the owner's mark on the flow; it plays no part in matching.
	Cookie  uint64
	Actions Actions
	// IdleTimeout and HardTimeout, in seconds, remove the flow when no packet
	// hit it for so long, or when it is so old; 0 means never.
	IdleTimeout, HardTimeout uint16
	// Packets, Bytes and Age are what was read back; ignored when installing.
	Packets, Bytes uint64
	Age            time.Duration
}

// Key identifies the flow.
func (f Flow) Key() FlowKey { return FlowKey{f.Table, f.Priority, f.Match} }

// Same tells whether two flows ask the same of a bridge: all but what is only
// read back.
func (f Flow) Same(o Flow) bool {
	return f.Key() == o.Key() && f.Cookie == o.Cookie && f.Actions == o.Actions &&
		f.IdleTimeout == o.IdleTimeout && f.HardTimeout == o.HardTimeout
}

// String is the flow in the text form of ovs-ofctl add-flow.
func (f Flow) String() string {
	var b strings.Builder
	if f.Cookie != 0 {
		fmt.Fprintf(&b, "cookie=0x%x,", f.Cookie)
	}
	fmt.Fprintf(&b, "table=%d,", f.Table)
	if f.IdleTimeout != 0 {
		fmt.Fprintf(&b, "idle_timeout=%d,", f.IdleTimeout)
	}
	if f.HardTimeout != 0 {
		fmt.Fprintf(&b, "hard_timeout=%d,", f.HardTimeout)
	}
	fmt.Fprintf(&b, "priority=%d", f.Priority)
	if m := f.Match.String(); m != "" {
		b.WriteString("," + m)
	}
	b.WriteString(" actions=" + f.Actions.String())
	return b.String()
}

// String is the key in the text form of ovs-ofctl.
func (k FlowKey) String() string {
	s := fmt.Sprintf("table=%d,priority=%d", k.Table, k.Priority)
	if m := k.Match.String(); m != "" {
		s += "," + m
	}
	return s
}

// Append writes the key, as bytes that no other key has.
func (k FlowKey) Append(b []byte) []byte {
	b = append(b, k.Table)
	b = binary.BigEndian.AppendUint16(b, k.Priority)
	return append(b, k.Match.oxm...)
}

// Commands of a flow modification.
const (
	flowAdd          = 0
	flowDeleteStrict = 4
)

// AppendFlowAdd writes the message that adds the flow, or replaces the one with
// its key and keeps that one's counters.
func AppendFlowAdd(b []byte, xid uint32, f *Flow) []byte {
	start := len(b)
	b = appendHeader(b, typeFlowMod, xid)
	b = appendFlowMod(b, f.Cookie, f.Table, flowAdd, f.IdleTimeout, f.HardTimeout, f.Priority)
	b = appendMatch(b, f.Match)
	b = f.Actions.appendInstructions(b)
	return finish(b, start)
}

// AppendFlowDelete writes the message that removes the flow with exactly this
// key; that there is none is no error.
func AppendFlowDelete(b []byte, xid uint32, k *FlowKey) []byte {
	start := len(b)
	b = appendHeader(b, typeFlowMod, xid)
	b = appendFlowMod(b, 0, k.Table, flowDeleteStrict, 0, 0, k.Priority)
	b = appendMatch(b, k.Match)
	return finish(b, start)
}

func appendFlowMod(b []byte, cookie uint64, table, command uint8, idle, hard, priority uint16) []byte {
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, 0)
	b = append(b, table, command)
	b = binary.BigEndian.AppendUint16(b, idle)
	b = binary.BigEndian.AppendUint16(b, hard)
	b = binary.BigEndian.AppendUint16(b, priority)
	return append(b,
		0xff, 0xff, 0xff, 0xff, // no buffer
		0xff, 0xff, 0xff, 0xff, // any port
		0xff, 0xff, 0xff, 0xff, // any group
		0, 0, 0, 0) // flags, importance
}

// appendMatch writes an ofp_match: type, length without padding, fields, padding.
func appendMatch(b []byte, m Match) []byte {
	b = append(b, 0, 1)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(m.oxm)))
	b = append(b, m.oxm...)
	return pad8(b, 4+len(m.oxm))
}

// cutMatch splits an ofp_match off.
func cutMatch(s string) (oxm, tail string, err error) {
	if len(s) < 4 {
		return "", "", errors.New("match: cut short")
	}
	length := int(be16(s[2:]))
	padded := (length + 7) &^ 7
	if be16(s) != 1 || length < 4 || padded > len(s) {
		return "", "", fmt.Errorf("match: type %d, length %d of %d", be16(s), length, len(s))
	}
	return s[4:length], s[padded:], nil
}

// FlowFilter chooses flows to read: those of Table, or of every table where it
// is AllTables, whose cookie under CookieMask is Cookie.
type FlowFilter struct {
	Table              uint8
	Cookie, CookieMask uint64
}

// AllTables is the table of a FlowFilter that chooses from every table.
const AllTables = 0xff

// AppendFlowStatsRequest writes the request for flows with their counters.
func AppendFlowStatsRequest(b []byte, xid uint32, f FlowFilter) []byte {
	start := len(b)
	b = appendMultipart(b, xid, multipartFlow)
	b = append(b, f.Table, 0, 0, 0)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, f.Cookie)
	b = binary.BigEndian.AppendUint64(b, f.CookieMask)
	b = appendMatch(b, Match{})
	return finish(b, start)
}

// DecodeFlowStats reads the flows of one part of the reply and hands each to
// visit. A flow that the codec cannot read as a whole ends it with an error.
func DecodeFlowStats(body []byte, visit func(Flow)) error {
	for s := string(body); s != ""; {
		if len(s) < 24 {
			return errors.New("flow stats: cut short")
		}
		length := int(be16(s))
		if length < 24 || length > len(s) {
			return fmt.Errorf("flow stats: length %d of %d", length, len(s))
		}
		f, err := decodeFlow(s[:length])
		if err != nil {
			return fmt.Errorf("flow stats: %w", err)
		}
		visit(f)
		s = s[length:]
	}
	return nil
}

func decodeFlow(s string) (Flow, error) {
	f := Flow{
		Table:       s[4],
		Priority:    be16(s[6:]),
		IdleTimeout: be16(s[8:]),
		HardTimeout: be16(s[10:]),
		Cookie:      be64(s[16:]),
	}
	oxm, rest, err := cutMatch(s[24:])
	if err != nil {
		return Flow{}, err
	}
	if f.Match, err = decodeMatch(oxm); err != nil {
		return Flow{}, err
	}
	if rest, err = f.decodeStats(rest); err != nil {
		return Flow{}, err
	}
	f.Actions, err = decodeInstructions(rest)
	return f, err
}

// Fields of the OpenFlow class of OXS, the statistics' counterpart of OXM.
const (
	oxsDuration = 0
	oxsPackets  = 4
	oxsBytes    = 5
)

func (f *Flow) decodeStats(s string) (string, error) {
	if len(s) < 4 {
		return "", errors.New("stats: cut short")
	}
	length := int(be16(s[2:]))
	padded := (length + 7) &^ 7
	if length < 4 || padded > len(s) {
		return "", fmt.Errorf("stats: length %d of %d", length, len(s))
	}
	tail := s[padded:]
	for s = s[4:length]; s != ""; {
		e, rest, err := cutOXM(s)
		if err != nil {
			return "", err
		}
		s = rest
		if e.class != 0x8002 || len(e.body) != 8 {
			continue
		}
		switch e.number {
		case oxsDuration:
			f.Age = time.Duration(be32(e.body))*time.Second + time.Duration(be32(e.body[4:]))
		case oxsPackets:
			f.Packets = be64(e.body)
		case oxsBytes:
			f.Bytes = be64(e.body)
		}
	}
	return tail, nil
}
