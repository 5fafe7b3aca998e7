package record

import (
	"maps"
	"slices"
	"strings"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// words are an enum's values as JSON and syslog show them: lower case, without
// their prefix, made once for all lines.
type words[E ~int32] []string

func newWords[E ~int32](names map[int32]string, prefix string) words[E] {
	w := make(words[E], slices.Max(slices.Collect(maps.Keys(names)))+1)
	for n, name := range names {
		w[n] = strings.ToLower(strings.TrimPrefix(name, prefix))
	}
	return w
}

// of is a value's word, and the zero value's for one that is not known.
func (w words[E]) of(v E) string {
	if v < 0 || int(v) >= len(w) {
		return w[0]
	}
	return w[v]
}

var (
	directionWords = newWords[policyv1.Direction](policyv1.Direction_name, "DIRECTION_")
	actionWords    = newWords[policyv1.Action](policyv1.Action_name, "ACTION_")
	stageWords     = newWords[auditv1.LossStage](auditv1.LossStage_name, "LOSS_STAGE_")
	changeWords    = newWords[auditv1.ChangeKind](auditv1.ChangeKind_name, "CHANGE_KIND_")
)

// known is what the collector knew of a packet. An overflow line is of many
// packets, so that what was known of the first says nothing.
func (l *Line) known() *Context {
	if l.Overflow {
		return nil
	}
	return l.Context
}

// service is the Service that was asked for: the node translated, and so knows
// best.
func (l *Line) service() string {
	if s := l.Packet.Service; s != "" {
		return s
	}
	if c := l.known(); c != nil {
		return c.Service
	}
	return ""
}

// ends tells whose source and destination were: as the collector knew, or as
// the node's record itself says.
func (l *Line) ends() (source, destination End) {
	p := &l.Packet
	own, peer := endOf(p.AppliedTo), endOf(p.Peer)
	switch p.Direction {
	case policyv1.Direction_DIRECTION_EGRESS:
		source, destination = own, peer
	case policyv1.Direction_DIRECTION_INGRESS:
		source, destination = peer, own
	}
	if c := l.known(); c != nil {
		if c.Source != (End{}) {
			source = c.Source
		}
		if c.Destination != (End{}) {
			destination = c.Destination
		}
	}
	return source, destination
}

// endOf reads "NAMESPACE/POD" or "node:NAME"; a Service is nobody's address.
func endOf(s string) End {
	if name, ok := strings.CutPrefix(s, "node:"); ok {
		return End{Node: name}
	}
	if strings.HasPrefix(s, "service:") {
		return End{}
	}
	if namespace, pod, ok := strings.Cut(s, "/"); ok {
		return End{Namespace: namespace, Pod: pod}
	}
	return End{}
}

// String is "NAMESPACE/POD", or the node's name.
func (e End) String() string {
	if e.Pod != "" {
		return e.Namespace + "/" + e.Pod
	}
	return e.Node
}

// version of the i-th policy of a packet, where it was known.
func (l *Line) version(i int) Version {
	if c := l.known(); c != nil && i < len(c.Policies) {
		return c.Policies[i]
	}
	return Version{}
}

// family is 4 or 6, by the version of the Internet Protocol; 0 of other frames.
// One of the addresses may be withheld from a reader.
func (p *Packet) family() uint64 {
	switch {
	case p.Forged != nil && p.Forged.EtherType != 0:
		return 0
	case p.Source.Is4() || p.Destination.Is4():
		return 4
	case p.Source.IsValid() || p.Destination.IsValid():
		return 6
	}
	return 0
}

// code is what a line tells of in one word, for readers that pick by it.
func (l *Line) code() string {
	switch l.Kind {
	case KindLoss:
		return "loss"
	case KindChange:
		return "change"
	case KindTest:
		return "test"
	}
	switch p := &l.Packet; {
	case p.Reason == reasonSpoof:
		return "packet-forged"
	case p.Redirected:
		return "packet-redirect"
	case p.Action == policyv1.Action_ACTION_ALLOW:
		return "packet-allow"
	case p.Action == policyv1.Action_ACTION_DROP:
		return "packet-drop"
	case p.Action == policyv1.Action_ACTION_REJECT:
		return "packet-reject"
	case p.Action == policyv1.Action_ACTION_PASS:
		return "packet-pass"
	}
	return "packet-unattributed"
}
