package packetlog

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Reading is one look at the counters of the log path, all since boot.
type Reading struct {
	Time     time.Time
	Metered  uint64 // Packets that came to the meter: all that log flows reported.
	Limited  uint64 // Of these, over its rate.
	Received uint64 // Packet-ins that the switch delivered.
	Unread   uint64 // Of these, dropped by our own queue or unreadable.
}

// Losses works out from the counters how many reports were lost, and where.
// The zero Losses is ready; it belongs to one goroutine.
type Losses struct {
	last     Reading
	begun    bool
	stated   uint64   // OVS losses stated so far, net of the base.
	base     int64    // Deficit at the first reading.
	deficits []uint64 // Of the latest readings.
}

// Begin takes the meter to begin with nothing, when so many reports had come before.
func (l *Losses) Begin(at time.Time, received uint64) {
	l.last, l.begun, l.base = Reading{Time: at, Received: received}, true, -int64(received)
}

// settle is for how many readings a deficit must last to be a loss: until then
// the reports may be under way.
const settle = 3

// Next takes a reading and returns the losses since the last.
func (l *Losses) Next(r Reading) []*auditv1.LossEvent {
	deficit := int64(r.Metered) - int64(r.Limited) - int64(r.Received)
	if !l.begun || r.Metered < l.last.Metered || r.Limited < l.last.Limited {
		// The first look, or the switch began to count anew.
		var out []*auditv1.LossEvent
		if l.begun {
			out = append(out, &auditv1.LossEvent{From: timestamppb.New(l.last.Time), To: timestamppb.New(r.Time), Stage: auditv1.LossStage_LOSS_STAGE_UNKNOWN})
		}
		l.last, l.begun, l.stated, l.base, l.deficits = r, true, 0, deficit, nil
		return out
	}
	var out []*auditv1.LossEvent
	add := func(stage auditv1.LossStage, count uint64) {
		if count > 0 {
			out = append(out, &auditv1.LossEvent{From: timestamppb.New(l.last.Time), To: timestamppb.New(r.Time), Count: count, Stage: stage})
		}
	}
	add(auditv1.LossStage_LOSS_STAGE_METER, r.Limited-l.last.Limited)
	add(auditv1.LossStage_LOSS_STAGE_QUEUE, r.Unread-l.last.Unread)
	l.deficits = append(l.deficits, uint64(max(0, deficit-l.base)))
	if len(l.deficits) > settle {
		l.deficits = l.deficits[1:]
	}
	if len(l.deficits) == settle {
		sure := l.deficits[0]
		for _, d := range l.deficits {
			sure = min(sure, d)
		}
		if sure > l.stated {
			add(auditv1.LossStage_LOSS_STAGE_OVS, sure-l.stated)
			l.stated = sure
		}
	}
	l.last = r
	return out
}

// losses are those that are not taken yet. What was lost in the same place of the
// same rule is one, so that they are few, however long nobody takes them.
type losses struct {
	of    map[lossKey]*auditv1.LossEvent
	order []lossKey
}

// lossesMost is how many rules' losses are told apart. Those of more are one.
const lossesMost = 8192

type lossKey struct {
	stage           auditv1.LossStage
	reason          string
	kind            policyv1.PolicyKind
	namespace, name string
	rule            string
	direction       policyv1.Direction
}

func newLosses() losses { return losses{of: make(map[lossKey]*auditv1.LossEvent)} }

func (l *losses) n() int { return len(l.order) }

func (l *losses) add(e *auditv1.LossEvent) {
	key := lossKey{e.GetStage(), e.GetReason(), e.GetPolicy().GetKind(), e.GetPolicy().GetNamespace(), e.GetPolicy().GetName(), e.GetRule(), e.GetDirection()}
	if l.of[key] == nil && len(l.of) >= lossesMost {
		key = lossKey{stage: e.GetStage(), reason: e.GetReason()}
		e = &auditv1.LossEvent{From: e.GetFrom(), To: e.GetTo(), Count: e.GetCount(), Stage: key.stage, Reason: key.reason}
	}
	have := l.of[key]
	if have == nil {
		l.of[key] = e
		l.order = append(l.order, key)
		return
	}
	have.Count += e.GetCount()
	if e.GetFrom().AsTime().Before(have.GetFrom().AsTime()) {
		have.From = e.GetFrom()
	}
	if e.GetTo().AsTime().After(have.GetTo().AsTime()) {
		have.To = e.GetTo()
	}
}

// take takes up to n out, the oldest first.
func (l *losses) take(n int) []*auditv1.LossEvent {
	n = min(n, len(l.order))
	out := make([]*auditv1.LossEvent, 0, n)
	for _, key := range l.order[:n] {
		out = append(out, l.of[key])
		delete(l.of, key)
	}
	l.order = slices.Delete(l.order, 0, n)
	return out
}
