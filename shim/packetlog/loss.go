package packetlog

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
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
