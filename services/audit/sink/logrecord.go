package sink

import (
	"fmt"
	"strings"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

var instrumentation = &common.InstrumentationScope{Name: "github.com/weirnet/weir/services/audit"}

// attributes are built by appending.
type attributes []*common.KeyValue

func (a attributes) text(key, v string) attributes {
	if v == "" {
		return a
	}
	return append(a, &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: v}}})
}

func (a attributes) number(key string, v uint64) attributes {
	return append(a, &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: int64(v)}}})
}

func (a attributes) port(key string, n record.Number) attributes {
	if !n.Set {
		return a
	}
	return a.number(key, uint64(n.Value))
}

func (a attributes) list(key string, refs []record.Policy) attributes {
	if len(refs) == 0 {
		return a
	}
	values := &common.ArrayValue{}
	for _, ref := range refs {
		values.Values = append(values.Values, &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: ref.String()}})
	}
	return append(a, &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_ArrayValue{ArrayValue: values}}})
}

// newLogRecord is a line in OpenTelemetry's data model: its general names where
// there are any, ours for the rest.
func newLogRecord(l *record.Line, body string) *logs.LogRecord {
	r := &logs.LogRecord{TimeUnixNano: uint64(l.Time().UnixNano()), ObservedTimeUnixNano: uint64(l.Received.UnixNano()),
		SeverityNumber: logs.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO",
		Body: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: body}}}
	p := &l.Packet
	if l.Kind == record.KindLoss || l.Kind == record.KindPacket && (p.Action == policyv1.Action_ACTION_DROP || p.Action == policyv1.Action_ACTION_REJECT) {
		r.SeverityNumber, r.SeverityText = logs.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
	}
	a := attributes{}.text("log.record.uid", lineID(l)).number("weir.cursor", l.Cursor).text("weir.boot", l.Boot)
	if l.Sequence != 0 {
		a = a.number("weir.sequence", l.Sequence)
	}
	switch l.Kind {
	case record.KindLoss:
		r.EventName = "weir.loss"
		a = a.number("weir.count", l.Loss.Count).text("weir.stage", word(l.Loss.Stage.String(), "LOSS_STAGE_")).text("weir.reason", l.Loss.Reason)
	case record.KindChange:
		r.EventName = "weir.change"
	case record.KindTest:
		r.EventName = "weir.test"
		a = a.text("weir.test.id", l.Test.ID)
	default:
		r.EventName = "weir.packet"
		a = packetAttributes(a, l)
	}
	r.Attributes = a
	return r
}

func packetAttributes(a attributes, l *record.Line) attributes {
	p := &l.Packet
	a = a.text("weir.action", word(p.Action.String(), "ACTION_")).text("weir.direction", word(p.Direction.String(), "DIRECTION_")).number("weir.count", l.Packets).
		text("weir.reason", p.Reason).list("weir.policies", p.Policies).text("weir.rule", p.Rule).text("weir.log_label", p.LogLabel).
		text("weir.applied_to", p.AppliedTo).text("weir.peer", p.Peer)
	if p.Source.IsValid() && !l.Overflow {
		a = a.text("source.address", p.Source.String()).port("source.port", p.SourcePort).text("destination.address", p.Destination.String()).
			port("destination.port", p.DestPort).text("network.transport", strings.ToLower(p.ProtocolName()))
	}
	if p.Staged != nil {
		a = a.text("weir.staged.action", word(p.Staged.Action.String(), "ACTION_")).text("weir.staged.policy", p.Staged.Policy.String())
	}
	return a
}

// word is an enum's name in lower case, without its prefix.
func word(name, prefix string) string { return strings.ToLower(strings.TrimPrefix(name, prefix)) }

// lineID tells a line from others for ever: by the record that it begins with,
// which is node's, boot's and sequence's, and by how many packets are in it, for
// a window that ends otherwise when it is written again. What the collector
// states itself is told by its cursor.
func lineID(l *record.Line) string {
	if l.Sequence == 0 {
		return fmt.Sprintf("%s/cursor/%d", l.Node, l.Cursor)
	}
	id := fmt.Sprintf("%s/%s/%d/%d", l.Node, l.Boot, l.Sequence, l.Packets)
	if l.Overflow {
		id += "/overflow"
	}
	return id
}
