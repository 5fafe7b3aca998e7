package record

import (
	"strconv"
	"strings"
	"time"
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

// Syslog writes lines as messages of RFC 5424, without newline. MSGID is PACKET,
// LOSS, CHANGE or TEST, PROCID the boot. The structured data have what JSON has, by the same
// names, without manifests; the message is the line of np.log, where there is one.
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
	b = s.appendHeader(b, l)
	b = append(b, " ["+StructuredDataID...)
	data := params{b, start + maxMessage - len("] ")}
	data.unsigned("cursor", l.Cursor)
	if l.Sequence != 0 {
		data.unsigned("sequence", l.Sequence)
	}
	switch l.Kind {
	case KindLoss:
		data.loss(&l.Loss)
	case KindChange:
		data.change(l.Change)
	case KindTest:
		data.add("sink", l.Test.Sink)
		data.add("id", l.Test.ID)
	default:
		data.packet(l)
	}
	b = append(data.b, "] "...)
	return cut(s.appendMessage(b, l), start)
}

// AppendWith appends a message without structured data, whose text is the line
// of another format.
func (s Syslog) AppendWith(b []byte, l *Line, line Append) []byte {
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
	id, severity := s.header(l)
	b = append(b, '<')
	b = strconv.AppendInt(b, int64(s.Facility*8+severity), 10)
	b = append(b, ">1 "...)
	b = l.Time().UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
	for _, f := range [...]struct {
		name string
		most int
	}{{l.Node, 255}, {s.AppName, 48}, {l.Boot, 128}, {id, 32}} {
		b = append(b, ' ')
		b = appendName(b, f.name, f.most)
	}
	return b
}

// header is what a message's header says of a line.
func (s Syslog) header(l *Line) (id string, severity int) {
	switch l.Kind {
	case KindLoss:
		return "LOSS", s.Drop
	case KindChange:
		return "CHANGE", s.Allow
	case KindTest:
		return "TEST", s.Allow
	}
	if a := l.Packet.Action; a == policyv1.Action_ACTION_DROP || a == policyv1.Action_ACTION_REJECT {
		return "PACKET", s.Drop
	}
	return "PACKET", s.Allow
}

// appendMessage appends the line of np.log, or a few words where there is none.
func (s Syslog) appendMessage(b []byte, l *Line) []byte {
	if l.Kind == KindPacket && l.Packet.printed() {
		b = s.NPLog.Append(b, l)
		return b[:len(b)-1] // Its newline.
	}
	return l.appendSummary(b)
}

// cut shortens the end of a message that is too long, between characters. The
// structured data come first, and end before.
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

// params writes the parameters of the structured data. What has no place before
// the end is cut off or left out: the message stays one that parses.
type params struct {
	b   []byte
	end int
}

func (d *params) unsigned(name string, v uint64) { d.add(name, strconv.FormatUint(v, 10)) }

func (d *params) optional(name, value string) {
	if value != "" {
		d.add(name, value)
	}
}

func (d *params) number(name string, n Number) {
	if n.Set {
		d.unsigned(name, uint64(n.Value))
	}
}

func (d *params) time(name string, t time.Time) {
	var stamp [40]byte
	d.add(name, string(appendStamp(stamp[:0], t)))
}

func (d *params) loss(s *Loss) {
	d.time("from", s.From)
	d.time("to", s.To)
	d.unsigned("count", s.Count)
	d.add("stage", stageWords.of(s.Stage))
	d.optional("reason", s.Reason)
	if s.Policy.Name != "" {
		d.add("policy", s.Policy.String())
	}
	d.optional("rule", s.Rule)
	if s.Direction != 0 {
		d.add("direction", directionWords.of(s.Direction))
	}
}

// change leaves out the manifest, which no datagram would hold.
func (d *params) change(c *Change) {
	o := c.Object
	d.time("time", c.Time)
	d.add("change", changeWords.of(c.Kind))
	d.optional("apiVersion", o.GetApiVersion())
	d.add("kind", o.GetKind())
	d.optional("namespace", o.GetNamespace())
	d.add("name", o.GetName())
	d.optional("uid", o.GetUid())
	if o.GetGeneration() != 0 {
		d.add("generation", strconv.FormatInt(o.GetGeneration(), 10))
	}
	d.optional("manager", o.GetManager())
	d.optional("user", o.GetUser())
	d.optional("fields", fieldList(c.Fields))
	d.unsigned("podsBefore", uint64(c.PodsBefore))
	d.unsigned("podsAfter", uint64(c.PodsAfter))
}

