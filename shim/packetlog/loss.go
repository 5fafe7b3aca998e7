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
	Born     time.Duration // The meter, by the machine's monotonic clock. Zero: not known.
	Metered  uint64        // Packets that came to the meter: all that log flows reported.
	Limited  uint64        // Of these, over its rate.
	Received uint64        // Packet-ins that the switch delivered, before Metered was read: each was counted there.
	Before   uint64        // Of these, before the meter was put.
	Unread   uint64        // Of these, dropped by our own queue or unreadable.
	Unbound  bool          // It was put since the last reading, while flows reported under meters that were gone: it may have counted of these.
}

// Losses works out from the counters of a meter how many reports were lost, and where.
// The zero Losses is ready; it belongs to one goroutine.
type Losses struct {
	last     Reading
	begun    bool
	looked   bool      // The last reading was one.
	heir     time.Time // Since when reports may be missing that a former shim had.
	heirFor  int       // Readings for which what is missing is taken for these.
	stated   uint64    // As lost on the way, so far, net of the base.
	base     int64     // Deficit while nothing was lost that is to be stated.
	deficits []uint64  // As the latest readings were followed.

	limited, missed uint64  // Stated in all: over the rate, and lost on the way.
	origin          Account // Of what was at the first reading, less what had been stated.
}

// Begin takes the meter to begin with nothing, when so many reports had come before.
func (l *Losses) Begin(at time.Time, before uint64) {
	l.begin(Reading{Time: at}, -int64(before))
}

// Resume takes up the meter as a former shim left it, that was there until a time and
// had accounted for so much. What is missing was lost with that shim.
func (l *Losses) Resume(at time.Time, a Account) {
	l.begin(Reading{Time: at, Limited: uint64(max(0, a.OverRate)), Born: a.Born}, a.Base)
	l.heir, l.heirFor = at, settle*settle
}

func (l *Losses) begin(first Reading, base int64) {
	*l = Losses{last: first, begun: true, base: base, limited: l.limited, missed: l.missed,
		origin: Account{Base: base - int64(l.missed), OverRate: int64(first.Limited) - int64(l.limited)}}
}

// Account is what a Ledger is to begin the meter's account with.
func (l *Losses) Account() Account {
	a := l.origin
	a.Born = l.last.Born
	return a
}

// settle is for how many readings a deficit must last to be a loss: until then
// the reports may be under way. A deficit is of what the meter had counted a reading
// before: so while reports keep coming it is too small, and never too large.
const settle = 3

// Next takes a reading and returns the losses since the last.
func (l *Losses) Next(r Reading) []*auditv1.LossEvent {
	deficit := int64(r.Metered) - int64(r.Limited) - int64(r.Received)
	var out []*auditv1.LossEvent
	another := l.begun && l.last.Born != 0 && !SameMeter(r.Born, l.last.Born)
	back := l.heirFor == settle*settle && int64(r.Metered) < l.origin.Base+l.origin.OverRate || r.Metered < l.last.Metered || r.Limited < l.last.Limited
	if another || back || r.Unbound || !l.begun {
		// The first look, or the switch began to count anew.
		if l.begun {
			out = append(out, &auditv1.LossEvent{From: timestamppb.New(l.last.Time), To: timestamppb.New(r.Time), Stage: auditv1.LossStage_LOSS_STAGE_UNKNOWN})
		}
		if !another || r.Unbound {
			l.begin(r, deficit)
			l.looked = true
			return out
		}
		l.begin(Reading{Time: l.last.Time, Born: r.Born, Unread: l.last.Unread}, -int64(r.Before))
	}
	if more := l.base - deficit; more > 0 {
		// More has come than that says: it was under way at the first look, or is of
		// another meter, that was there before. Else as much would hide what is lost next.
		l.base -= more
		l.origin.Base -= more
	}
	add := func(stage auditv1.LossStage, from time.Time, count uint64) {
		if count > 0 {
			out = append(out, &auditv1.LossEvent{From: timestamppb.New(from), To: timestamppb.New(r.Time), Count: count, Stage: stage})
		}
	}
	over := r.Limited - l.last.Limited
	add(auditv1.LossStage_LOSS_STAGE_METER, l.last.Time, over)
	l.limited += over
	add(auditv1.LossStage_LOSS_STAGE_QUEUE, l.last.Time, r.Unread-l.last.Unread)
	if l.looked {
		before := int64(l.last.Metered) - int64(l.last.Limited) - int64(r.Received)
		l.deficits = append(l.deficits, uint64(max(0, before-l.base)))
		l.deficits = l.deficits[max(0, len(l.deficits)-settle+1):]
	}
	l.looked = true
	if len(l.deficits) == settle-1 {
		if sure := slices.Min(l.deficits); sure > l.stated {
			stage, from := auditv1.LossStage_LOSS_STAGE_OVS, l.last.Time
			if l.heirFor > 0 {
				stage, from = auditv1.LossStage_LOSS_STAGE_QUEUE, l.heir
			}
			add(stage, from, sure-l.stated)
			l.missed += sure - l.stated
			l.stated = sure
		}
	}
	l.heirFor = max(0, l.heirFor-1)
	l.last = r
	return out
}

// losses are those that are not taken yet. What was lost in the same place of the
// same rule is one, so that they are few, however long nobody takes them.
type losses struct {
	of    map[lossKey]*loss
	order []lossKey
}

type loss struct {
	event  *auditv1.LossEvent
	shares []share // One a class, each over the rate or not.
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

func newLosses() losses { return losses{of: make(map[lossKey]*loss)} }

// concern says whether one is of a class.
func (l *losses) concern(class uint32) bool {
	for _, one := range l.of {
		if slices.ContainsFunc(one.shares, func(s share) bool { return s.class == class }) {
			return true
		}
	}
	return false
}

func (l *losses) n() int { return len(l.order) }

func (l *losses) add(e *auditv1.LossEvent, of ...share) {
	key := lossKey{e.GetStage(), e.GetReason(), e.GetPolicy().GetKind(), e.GetPolicy().GetNamespace(), e.GetPolicy().GetName(), e.GetRule(), e.GetDirection()}
	if l.of[key] == nil && len(l.of) >= lossesMost {
		key = lossKey{stage: e.GetStage(), reason: e.GetReason()}
		e = &auditv1.LossEvent{From: e.GetFrom(), To: e.GetTo(), Count: e.GetCount(), Stage: key.stage, Reason: key.reason}
	}
	have := l.of[key]
	if have == nil {
		l.of[key] = &loss{e, of}
		l.order = append(l.order, key)
		return
	}
	have.add(of)
	have.event.Count += e.GetCount()
	if e.GetFrom().AsTime().Before(have.event.GetFrom().AsTime()) {
		have.event.From = e.GetFrom()
	}
	if e.GetTo().AsTime().After(have.event.GetTo().AsTime()) {
		have.event.To = e.GetTo()
	}
}

func (l *loss) add(of []share) {
next:
	for _, s := range of {
		for i := range l.shares {
			if have := &l.shares[i]; have.class == s.class && have.overRate == s.overRate {
				have.count += s.count
				continue next
			}
		}
		l.shares = append(l.shares, s)
	}
}

// take takes up to n out, the oldest first.
func (l *losses) take(n int) []logged {
	n = min(n, len(l.order))
	out := make([]logged, 0, n)
	for _, key := range l.order[:n] {
		have := l.of[key]
		out = append(out, logged{&auditv1.Event{Kind: &auditv1.Event_Loss{Loss: have.event}}, have.shares})
		delete(l.of, key)
	}
	l.order = slices.Delete(l.order, 0, n)
	return out
}
