package record

import (
	"math"
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// cefHeader begins a line: format version 0, vendor, product, version of the
// product's events. What follows are signature, name and severity.
const cefHeader = "CEF:0|Weir|weir-auditd|1|"

// AppendCEF appends a line in ArcSight's Common Event Format, version 0 of the
// format as the implementation standard has it up to its version 25, newline
// included. Keys are those of its dictionary; what that has no key for has one
// that begins with WeirAudit, as the standard asks of producers. Values keep
// within maxParam, lists within maxPolicies; the dictionary's own lengths, such
// as the 100 of dvchost, are not kept to where they would cut a name. Control
// characters and ends of lines become "?". Manifests are left out. DESIGN.md
// has the table of keys.
func AppendCEF(b []byte, l *Line) []byte {
	code := l.code()
	c := cefText{append(b, cefHeader...)}
	c.b = append(c.b, code...)
	c.b = append(c.b, '|')
	c.b = append(c.b, cefName(code)...)
	c.b = append(c.b, '|')
	c.b = strconv.AppendInt(c.b, int64(cefSeverity(l, code)), 10)
	c.b = append(c.b, "|cat="...)
	c.b = append(c.b, code[:cefCategory(code)]...)
	c.unsigned("externalId", l.Cursor)
	c.text("dvchost", l.Node)
	c.text("deviceExternalId", l.Boot)
	if l.Sequence != 0 {
		c.unsigned("WeirAuditSequence", l.Sequence)
	}
	if !l.Received.IsZero() {
		c.time("rt", l.Received)
	}
	switch l.Kind {
	case KindLoss:
		c.loss(&l.Loss)
	case KindChange:
		c.change(l.Change)
	case KindTest:
		c.time("start", l.Test.Time)
		c.custom("cs1", "Sink", l.Test.Sink)
		c.custom("cs2", "TestID", l.Test.ID)
	default:
		c.packet(l)
	}
	var words [256]byte
	c.text("msg", string(l.appendSummary(words[:0])))
	return append(c.b, '\n')
}

// cefName is what people read of a signature.
func cefName(code string) string {
	switch code {
	case "loss":
		return "Records lost"
	case "change":
		return "Policy object changed"
	case "test":
		return "Test of a sink"
	case "packet-forged":
		return "Forged packet dropped"
	case "packet-redirect":
		return "Packet redirected"
	case "packet-allow":
		return "Packet allowed"
	case "packet-drop":
		return "Packet dropped"
	case "packet-reject":
		return "Packet rejected"
	case "packet-pass":
		return "Packet passed on"
	}
	return "Packet without verdict"
}

// cefSeverity is 0 to 3 for low, 4 to 6 for medium, 7 and 8 for high.
func cefSeverity(l *Line, code string) int {
	switch code {
	case "test":
		return 0
	case "packet-allow", "packet-pass", "packet-redirect":
		return 1
	case "change", "packet-unattributed":
		return 3
	case "packet-drop", "packet-reject":
		if l.Packet.forStaged() { // Nothing asks for the record of it.
			return 2
		}
		return 4
	case "loss":
		return 7
	}
	return 8 // Forged.
}

// cefCategory is the length of a signature's first word.
func cefCategory(code string) int {
	for i := range len(code) {
		if code[i] == '-' {
			return i
		}
	}
	return len(code)
}

// cefText writes the extension.
type cefText struct{ b []byte }

func (c *cefText) packet(l *Line) {
	p := &l.Packet
	c.time("start", p.First)
	c.time("end", p.Last)
	c.count(l.Packets)
	c.text("act", p.actionName())
	c.direction(p.Direction)
	c.text("reason", p.Reason)
	if !l.Overflow {
		c.tuple(p)
	}
	if f := p.Forged; f != nil {
		c.text("smac", hardwareText(f.SourceMAC))
		c.text("WeirAuditClaimedMAC", hardwareText(f.ClaimedMAC))
		c.text("WeirAuditTargetIP", addressText(f.Target))
	}
	source, destination := l.ends()
	c.whose("sntdom", "shost", &source)
	c.whose("dntdom", "dhost", &destination)
	c.text("sourceServiceName", source.Workload)
	c.text("destinationServiceName", l.service())
	c.custom("cs1", "Policies", policyList(p.Policies))
	c.custom("cs2", "Rule", p.Rule)
	c.custom("cs3", "LogLabel", p.LogLabel)
	if s := p.Staged; s != nil {
		c.staged(s)
	}
	c.custom("cs5", "AppliedTo", p.AppliedTo)
	c.custom("cs6", "Peer", p.Peer)
	c.custom("flexString1", "Table", p.Table)
	c.customNumber("cn1", "OpenFlowPriority", p.Priority)
	if p.Isolation {
		c.text("WeirAuditIsolation", "true")
	}
	if l.Overflow {
		c.text("WeirAuditOverflow", "true")
	}
	if k := l.known(); k != nil {
		c.text("WeirAuditSourceNode", k.Source.Node)
		c.text("WeirAuditDestinationNode", k.Destination.Node)
		c.text("WeirAuditDestinationWorkload", k.Destination.Workload)
		c.custom("flexString2", "PolicyVersions", versionList(k.Policies))
	}
}

func (c *cefText) tuple(p *Packet) {
	c.address("src", "c6a2", "Source IPv6 Address", p.Source)
	c.address("dst", "c6a3", "Destination IPv6 Address", p.Destination)
	c.number("spt", p.SourcePort)
	c.number("dpt", p.DestPort)
	c.text("proto", p.ProtocolName())
	c.customNumber("cn2", "Length", Number{p.Length, true})
	c.customNumber("cn3", "TCPFlags", Number{p.TCPFlags, p.TCPFlags != 0})
	c.customNumber("flexNumber1", "ICMPType", p.ICMPType)
	c.customNumber("flexNumber2", "ICMPCode", p.ICMPCode)
}

// whose writes whose an address was: a Pod's Namespace stands as the domain.
func (c *cefText) whose(domain, host string, e *End) {
	c.text(domain, e.Namespace)
	if e.Pod != "" {
		c.text(host, e.Pod)
	} else {
		c.text(host, e.Node)
	}
}

func (c *cefText) staged(s *Staged) {
	c.custom("cs4", "StagedAction", actionWords.of(s.Action))
	if s.Policy.Name != "" {
		c.text("WeirAuditStagedPolicy", s.Policy.String())
	}
	c.text("WeirAuditStagedRule", s.Rule)
	c.text("WeirAuditStagedPolicies", policyList(s.Policies))
}

func (c *cefText) loss(s *Loss) {
	c.time("start", s.From)
	c.time("end", s.To)
	if s.Count > 0 {
		c.count(s.Count)
	}
	c.direction(s.Direction)
	c.text("reason", s.Reason)
	if s.Policy.Name != "" {
		c.custom("cs1", "Policies", s.Policy.String())
	}
	c.custom("cs2", "Rule", s.Rule)
	c.custom("cs4", "Stage", stageWords.of(s.Stage))
}

func (c *cefText) change(g *Change) {
	o := g.Object
	c.time("start", g.Time)
	c.text("act", changeWords.of(g.Kind))
	c.text("suser", o.GetUser())
	c.custom("cs1", "Object", objectPath(g))
	c.custom("cs2", "Kind", o.GetKind())
	c.custom("cs3", "APIVersion", o.GetApiVersion())
	c.custom("cs4", "UID", o.GetUid())
	c.custom("cs5", "Fields", fieldList(g.Fields))
	c.custom("cs6", "Manager", o.GetManager())
	if o.GetGeneration() != 0 {
		c.key("cn1")
		c.b = strconv.AppendInt(c.b, o.GetGeneration(), 10)
		c.text("cn1Label", "Generation")
	}
	c.customNumber("cn2", "PodsBefore", Number{g.PodsBefore, true})
	c.customNumber("cn3", "PodsAfter", Number{g.PodsAfter, true})
}

// count writes cnt, which is of 32 bits; what is more is told in full elsewhere.
func (c *cefText) count(n uint64) {
	c.unsigned("cnt", min(n, math.MaxInt32))
	if n > math.MaxInt32 {
		c.unsigned("WeirAuditCount", n)
	}
}

func (c *cefText) direction(d policyv1.Direction) {
	switch d {
	case policyv1.Direction_DIRECTION_INGRESS:
		c.text("deviceDirection", "0")
	case policyv1.Direction_DIRECTION_EGRESS:
		c.text("deviceDirection", "1")
	}
}

func (c *cefText) key(key string) {
	c.b = append(c.b, ' ')
	c.b = append(c.b, key...)
	c.b = append(c.b, '=')
}

func (c *cefText) unsigned(key string, v uint64) {
	c.key(key)
	c.b = strconv.AppendUint(c.b, v, 10)
}

func (c *cefText) number(key string, n Number) {
	if n.Set {
		c.unsigned(key, uint64(n.Value))
	}
}

// time writes milliseconds since 1970.
func (c *cefText) time(key string, t time.Time) {
	c.key(key)
	c.b = strconv.AppendInt(c.b, t.UnixMilli(), 10)
}

// address writes an address by the key of its family: of version 6 there is
// none but a custom one.
func (c *cefText) address(four, six, label string, a netip.Addr) {
	switch {
	case a.Is4():
		c.key(four)
		c.b = a.AppendTo(c.b)
	case a.IsValid():
		c.key(six)
		c.b = a.AppendTo(c.b)
		c.label(six, label)
	}
}

// label says what a custom key stands for.
func (c *cefText) label(key, label string) {
	c.b = append(c.b, ' ')
	c.b = append(c.b, key...)
	c.b = append(c.b, "Label="...)
	c.b = append(c.b, label...)
}

func (c *cefText) custom(key, label, value string) {
	if value != "" {
		c.text(key, value)
		c.label(key, label)
	}
}

func (c *cefText) customNumber(key, label string, n Number) {
	if n.Set {
		c.number(key, n)
		c.label(key, label)
	}
}

// text writes a value, escaped as those of extensions are. Empty: nothing.
func (c *cefText) text(key, value string) {
	if value == "" {
		return
	}
	most := maxParam
	if key == "cs1" || key == "cs5" || key == "flexString2" || key == "WeirAuditStagedPolicies" { // Lists.
		most = maxPolicies
	}
	c.key(key)
	value = shortened(value, most)
	for i := 0; i < len(value); {
		r, n := rune(value[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(value[i:])
		}
		switch {
		case r == '\\' || r == '=':
			c.b = append(c.b, '\\', value[i])
		case !prints(r, n):
			c.b = append(c.b, '?')
		default:
			c.b = append(c.b, value[i:i+n]...)
		}
		i += n
	}
}
