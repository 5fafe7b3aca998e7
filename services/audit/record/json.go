package record

import (
	"strconv"
	"unicode/utf8"
)

// AppendJSON appends a line as one JSON object, newline included. Field names
// are stable; fields that do not apply are left out; times are RFC 3339 in UTC.
//
//	cursor node boot sequence received
//	packet: first last count direction action reason table policies isolation rule logLabel openflowPriority
//	        appliedTo peer sourceIP sourcePort destinationIP destinationPort protocol icmpType icmpCode length
//	        tcpFlags redirected overflow staged{action policy rule policies}
//	        of reason "spoof" too: sourceMAC claimedMAC targetIP; protocol may be ARP, or the number of an Ethernet
//	        type (0x88cc)
//	loss:   from to count stage reason
//
// Of merged records, cursor, sequence and received are the first one's; count,
// first and last are of all.
func AppendJSON(b []byte, l *Line) []byte {
	b = append(b, `{"cursor":`...)
	b = strconv.AppendUint(b, l.Cursor, 10)
	b = appendField(b, "node", l.Node)
	b = appendOptional(b, "boot", l.Boot)
	if l.Sequence != 0 {
		b = append(b, `,"sequence":`...)
		b = strconv.AppendUint(b, l.Sequence, 10)
	}
	if !l.Received.IsZero() {
		b = append(b, `,"received":"`...)
		b = appendStamp(b, l.Received)
		b = append(b, '"')
	}
	if l.Kind == KindLoss {
		b = append(b, `,"loss":{"from":"`...)
		b = appendStamp(b, l.Loss.From)
		b = append(b, `","to":"`...)
		b = appendStamp(b, l.Loss.To)
		b = append(b, `","count":`...)
		b = strconv.AppendUint(b, l.Loss.Count, 10)
		b = append(b, `,"stage":`...)
		b = appendQuoted(b, enumWord(l.Loss.Stage.String(), "LOSS_STAGE_"))
		b = appendOptional(b, "reason", l.Loss.Reason)
		return append(b, "}}\n"...)
	}
	b = append(b, `,"packet":`...)
	b = l.appendPacket(b)
	return append(b, "}\n"...)
}

func (l *Line) appendPacket(b []byte) []byte {
	p := &l.Packet
	b = append(b, `{"first":"`...)
	b = appendStamp(b, p.First)
	b = append(b, `","last":"`...)
	b = appendStamp(b, p.Last)
	b = append(b, `","count":`...)
	b = strconv.AppendUint(b, l.Packets, 10)
	b = appendField(b, "direction", enumWord(p.Direction.String(), "DIRECTION_"))
	b = appendField(b, "action", enumWord(p.Action.String(), "ACTION_"))
	b = appendOptional(b, "reason", p.Reason)
	b = appendOptional(b, "table", p.Table)
	b = appendPolicies(b, p.Policies)
	b = append(b, `,"isolation":`...)
	b = strconv.AppendBool(b, p.Isolation)
	b = appendOptional(b, "rule", p.Rule)
	b = appendOptional(b, "logLabel", p.LogLabel)
	b = appendOptionalNumber(b, "openflowPriority", p.Priority)
	b = appendOptional(b, "appliedTo", p.AppliedTo)
	b = appendOptional(b, "peer", p.Peer)
	if !l.Overflow {
		b = appendOptional(b, "sourceIP", addressText(p.Source))
		b = appendOptionalNumber(b, "sourcePort", p.SourcePort)
		b = appendOptional(b, "destinationIP", addressText(p.Destination))
		b = appendOptionalNumber(b, "destinationPort", p.DestPort)
		b = appendField(b, "protocol", p.ProtocolName())
		b = appendOptionalNumber(b, "icmpType", p.ICMPType)
		b = appendOptionalNumber(b, "icmpCode", p.ICMPCode)
		b = append(b, `,"length":`...)
		b = strconv.AppendUint(b, uint64(p.Length), 10)
		b = appendOptionalNumber(b, "tcpFlags", Number{p.TCPFlags, p.TCPFlags != 0})
	}
	if f := p.Forged; f != nil {
		b = appendOptional(b, "sourceMAC", hardwareText(f.SourceMAC))
		b = appendOptional(b, "claimedMAC", hardwareText(f.ClaimedMAC))
		b = appendOptional(b, "targetIP", addressText(f.Target))
	}
	if p.Redirected {
		b = append(b, `,"redirected":true`...)
	}
	if l.Overflow {
		b = append(b, `,"overflow":true`...)
	}
	if s := p.Staged; s != nil {
		b = append(b, `,"staged":{"action":`...)
		b = appendQuoted(b, enumWord(s.Action.String(), "ACTION_"))
		if s.Policy.Name != "" {
			b = appendField(b, "policy", s.Policy.String())
		}
		b = appendOptional(b, "rule", s.Rule)
		b = appendPolicies(b, s.Policies)
		b = append(b, '}')
	}
	return append(b, '}')
}

func appendPolicies(b []byte, refs []Policy) []byte {
	b = append(b, `,"policies":[`...)
	for i, ref := range refs {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendQuoted(b, ref.String())
	}
	return append(b, ']')
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":`...)
	return appendQuoted(b, value)
}

func appendOptional(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendField(b, name, value)
}

func appendOptionalNumber(b []byte, name string, n Number) []byte {
	if !n.Set {
		return b
	}
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":`...)
	return strconv.AppendUint(b, uint64(n.Value), 10)
}

// appendQuoted appends a JSON string. What is not UTF-8 is replaced.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c < ' ' || c == 0x7f:
				b = append(b, `\u00`...)
				b = append(b, hex[c>>4], hex[c&15])
			default:
				b = append(b, c)
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, "\ufffd"...)
		case r == '\u2028' || r == '\u2029' || r == '\u0085': // Some readers take them for ends of lines.
			b = append(b, `\u`...)
			b = append(b, hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		default:
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	return append(b, '"')
}