func (d *params) packet(l *Line) {
	p := &l.Packet
	d.time("first", p.First)
	d.time("last", p.Last)
	d.unsigned("count", l.Packets)
	d.add("direction", directionWords.of(p.Direction))
	d.add("action", actionWords.of(p.Action))
	d.optional("reason", p.Reason)
	d.optional("table", p.Table)
	d.optional("policies", policyList(p.Policies))
	d.add("isolation", strconv.FormatBool(p.Isolation))
	d.optional("rule", p.Rule)
	d.optional("logLabel", p.LogLabel)
	d.number("openflowPriority", p.Priority)
	d.optional("appliedTo", p.AppliedTo)
	d.optional("peer", p.Peer)
	if l.Overflow {
		d.add("overflow", "true")
	} else {
		d.tuple(p)
	}
	if f := p.Forged; f != nil {
		d.optional("sourceMAC", hardwareText(f.SourceMAC))
		d.optional("claimedMAC", hardwareText(f.ClaimedMAC))
		d.optional("targetIP", addressText(f.Target))
	}
	if p.Redirected {
		d.add("redirected", "true")
	}
	if st := p.Staged; st != nil {
		d.add("stagedAction", actionWords.of(st.Action))
		if st.Policy.Name != "" {
			d.add("stagedPolicy", st.Policy.String())
		}
		d.optional("stagedRule", st.Rule)
		d.optional("stagedPolicies", policyList(st.Policies))
	}
	d.optional("service", l.service())
	d.context(l.known())
}

func (d *params) tuple(p *Packet) {
	d.optional("sourceIP", addressText(p.Source))
	d.number("sourcePort", p.SourcePort)
	d.optional("destinationIP", addressText(p.Destination))
	d.number("destinationPort", p.DestPort)
	d.add("protocol", p.ProtocolName())
	d.number("icmpType", p.ICMPType)
	d.number("icmpCode", p.ICMPCode)
	d.unsigned("length", uint64(p.Length))
	d.number("tcpFlags", Number{p.TCPFlags, p.TCPFlags != 0})
}

// context writes whose the addresses were, and the versions of the policies.
func (d *params) context(c *Context) {
	if c == nil {
		return
	}
	d.optional("sourceNamespace", c.Source.Namespace)
	d.optional("sourcePod", c.Source.Pod)
	d.optional("sourceNode", c.Source.Node)
	d.optional("sourceWorkload", c.Source.Workload)
	d.optional("destinationNamespace", c.Destination.Namespace)
	d.optional("destinationPod", c.Destination.Pod)
	d.optional("destinationNode", c.Destination.Node)
	d.optional("destinationWorkload", c.Destination.Workload)
	d.optional("policyVersions", versionList(c.Policies))
}

// maxParam bounds one value, which no name of Kubernetes exceeds, and maxPolicies
// a list.
const (
	maxParam    = 320
	maxPolicies = 640
)

// joined joins with commas; what is beyond a list's length is counted: "…,+12".
func joined(n int, at func(int) string) string {
	var b strings.Builder
	for i := range n {
		s := at(i)
		if i > 0 && b.Len()+len(s) > maxPolicies-16 {
			return b.String() + ",+" + strconv.Itoa(n-i)
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(s)
	}
	return b.String()
}

func policyList(refs []Policy) string {
	return joined(len(refs), func(i int) string { return refs[i].String() })
}

func fieldList(fields []string) string {
	return joined(len(fields), func(i int) string { return fields[i] })
}

// versionList is "UID@GENERATION,…", in the order of the policies.
func versionList(versions []Version) string {
	return joined(len(versions), func(i int) string { return versions[i].UID + "@" + strconv.FormatInt(versions[i].Generation, 10) })
}

// valueLength bounds the value of a parameter.
func valueLength(name string) int {
	switch name {
	case "policies", "stagedPolicies", "policyVersions", "fields":
		return maxPolicies
	}
	return maxParam
}

func (d *params) add(name, value string) {
	room := d.end - len(d.b) - len(name) - len(` =""`)
	if room <= 0 {
		return
	}
	d.b = append(d.b, ' ')
	d.b = append(d.b, name...)
	d.b = append(d.b, `="`...)
	most := len(d.b) + room
	value = shortened(value, valueLength(name))
	for i := 0; i < len(value); {
		r, n := rune(value[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(value[i:])
		}
		if len(d.b)+n+1 > most { // One more, if it is escaped.
			break
		}
		switch {
		case r == '"' || r == '\\' || r == ']':
			d.b = append(d.b, '\\', value[i])
		case !prints(r, n):
			d.b = append(d.b, '?') // Receivers break lines here, or escape in ways of their own.
		default:
			d.b = append(d.b, value[i:i+n]...)
		}
		i += n
	}
	d.b = append(d.b, '"')
}

// prints says whether a character of so many bytes may stand in a line: it is
// none that ends one, nor a control character.
func prints(r rune, n int) bool {
	return r >= ' ' && r < 0x7f || r >= 0xa0 && r != '\u2028' && r != '\u2029' && !(r == utf8.RuneError && n == 1)
}

// shortened cuts a value between characters.
func shortened(value string, most int) string {
	if len(value) <= most {
		return value
	}
	end := most
	for end > 0 && !utf8.RuneStart(value[end]) {
		end--
	}
	return value[:end]
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
