package record

import (
	"strconv"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// appendSummary appends what a line says, in a few words for people.
func (l *Line) appendSummary(b []byte) []byte {
	switch l.Kind {
	case KindLoss:
		return appendLossSummary(b, &l.Loss)
	case KindChange:
		return appendChangeSummary(b, l.Change)
	case KindTest:
		b = append(b, "test "...)
		b = appendWord(b, l.Test.ID)
		b = append(b, " for "...)
		return appendWord(b, l.Test.Sink)
	}
	return l.appendPacketSummary(b)
}

func appendLossSummary(b []byte, s *Loss) []byte {
	b = append(b, "lost "...)
	if s.Count == 0 {
		b = append(b, "an unknown count"...)
	} else {
		b = strconv.AppendUint(b, s.Count, 10)
	}
	b = append(b, " at "...)
	b = append(b, stageWords.of(s.Stage)...)
	if s.Policy.Name != "" {
		b = append(b, " of "...)
		b = appendWord(b, s.Policy.String())
	}
	if s.Rule != "" {
		b = append(b, " rule "...)
		b = appendWord(b, s.Rule)
	}
	if s.Direction != 0 {
		b = append(b, ' ')
		b = append(b, directionWords.of(s.Direction)...)
	}
	return b
}

func appendChangeSummary(b []byte, c *Change) []byte {
	o := c.Object
	b = append(b, changeWords.of(c.Kind)...)
	b = append(b, ' ')
	b = appendWord(b, o.GetKind())
	b = append(b, ' ')
	b = appendWord(b, objectPath(c))
	if by := changedBy(c); by != "" && c.Kind != auditv1.ChangeKind_CHANGE_KIND_PRESENT {
		b = append(b, " by "...)
		b = appendWord(b, by)
	}
	return b
}

// objectPath is "NAMESPACE/NAME", or "NAME".
func objectPath(c *Change) string {
	return Policy{Namespace: c.Object.GetNamespace(), Name: c.Object.GetName()}.Path()
}

// changedBy is who changed an object, or by which manager.
func changedBy(c *Change) string {
	if u := c.Object.GetUser(); u != "" {
		return u
	}
	return c.Object.GetManager()
}

func (l *Line) appendPacketSummary(b []byte) []byte {
	p := &l.Packet
	switch {
	case p.forStaged():
		b = append(b, "staged"...)
		if s := p.Staged; s != nil {
			b = append(b, ' ')
			b = append(b, actionWords.of(s.Action)...)
			if s.Policy.Name != "" {
				b = append(b, " for "...)
				b = appendWord(b, s.Policy.String())
			}
		}
		return b
	case p.Reason == reasonSpoof:
		b = append(b, "forged "...)
		b = append(b, p.ProtocolName()...)
		b = append(b, " from "...)
		return appendWord(b, p.AppliedTo)
	case p.Reason == reasonObserved:
		b = append(b, "observed "...)
	}
	b = append(b, p.actionName()...)
	b = append(b, ' ')
	b = append(b, directionWords.of(p.Direction)...)
	if l.Overflow {
		return append(b, " of many packets"...)
	}
	b = append(b, ' ')
	b = append(b, p.ProtocolName()...)
	b = append(b, ' ')
	b = appendSocket(b, p, true)
	b = append(b, " to "...)
	return appendSocket(b, p, false)
}

// appendSocket appends address and port, where there is one.
func appendSocket(b []byte, p *Packet, source bool) []byte {
	a, port := p.Destination, p.DestPort
	if source {
		a, port = p.Source, p.SourcePort
	}
	b = appendAddress(b, a)
	if port.Set {
		b = append(b, ' ')
		b = strconv.AppendUint(b, uint64(port.Value), 10)
	}
	return b
}
