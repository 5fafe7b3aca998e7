package record

import (
	"strconv"
	"strings"
	"unicode/utf8"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Facility and severities of RFC 5424.
const (
	FacilityLocal0  = 16
	SeverityWarning = 4
	SeverityInfo    = 6
)

// StructuredDataID names our elements: 32473 is the enterprise number for
// examples and those without one of their own.
const StructuredDataID = "weir@32473"

// Syslog writes lines as messages of RFC 5424, without newline. MSGID is PACKET
// or LOSS, PROCID the boot. The structured data have what JSON has, by the same
// names; the message is the line of np.log, where there is one.
type Syslog struct {
	Facility int    // Zero: kernel messages; say FacilityLocal0.
	Drop     int    // Severity of drops, rejections and losses.
	Allow    int    // Severity of all else.
	AppName  string // At most 48 characters that print.
	NPLog    NPLog  // Writes the message.
}

// DefaultSyslog is local0, warnings for what was dropped, and info.
func DefaultSyslog() Syslog {
	return Syslog{Facility: FacilityLocal0, Drop: SeverityWarning, Allow: SeverityInfo, AppName: "weir"}
}

// maxMessage is how long messages of one datagram may be: receivers cut off
// what is longer than they expect, often 8 KiB.
const maxMessage = 8 << 10

// Append appends one message.
func (s Syslog) Append(b []byte, l *Line) []byte {
	start := len(b)
	p := &l.Packet
	b = s.appendHeader(b, l)
	b = append(b, " ["+StructuredDataID...)
	b = appendParam(b, "cursor", strconv.FormatUint(l.Cursor, 10))
	if l.Sequence != 0 {
		b = appendParam(b, "sequence", strconv.FormatUint(l.Sequence, 10))
	}
	if l.Kind == KindLoss {
		b = l.appendLoss(b)
	} else {
		b = l.appendParams(b)
	}
	b = append(b, "] "...)
	if l.Kind == KindLoss {
		b = append(b, "lost "...)
		b = strconv.AppendUint(b, l.Loss.Count, 10)
		b = append(b, " at "...)
		b = append(b, enumWord(l.Loss.Stage.String(), "LOSS_STAGE_")...)
	} else if p.forStaged() {
		b = appendStaged(b, p.Staged)
	} else if !p.printed() {
		b = append(b, "forged "...)
		b = append(b, p.ProtocolName()...)
		b = append(b, " from "...)
		b = appendWord(b, p.AppliedTo)
	} else if b = s.NPLog.Append(b, l); b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return cut(b, start)
}

// AppendWith appends a message without structured data, whose text is the line
// of another format.
func (s Syslog) AppendWith(b []byte, l *Line, line func(b []byte, l *Line) []byte) []byte {
	start := len(b)
	b = append(s.appendHeader(b, l), " - "...)
	before := len(b)
	if b = line(b, l); len(b) == before {
		return b[:start] // The format leaves it out.
	}
	if b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return b
}

// appendHeader appends what comes before the structured data.
func (s Syslog) appendHeader(b []byte, l *Line) []byte {
	p := &l.Packet
	severity, id, when := s.Allow, "PACKET", p.First
	switch {
	case l.Kind == KindLoss:
		severity, id, when = s.Drop, "LOSS", l.Loss.To
	case p.Action == policyv1.Action_ACTION_DROP || p.Action == policyv1.Action_ACTION_REJECT:
		severity = s.Drop
	}
	b = append(b, '<')
	b = strconv.AppendInt(b, int64(s.Facility*8+severity), 10)
	b = append(b, ">1 "...)
	b = when.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
	for _, f := range [...]struct {
		name string
		most int
	}{{l.Node, 255}, {s.AppName, 48}, {l.Boot, 128}, {id, 32}} {
		b = append(b, ' ')
		b = appendName(b, f.name, f.most)
	}
	return b
}

// appendStaged appends the message of what is on record for staged policies
// alone: the structured data tell the rest.
func appendStaged(b []byte, s *Staged) []byte {
	b = append(b, "staged"...)
	if s == nil {
		return b
	}
	b = append(b, ' ')
	b = append(b, enumWord(s.Action.String(), "ACTION_")...)
	b = append(b, " for "...)
	return appendWord(b, s.Policy.String())
}

// cut shortens the end of a message that is too long, between characters. The
// structured data come first; they are bounded where lists are made.
func cut(b []byte, start int) []byte {
	if len(b)-start <= maxMessage {
		return b
	}
	end := start + maxMessage
	for end > start && !utf8.RuneStart(b[end]) {
		end--
	}
	return b[:end]
}

func (l *Line) appendLoss(b []byte) []byte {
	b = appendParam(b, "from", string(appendStamp(nil, l.Loss.From)))
	b = appendParam(b, "to", string(appendStamp(nil, l.Loss.To)))
	b = appendParam(b, "count", strconv.FormatUint(l.Loss.Count, 10))
	b = appendParam(b, "stage", enumWord(l.Loss.Stage.String(), "LOSS_STAGE_"))
	if l.Loss.Reason != "" {
		b = appendParam(b, "reason", l.Loss.Reason)
	}
	return b
}

func (l *Line) appendParams(b []byte) []byte {
	p := &l.Packet
	b = appendParam(b, "first", string(appendStamp(nil, p.First)))
	b = appendParam(b, "last", string(appendStamp(nil, p.Last)))
	b = appendParam(b, "count", strconv.FormatUint(l.Packets, 10))
	b = appendParam(b, "direction", enumWord(p.Direction.String(), "DIRECTION_"))
	b = appendParam(b, "action", enumWord(p.Action.String(), "ACTION_"))
	optional := func(name, value string) {
		if value != "" {
			b = appendParam(b, name, value)
		}
	}
	number := func(name string, n Number) {
		if n.Set {
			b = appendParam(b, name, strconv.FormatUint(uint64(n.Value), 10))
		}
	}
	optional("reason", p.Reason)
	optional("table", p.Table)
	optional("policies", policyList(p.Policies))
	b = appendParam(b, "isolation", strconv.FormatBool(p.Isolation))
	optional("rule", p.Rule)
	optional("logLabel", p.LogLabel)
	number("openflowPriority", p.Priority)
	optional("appliedTo", p.AppliedTo)
	optional("peer", p.Peer)
	if l.Overflow {
		b = appendParam(b, "overflow", "true")
	} else {
		optional("sourceIP", addressText(p.Source))
		number("sourcePort", p.SourcePort)
		optional("destinationIP", addressText(p.Destination))
		number("destinationPort", p.DestPort)
		b = appendParam(b, "protocol", p.ProtocolName())
		number("icmpType", p.ICMPType)
		number("icmpCode", p.ICMPCode)
		b = appendParam(b, "length", strconv.FormatUint(uint64(p.Length), 10))
		number("tcpFlags", Number{p.TCPFlags, p.TCPFlags != 0})
	}
	if f := p.Forged; f != nil {
		optional("sourceMAC", hardwareText(f.SourceMAC))
		optional("claimedMAC", hardwareText(f.ClaimedMAC))
		optional("targetIP", addressText(f.Target))
	}
	if p.Redirected {
		b = appendParam(b, "redirected", "true")
	}
	if st := p.Staged; st != nil {
		b = appendParam(b, "stagedAction", enumWord(st.Action.String(), "ACTION_"))
		if st.Policy.Name != "" {
			optional("stagedPolicy", st.Policy.String())
		}
		optional("stagedRule", st.Rule)
		optional("stagedPolicies", policyList(st.Policies))
	}
	return b
}

// maxParam bounds one value, and maxPolicies the list of policies, so that the
// structured data end within maxMessage even if all of it is escaped.
const (
	maxParam    = 320
	maxPolicies = 640
)

// policyList joins policies with commas; those beyond a value's length are
// counted: "…,+12".
func policyList(refs []Policy) string {
	var b strings.Builder
	for i, ref := range refs {
		s := ref.String()
		if i > 0 && b.Len()+len(s) > maxPolicies-16 {
			return b.String() + ",+" + strconv.Itoa(len(refs)-i)
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(s)
	}
	return b.String()
}

func appendParam(b []byte, name, value string) []byte {
	b = append(b, ' ')
	b = append(b, name...)
	b = append(b, `="`...)
	most := maxParam
	if name == "policies" || name == "stagedPolicies" {
		most = maxPolicies
	}
	if len(value) > most {
		end := most
		for end > 0 && !utf8.RuneStart(value[end]) {
			end--
		}
		value = value[:end]
	}
	for i := 0; i < len(value); {
		c := value[i]
		switch {
		case c == '"' || c == '\\' || c == ']':
			b = append(b, '\\', c)
		case c < ' ' || c == 0x7f:
			b = append(b, '?') // Receivers break lines here, or escape in ways of their own.
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, n := utf8.DecodeRuneInString(value[i:])
			if r == utf8.RuneError && n == 1 || r == '\u2028' || r == '\u2029' || r < 0xa0 {
				b = append(b, '?')
			} else {
				b = append(b, value[i:i+n]...)
			}
			i += n
			continue
		}
		i++
	}
	return append(b, '"')
}

// appendName appends a field of the header: ASCII that prints, or "-".
func appendName(b []byte, s string, most int) []byte {
	if s == "" {
		return append(b, '-')
	}
	for i := 0; i < min(len(s), most); i++ {
		if c := s[i]; c > ' ' && c < 0x7f {
			b = append(b, c)
		} else {
			b = append(b, '?')
		}
	}
	return b
}
