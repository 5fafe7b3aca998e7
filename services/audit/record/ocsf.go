package record

import (
	"math"
	"math/bits"
	"net/netip"
	"strconv"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// OCSFVersion is the version of the Open Cybersecurity Schema Framework that
// AppendOCSF keeps to: the first that has both the policy and the rule of what a
// security control did. Later minor versions only add, so that its events are
// events of theirs, and data lakes take old ones sooner than new ones.
const OCSFVersion = "1.4.0"

// Classes of OCSF, and activities of theirs.
const (
	ocsfEventLog         = 1008 // Event Log Activity, for losses and tests.
	ocsfEntityManagement = 3004 // Entity Management, for changes.
	ocsfNetworkActivity  = 4001

	ocsfOpen    = 1
	ocsfFail    = 4
	ocsfRefuse  = 5
	ocsfTraffic = 6

	ocsfCreate = 1
	ocsfUpdate = 3
	ocsfDelete = 4

	ocsfOther = 99
)

// Severities of OCSF.
const (
	ocsfInformational = 1
	ocsfLow           = 2
	ocsfMedium        = 3
	ocsfHigh          = 4
)

// AppendOCSF appends a line as one event of OCSFVersion, newline included:
// Network Activity for packets, with the profiles host and security_control;
// Event Log Activity for losses, since it is the log that lacks something, and
// for tests; Entity Management for changes. What its classes have no attribute
// for stands in unmapped, by JSON's names. DESIGN.md has the table.
func AppendOCSF(b []byte, l *Line) []byte {
	j := jsonText{append(b, '{')}
	switch l.Kind {
	case KindLoss:
		j.ocsfLoss(l)
	case KindChange:
		j.ocsfChange(l)
	case KindTest:
		j.ocsfClass(l, ocsfEventLog, ocsfOther, ocsfInformational)
		j.text("activity_name", "Test")
		j.text("log_name", "weir-audit")
		j.ocsfDevice(l.Node)
		at := j.open("unmapped")
		j.text("sink", l.Test.Sink)
		j.text("id", l.Test.ID)
		j.end(at)
	default:
		j.ocsfPacket(l)
	}
	return append(j.b, '}', '\n')
}

// ocsfClass writes what every event has.
func (j *jsonText) ocsfClass(l *Line, class, activity uint64, severity uint64) {
	j.unsigned("class_uid", class)
	j.unsigned("category_uid", class/1000)
	j.unsigned("activity_id", activity)
	j.unsigned("type_uid", class*100+activity)
	j.unsigned("severity_id", severity)
	j.millis("time", l.Time())
	var words [256]byte
	j.text("message", string(l.appendSummary(words[:0])))
	at := j.open("metadata")
	j.text("version", OCSFVersion)
	product := j.open("product")
	j.text("name", "Weir")
	j.text("vendor_name", "Weir")
	j.end(product)
	if class == ocsfNetworkActivity {
		j.list("profiles", "host", "security_control")
	}
	j.text("log_name", "weir-audit")
	j.text("event_code", l.code())
	j.text("uid", strconv.FormatUint(l.Cursor, 10))
	if l.Sequence != 0 {
		j.unsigned("sequence", l.Sequence)
	}
	if !l.Received.IsZero() {
		j.millis("logged_time", l.Received)
	}
	j.end(at)
}

func (j *jsonText) millis(name string, t time.Time) { j.signed(name, t.UnixMilli()) }

// ocsfDevice writes where it was seen. The collector itself is what loses or
// tests where no node is named.
func (j *jsonText) ocsfDevice(node string) {
	if node == "" {
		node = "weir-auditd"
	}
	at := j.open("device")
	j.text("name", node)
	j.unsigned("type_id", 1) // Server.
	j.end(at)
}

func (j *jsonText) ocsfPacket(l *Line) {
	p := &l.Packet
	activity, severity := ocsfVerdict(p, l.Overflow)
	j.ocsfClass(l, ocsfNetworkActivity, activity, severity)
	j.ocsfAction(p)
	j.ocsfDevice(l.Node)
	if l.Packets > 1 {
		j.unsigned("count", l.Packets)
		j.millis("start_time", p.First)
		j.millis("end_time", p.Last)
	}
	j.ocsfEnds(l)
	j.ocsfConnection(l)
	at := j.open("traffic")
	j.unsigned("packets", l.Packets)
	if hi, bytes := bits.Mul64(l.Packets, uint64(p.Length)); !l.Overflow && hi == 0 && bytes <= math.MaxInt64 {
		j.unsigned("bytes", bytes) // Merged packets are of one length.
	}
	j.end(at)
	if len(p.Policies) > 0 {
		at := j.open("policy")
		j.text("name", p.Policies[0].String())
		v := l.version(0)
		j.optional("uid", v.UID)
		if v.Generation != 0 {
			j.text("version", strconv.FormatInt(v.Generation, 10))
		}
		j.end(at)
	}
	if p.Rule != "" {
		at := j.open("firewall_rule")
		j.text("name", p.Rule)
		j.end(at)
	}
	j.ocsfUnmapped(l)
}

// ocsfVerdict is the activity that a packet shows, and how grave it is. A drop
// is a connection that fails, as if by time.
func ocsfVerdict(p *Packet, overflow bool) (activity, severity uint64) {
	switch {
	case p.Reason == reasonSpoof:
		return ocsfTraffic, ocsfHigh
	case p.Redirected || overflow && p.Action == policyv1.Action_ACTION_ALLOW:
		return ocsfTraffic, ocsfInformational
	case p.Action == policyv1.Action_ACTION_ALLOW:
		return ocsfOpen, ocsfInformational
	case p.Action == policyv1.Action_ACTION_DROP:
		return ocsfFail, ocsfLow
	case p.Action == policyv1.Action_ACTION_REJECT:
		return ocsfRefuse, ocsfLow
	}
	return ocsfTraffic, ocsfInformational
}

// ocsfAction writes what the control did, and what came of it.
func (j *jsonText) ocsfAction(p *Packet) {
	action, disposition, name := uint64(0), uint64(0), ""
	switch {
	case p.Redirected:
		action, disposition, name = ocsfOther, ocsfOther, "Redirect"
	case p.Action == policyv1.Action_ACTION_ALLOW:
		action, disposition = 1, 1
	case p.Action == policyv1.Action_ACTION_DROP:
		action, disposition = 2, 6
	case p.Action == policyv1.Action_ACTION_REJECT:
		action, disposition = 2, 2
	case p.Action == policyv1.Action_ACTION_PASS:
		action, disposition, name = ocsfOther, ocsfOther, "Pass"
	}
	j.unsigned("action_id", action)
	j.optional("action", name)
	j.unsigned("disposition_id", disposition)
	j.optional("disposition", name)
}

// ocsfEnds writes the endpoints. The class must have a destination: of many
// packets it is called various, and of frames without one unknown.
func (j *jsonText) ocsfEnds(l *Line) {
	p := &l.Packet
	from, to, source, destination := p.Source, p.Destination, p.SourcePort, p.DestPort
	if l.Overflow {
		from, to, source, destination = netip.Addr{}, netip.Addr{}, Number{}, Number{}
	}
	whose, target := l.ends()
	at := j.open("src_endpoint")
	j.ocsfEnd(&whose, from, source)
	if f := p.Forged; f != nil {
		j.optional("mac", hardwareText(f.SourceMAC))
	}
	if whose.String() == "" && !from.IsValid() {
		j.text("name", nobody(l.Overflow))
	}
	j.end(at)
	at = j.open("dst_endpoint")
	j.ocsfEnd(&target, to, destination)
	j.optional("svc_name", l.service())
	if target.String() == "" && !to.IsValid() {
		j.text("name", nobody(l.Overflow))
	}
	j.end(at)
}

func nobody(overflow bool) string {
	if overflow {
		return "various"
	}
	return "unknown"
}

func (j *jsonText) ocsfEnd(e *End, a netip.Addr, port Number) {
	j.address("ip", a)
	j.number("port", port)
	j.optional("name", e.String())
	switch {
	case e.Pod != "":
		j.unsigned("type_id", ocsfOther)
		j.text("type", "Pod")
	case e.Node != "":
		j.unsigned("type_id", 1) // Server.
	}
}

func (j *jsonText) ocsfConnection(l *Line) {
	p := &l.Packet
	at := j.open("connection_info")
	j.unsigned("direction_id", uint64(directionID(p.Direction)))
	if l.Overflow {
		j.end(at)
		return
	}
	if f := p.Forged; f != nil && f.EtherType != 0 {
		j.signed("protocol_num", -1) // Not of the Internet Protocol.
	} else {
		j.unsigned("protocol_num", uint64(p.Protocol))
		j.optional("protocol_name", transportName(p.Protocol))
		j.unsigned("protocol_ver_id", p.family())
	}
	j.number("tcp_flags", Number{p.TCPFlags, p.TCPFlags != 0})
	j.end(at)
}

// directionID is 1 for inbound, 2 for outbound.
func directionID(d policyv1.Direction) int {
	switch d {
	case policyv1.Direction_DIRECTION_INGRESS:
		return 1
	case policyv1.Direction_DIRECTION_EGRESS:
		return 2
	}
	return 0
}

// transportName is a protocol's name in lower case, empty for those that
// ProtocolName only numbers.
func transportName(n uint8) string {
	switch n {
	case 1:
		return "icmp"
	case 2:
		return "igmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 58:
		return "ipv6-icmp"
	case 132:
		return "sctp"
	}
	return ""
}

// ocsfUnmapped writes what the class has no attributes for, by JSON's names.
func (j *jsonText) ocsfUnmapped(l *Line) {
	p := &l.Packet
	at := j.open("unmapped")
	j.optional("boot", l.Boot)
	j.optional("reason", p.Reason)
	j.optional("table", p.Table)
	if len(p.Policies) > 0 {
		j.policies("policies", p.Policies)
	}
	if p.Isolation {
		j.truth("isolation", true)
	}
	if l.Overflow {
		j.truth("overflow", true)
	}
	j.optional("logLabel", p.LogLabel)
	j.number("openflowPriority", p.Priority)
	j.optional("appliedTo", p.AppliedTo)
	j.optional("peer", p.Peer)
	if !l.Overflow {
		j.text("protocol", p.ProtocolName())
		j.number("icmpType", p.ICMPType)
		j.number("icmpCode", p.ICMPCode)
		j.unsigned("length", uint64(p.Length))
	}
	if f := p.Forged; f != nil {
		j.optional("claimedMAC", hardwareText(f.ClaimedMAC))
		j.address("targetIP", f.Target)
	}
	j.context(l)
	if p.Staged != nil {
		j.staged(p.Staged)
	}
	j.end(at)
}

func (j *jsonText) ocsfLoss(l *Line) {
	s := &l.Loss
	j.ocsfClass(l, ocsfEventLog, ocsfOther, ocsfMedium)
	j.text("activity_name", "Loss")
	j.text("log_name", "weir-audit")
	j.unsigned("status_id", 2) // Failure.
	j.text("status_detail", stageWords.of(s.Stage))
	j.ocsfDevice(l.Node)
	j.millis("start_time", s.From)
	j.millis("end_time", s.To)
	at := j.open("unmapped")
	j.optional("boot", l.Boot)
	j.lossFields(s)
	j.end(at)
}

func (j *jsonText) ocsfChange(l *Line) {
	c := l.Change
	o := c.Object
	activity, name := uint64(ocsfOther), ""
	switch c.Kind {
	case auditv1.ChangeKind_CHANGE_KIND_CREATED:
		activity = ocsfCreate
	case auditv1.ChangeKind_CHANGE_KIND_UPDATED:
		activity = ocsfUpdate
	case auditv1.ChangeKind_CHANGE_KIND_DELETED:
		activity = ocsfDelete
	default:
		name = "Present"
	}
	j.ocsfClass(l, ocsfEntityManagement, activity, ocsfInformational)
	j.optional("activity_name", name)
	if by := o.GetUser(); by != "" || o.GetManager() != "" {
		at := j.open("actor")
		user := j.open("user")
		j.optional("name", by)
		j.end(user)
		j.optional("app_name", o.GetManager())
		j.end(at)
	}
	at := j.open("entity")
	j.text("name", objectPath(c))
	j.unsigned("type_id", ocsfOther)
	j.text("type", o.GetKind())
	j.optional("uid", o.GetUid())
	if o.GetGeneration() != 0 {
		j.text("version", strconv.FormatInt(o.GetGeneration(), 10))
	}
	j.manifest("data", o.GetManifest())
	j.end(at)
	at = j.open("unmapped")
	j.optional("apiVersion", o.GetApiVersion())
	if len(c.Fields) > 0 {
		j.list("fields", c.Fields...)
	}
	j.unsigned("podsBefore", uint64(c.PodsBefore))
	j.unsigned("podsAfter", uint64(c.PodsAfter))
	j.end(at)
}
