package record

import (
	"strconv"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// NPLog writes lines as Antrea's np.log has them:
//
//	DATE TIME TABLE POLICY RULE DIRECTION ACTION PRIORITY APPLIED-TO SOURCE PORT DESTINATION PORT PROTOCOL LENGTH LABEL
//	… [N packets in D]
//
// What is absent is <nil>.
type NPLog struct {
	Zone  *time.Location // Nil: UTC.
	Named bool           // Isolation drops name the policies that isolate, not only their kind.
}

// Append appends a line, newline included. Losses are not for np.log, whose
// readers know packets only: nothing is appended for them. Nor for what is on
// record for staged policies alone, or forged: its readers take a line for one
// that a policy asked for.
func (n NPLog) Append(b []byte, l *Line) []byte {
	if l.Kind != KindPacket || !l.Packet.printed() {
		return b
	}
	p := &l.Packet
	zone := n.Zone
	if zone == nil {
		zone = time.UTC
	}
	b = l.Printed().In(zone).AppendFormat(b, "2006/01/02 15:04:05.000000")
	b = append(b, ' ')
	b = appendWord(b, p.Table)
	b = append(b, ' ')
	b = n.appendPolicy(b, p)
	b = append(b, ' ')
	b = appendWord(b, p.Rule)
	b = append(b, ' ')
	b = append(b, p.directionName()...)
	b = append(b, ' ')
	b = append(b, p.actionName()...)
	b = append(b, ' ')
	b = appendNumber(b, p.Priority)
	b = append(b, ' ')
	b = appendWord(b, p.AppliedTo)
	b = append(b, ' ')
	if l.Overflow {
		b = append(b, "<nil> <nil> <nil> <nil> <nil>"...)
	} else {
		b = appendAddress(b, p.Source)
		b = append(b, ' ')
		b = appendNumber(b, p.SourcePort)
		b = append(b, ' ')
		b = appendAddress(b, p.Destination)
		b = append(b, ' ')
		b = appendNumber(b, p.DestPort)
		b = append(b, ' ')
		b = append(b, ProtocolName(p.Protocol)...)
	}
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(p.Length), 10)
	b = append(b, ' ')
	b = appendWord(b, p.LogLabel)
	if l.Packets > 1 {
		d := l.Window
		if d == 0 {
			d = p.Last.Sub(p.First)
		}
		b = append(b, " ["...)
		b = strconv.AppendUint(b, l.Packets, 10)
		b = append(b, " packets in "...)
		b = append(b, d.String()...)
		b = append(b, ']')
	}
	return append(b, '\n')
}

func (n NPLog) appendPolicy(b []byte, p *Packet) []byte {
	if p.Isolation {
		b = append(b, policyPrefixes[policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY]...)
		if !n.Named {
			return b
		}
		for i, ref := range p.Policies {
			sep := byte(',')
			if i == 0 {
				sep = ':'
			}
			b = append(b, sep)
			b = appendWord(b, ref.Path())
		}
		return b
	}
	if len(p.Policies) == 0 {
		return append(b, "<nil>"...)
	}
	return appendWord(b, p.Policies[0].String())
}
