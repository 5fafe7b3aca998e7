package record

import _ "embed" // Of the schema.

// SchemaVersion is what the lines of AppendJSON say that they keep to. Within
// it fields are only added, and none changes its type or meaning: a reader
// passes over those that it does not know. Values of "stage", "kind", "reason"
// and "protocol" may be added too.
const SchemaVersion = "weir.audit/v1"

// JSONSchema is the JSON Schema (2020-12) of the lines of AppendJSON, as this
// version writes them.
//
//go:embed schema/weir.audit.v1.json
var JSONSchema string

// AppendJSON appends a line as one JSON object, newline included. Field names
// are stable; fields that do not apply are left out; times are RFC 3339 in UTC.
// JSONSchema tells of each.
//
//	schema cursor node boot sequence received, and one of
//	packet: first last count direction action reason table policies isolation rule logLabel openflowPriority
//	        appliedTo peer sourceIP sourcePort destinationIP destinationPort protocol icmpType icmpCode length
//	        tcpFlags redirected overflow service staged{action policy rule policies}
//	        of reason "spoof" too: sourceMAC claimedMAC targetIP; protocol may be ARP, or the number of an Ethernet
//	        type (0x88cc)
//	        where it was known: source and destination {namespace pod node workload}, policyVersions[{uid generation}]
//	        in the order of policies
//	loss:   from to count stage reason policy rule direction
//	change: time kind object{apiVersion kind namespace name uid generation manager user manifest} fields podsBefore podsAfter
//	test:   time sink id
//
// Of merged records, cursor, sequence and received are the first one's; count,
// first and last are of all. A manifest is written in full, as the object that it
// is: it is what a change is evidence of, and at most 128 KiB.
func AppendJSON(b []byte, l *Line) []byte {
	j := jsonText{append(b, '{')}
	j.text("schema", SchemaVersion)
	j.unsigned("cursor", l.Cursor)
	j.text("node", l.Node)
	j.optional("boot", l.Boot)
	if l.Sequence != 0 {
		j.unsigned("sequence", l.Sequence)
	}
	if !l.Received.IsZero() {
		j.time("received", l.Received)
	}
	switch l.Kind {
	case KindLoss:
		at := j.open("loss")
		j.time("from", l.Loss.From)
		j.time("to", l.Loss.To)
		j.lossFields(&l.Loss)
		j.end(at)
	case KindChange:
		j.change(l.Change)
	case KindTest:
		at := j.open("test")
		j.time("time", l.Test.Time)
		j.text("sink", l.Test.Sink)
		j.text("id", l.Test.ID)
		j.end(at)
	default:
		j.packet(l)
	}
	return append(j.b, '}', '\n')
}

func (j *jsonText) packet(l *Line) {
	p := &l.Packet
	at := j.open("packet")
	j.time("first", p.First)
	j.time("last", p.Last)
	j.unsigned("count", l.Packets)
	j.text("direction", directionWords.of(p.Direction))
	j.text("action", actionWords.of(p.Action))
	j.optional("reason", p.Reason)
	j.optional("table", p.Table)
	j.policies("policies", p.Policies)
	j.truth("isolation", p.Isolation)
	j.optional("rule", p.Rule)
	j.optional("logLabel", p.LogLabel)
	j.number("openflowPriority", p.Priority)
	j.optional("appliedTo", p.AppliedTo)
	j.optional("peer", p.Peer)
	if !l.Overflow {
		j.address("sourceIP", p.Source)
		j.number("sourcePort", p.SourcePort)
		j.address("destinationIP", p.Destination)
		j.number("destinationPort", p.DestPort)
		j.text("protocol", p.ProtocolName())
		j.number("icmpType", p.ICMPType)
		j.number("icmpCode", p.ICMPCode)
		j.unsigned("length", uint64(p.Length))
		j.number("tcpFlags", Number{p.TCPFlags, p.TCPFlags != 0})
	}
	if f := p.Forged; f != nil {
		j.optional("sourceMAC", hardwareText(f.SourceMAC))
		j.optional("claimedMAC", hardwareText(f.ClaimedMAC))
		j.address("targetIP", f.Target)
	}
	if p.Redirected {
		j.truth("redirected", true)
	}
	if l.Overflow {
		j.truth("overflow", true)
	}
	j.optional("service", l.service())
	j.context(l)
	if p.Staged != nil {
		j.staged(p.Staged)
	}
	j.end(at)
}

func (j *jsonText) staged(s *Staged) {
	at := j.open("staged")
	j.text("action", actionWords.of(s.Action))
	if s.Policy.Name != "" {
		j.text("policy", s.Policy.String())
	}
	j.optional("rule", s.Rule)
	j.policies("policies", s.Policies)
	j.end(at)
}

// context writes what the collector knew of a packet.
func (j *jsonText) context(l *Line) {
	c := l.known()
	if c == nil {
		return
	}
	j.whose("source", &c.Source)
	j.whose("destination", &c.Destination)
	if len(c.Policies) == 0 {
		return
	}
	j.key("policyVersions")
	j.b = append(j.b, '[')
	for _, v := range c.Policies {
		j.comma()
		j.b = append(j.b, '{')
		j.optional("uid", v.UID)
		if v.Generation != 0 {
			j.signed("generation", v.Generation)
		}
		j.b = append(j.b, '}')
	}
	j.b = append(j.b, ']')
}

func (j *jsonText) whose(name string, e *End) {
	at := j.open(name)
	j.optional("namespace", e.Namespace)
	j.optional("pod", e.Pod)
	j.optional("node", e.Node)
	j.optional("workload", e.Workload)
	j.end(at)
}

func (j *jsonText) lossFields(s *Loss) {
	j.unsigned("count", s.Count)
	j.text("stage", stageWords.of(s.Stage))
	j.optional("reason", s.Reason)
	if s.Policy.Name != "" {
		j.text("policy", s.Policy.String())
	}
	j.optional("rule", s.Rule)
	if s.Direction != 0 {
		j.text("direction", directionWords.of(s.Direction))
	}
}

func (j *jsonText) change(c *Change) {
	at := j.open("change")
	j.time("time", c.Time)
	j.text("kind", changeWords.of(c.Kind))
	o := c.Object
	object := j.open("object")
	j.optional("apiVersion", o.GetApiVersion())
	j.text("kind", o.GetKind())
	j.optional("namespace", o.GetNamespace())
	j.text("name", o.GetName())
	j.optional("uid", o.GetUid())
	if o.GetGeneration() != 0 {
		j.signed("generation", o.GetGeneration())
	}
	j.optional("manager", o.GetManager())
	j.optional("user", o.GetUser())
	j.manifest("manifest", o.GetManifest())
	j.end(object)
	if len(c.Fields) > 0 {
		j.list("fields", c.Fields...)
	}
	j.unsigned("podsBefore", uint64(c.PodsBefore))
	j.unsigned("podsAfter", uint64(c.PodsAfter))
	j.end(at)
}
