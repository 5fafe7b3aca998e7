package record

import (
	"strconv"
	"strings"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// ECSVersion is the version of the Elastic Common Schema that AppendECS keeps
// to: the last of the eighth major, which the ninth reads too.
const ECSVersion = "8.17.0"

// AppendECS appends a line as one document of ECSVersion, newline included. What
// the schema has no field for stands under weir, by JSON's names; map it as
// flattened. Manifests are left out: they would be a field of their own for each
// of theirs. DESIGN.md has the table.
func AppendECS(b []byte, l *Line) []byte {
	j := jsonText{append(b, '{')}
	j.time("@timestamp", l.Time())
	at := j.open("ecs")
	j.text("version", ECSVersion)
	j.end(at)
	var words [256]byte
	j.text("message", string(l.appendSummary(words[:0])))
	j.ecsEvent(l)
	at = j.open("observer")
	j.optional("name", l.Node)
	j.text("type", "firewall")
	j.text("vendor", "Weir")
	j.text("product", "Weir")
	j.end(at)
	switch l.Kind {
	case KindLoss:
		j.ecsLoss(l)
	case KindChange:
		j.ecsChange(l)
	case KindTest:
		at := j.open("weir")
		j.unsigned("cursor", l.Cursor)
		j.text("sink", l.Test.Sink)
		j.text("id", l.Test.ID)
		j.end(at)
	default:
		j.ecsPacket(l)
	}
	return append(j.b, '}', '\n')
}

// ecsKind is how ECS files a line.
type ecsKind struct {
	category, action, outcome string
	types                     []string
}

func ecsKindOf(l *Line) ecsKind {
	switch l.Kind {
	case KindLoss:
		return ecsKind{"network", "records-lost", "failure", []string{"info"}}
	case KindTest:
		return ecsKind{"configuration", "sink-test", "unknown", []string{"info"}}
	case KindChange:
		switch l.Change.Kind {
		case auditv1.ChangeKind_CHANGE_KIND_CREATED:
			return ecsKind{"configuration", "object-created", "success", []string{"creation"}}
		case auditv1.ChangeKind_CHANGE_KIND_UPDATED:
			return ecsKind{"configuration", "object-updated", "success", []string{"change"}}
		case auditv1.ChangeKind_CHANGE_KIND_DELETED:
			return ecsKind{"configuration", "object-deleted", "success", []string{"deletion"}}
		}
		return ecsKind{"configuration", "object-present", "success", []string{"info"}}
	}
	switch p := &l.Packet; {
	case p.Redirected:
		return ecsKind{"network", "packet-redirected", "unknown", []string{"connection", "info"}}
	case p.Action == policyv1.Action_ACTION_ALLOW:
		return ecsKind{"network", "packet-allowed", "success", []string{"connection", "allowed"}}
	case p.Action == policyv1.Action_ACTION_DROP:
		return ecsKind{"network", "packet-dropped", "failure", []string{"connection", "denied"}}
	case p.Action == policyv1.Action_ACTION_REJECT:
		return ecsKind{"network", "packet-rejected", "failure", []string{"connection", "denied"}}
	case p.Action == policyv1.Action_ACTION_PASS:
		return ecsKind{"network", "packet-passed", "unknown", []string{"connection", "info"}}
	}
	return ecsKind{"network", "packet-unattributed", "unknown", []string{"connection", "info"}}
}

func (j *jsonText) ecsEvent(l *Line) {
	k := ecsKindOf(l)
	at := j.open("event")
	j.text("kind", "event")
	j.list("category", k.category)
	j.list("type", k.types...)
	j.text("action", k.action)
	j.text("outcome", k.outcome)
	j.text("code", l.code())
	j.text("module", "weir")
	j.text("dataset", "weir.audit")
	j.text("id", strconv.FormatUint(l.Cursor, 10))
	if l.Sequence != 0 {
		j.unsigned("sequence", l.Sequence)
	}
	if !l.Received.IsZero() {
		j.time("created", l.Received)
	}
	switch l.Kind {
	case KindPacket:
		j.time("start", l.Packet.First)
		j.time("end", l.Packet.Last)
		j.optional("reason", l.Packet.Reason)
	case KindLoss:
		j.time("start", l.Loss.From)
		j.time("end", l.Loss.To)
		j.text("reason", stageWords.of(l.Loss.Stage))
	}
	j.end(at)
}

func (j *jsonText) ecsPacket(l *Line) {
	p := &l.Packet
	if !l.Overflow {
		at := j.open("source")
		j.address("address", p.Source)
		j.address("ip", p.Source)
		j.number("port", p.SourcePort)
		if f := p.Forged; f != nil {
			j.optional("mac", ecsMAC(f.SourceMAC))
		}
		j.end(at)
		at = j.open("destination")
		j.address("address", p.Destination)
		j.address("ip", p.Destination)
		j.number("port", p.DestPort)
		j.end(at)
	}
	j.ecsNetwork(l)
	at := j.open("rule")
	j.optional("name", p.Rule)
	if len(p.Policies) > 0 {
		j.text("ruleset", p.Policies[0].String())
		v := l.version(0)
		j.optional("uuid", v.UID)
		if v.Generation != 0 {
			j.text("version", strconv.FormatInt(v.Generation, 10))
		}
	}
	j.end(at)
	j.ecsTarget(l)
	at = j.open("labels")
	j.optional("log_label", p.LogLabel)
	j.end(at)
	j.ecsRest(l)
}

func (j *jsonText) ecsNetwork(l *Line) {
	p := &l.Packet
	at := j.open("network")
	if p.Direction != 0 {
		j.text("direction", directionWords.of(p.Direction))
	}
	if family := p.family(); !l.Overflow && family != 0 {
		j.text("type", ipNames[family])
		j.optional("transport", transportName(p.Protocol))
		j.text("iana_number", strconv.Itoa(int(p.Protocol)))
	}
	j.unsigned("packets", l.Packets)
	j.end(at)
}

var ipNames = [...]string{4: "ipv4", 6: "ipv6"}

// ecsTarget writes the Pod, Node or Service that the policy applies to.
func (j *jsonText) ecsTarget(l *Line) {
	to := l.Packet.AppliedTo
	if to == "" {
		return
	}
	kind, namespace, name := "pod", "", to
	if n, ok := strings.CutPrefix(to, "node:"); ok {
		kind, name = "node", n
	} else if s, ok := strings.CutPrefix(to, "service:"); ok {
		kind, name = "service", s
	}
	if before, after, ok := strings.Cut(name, "/"); ok && kind != "node" {
		namespace, name = before, after
	}
	j.ecsOrchestrator("", namespace, kind, name)
}

func (j *jsonText) ecsOrchestrator(apiVersion, namespace, kind, name string) {
	at := j.open("orchestrator")
	j.text("type", "kubernetes")
	j.optional("api_version", apiVersion)
	j.optional("namespace", namespace)
	resource := j.open("resource")
	j.text("type", kind)
	j.text("name", name)
	j.end(resource)
	j.end(at)
}

// ecsRest writes what ECS has no fields for.
func (j *jsonText) ecsRest(l *Line) {
	p := &l.Packet
	at := j.open("weir")
	j.unsigned("cursor", l.Cursor)
	j.optional("boot", l.Boot)
	j.text("action", actionWords.of(p.Action))
	j.optional("table", p.Table)
	if len(p.Policies) > 0 {
		j.policies("policies", p.Policies)
	}
	j.truth("isolation", p.Isolation)
	j.number("openflowPriority", p.Priority)
	j.optional("appliedTo", p.AppliedTo)
	j.optional("peer", p.Peer)
	if l.Overflow {
		j.truth("overflow", true)
	} else {
		j.text("protocol", p.ProtocolName())
		j.number("icmpType", p.ICMPType)
		j.number("icmpCode", p.ICMPCode)
		j.unsigned("length", uint64(p.Length))
		j.number("tcpFlags", Number{p.TCPFlags, p.TCPFlags != 0})
	}
	if f := p.Forged; f != nil {
		j.optional("claimedMAC", hardwareText(f.ClaimedMAC))
		j.address("targetIP", f.Target)
	}
	if p.Redirected {
		j.truth("redirected", true)
	}
	j.optional("service", l.service())
	j.context(l)
	if p.Staged != nil {
		j.staged(p.Staged)
	}
	j.end(at)
}

// ecsMAC is an address in the form that ECS asks for: 02-00-5E-…
func ecsMAC(mac [6]byte) string {
	return strings.ToUpper(strings.ReplaceAll(hardwareText(mac), ":", "-"))
}

func (j *jsonText) ecsLoss(l *Line) {
	s := &l.Loss
	at := j.open("network")
	if s.Direction != 0 {
		j.text("direction", directionWords.of(s.Direction))
	}
	j.end(at)
	at = j.open("rule")
	j.optional("name", s.Rule)
	if s.Policy.Name != "" {
		j.text("ruleset", s.Policy.String())
	}
	j.end(at)
	at = j.open("weir")
	j.unsigned("cursor", l.Cursor)
	j.optional("boot", l.Boot)
	j.lossFields(s)
	j.end(at)
}

func (j *jsonText) ecsChange(l *Line) {
	c := l.Change
	o := c.Object
	at := j.open("user")
	j.optional("name", o.GetUser())
	j.end(at)
	j.ecsOrchestrator(o.GetApiVersion(), o.GetNamespace(), strings.ToLower(o.GetKind()), o.GetName())
	at = j.open("rule")
	j.text("ruleset", o.GetKind()+":"+objectPath(c))
	j.optional("uuid", o.GetUid())
	if o.GetGeneration() != 0 {
		j.text("version", strconv.FormatInt(o.GetGeneration(), 10))
	}
	j.end(at)
	at = j.open("weir")
	j.unsigned("cursor", l.Cursor)
	j.text("change", changeWords.of(c.Kind))
	j.optional("manager", o.GetManager())
	if len(c.Fields) > 0 {
		j.list("fields", c.Fields...)
	}
	j.unsigned("podsBefore", uint64(c.PodsBefore))
	j.unsigned("podsAfter", uint64(c.PodsAfter))
	j.end(at)
}
