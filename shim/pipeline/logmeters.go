package pipeline

import (
	"encoding/binary"
	"maps"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// What logs has a meter of its own, each rule and each isolation, as long as there
// are enough: so a flood on one takes nothing of what another may report, and
// what the meter holds back is known by rule. Beyond that, ids share meters by a
// hash. A controller action has one meter in Open vSwitch, and clone takes none,
// so that the limit of all together is kept where the reports arrive.
//
// A meter stays with its id, over restarts too. One that nothing has any more is
// retired: it stays until its counters have been read, and DropMeters lets it go.
// Only then another may have it.

// LogMeter limits the reports that no rule asks for: of what staged policies deny and
// nothing enforced decides. It has no Subject.
const LogMeter = 1

// The meters of what logs.
const (
	firstLogMeter = 16
	mostLogMeters = 1024
)

// IsLogMeter says whether a meter limits reports to the log.
func IsLogMeter(id uint32) bool {
	return id == LogMeter || id >= firstLogMeter && id < firstLogMeter+mostLogMeters
}

// OwnsMeter says whether flows of ours may name a meter.
func OwnsMeter(id uint32) bool { return id < firstLogMeter+mostLogMeters && id != 0 }

// logMeters are those of what logs.
type logMeters struct {
	size    uint32            // How many there may be.
	of      map[uint32]uint32 // By the id of a part of a rule or of an isolation.
	holders map[uint32]map[uint32]struct{}
	retired map[uint32]*Subject // Of whom they were last; nil where that is not one.
	shared  map[uint32]struct{} // Several have had it: it is nobody's until it is dropped.
	fresh   []uint32            // Since the last Update.
	taken   uint32              // Those below are held or retired.
}

func newLogMeters(limit uint32, former map[uint32]uint32) logMeters {
	m := logMeters{of: make(map[uint32]uint32), holders: make(map[uint32]map[uint32]struct{}), retired: make(map[uint32]*Subject), shared: make(map[uint32]struct{})}
	if limit >= firstLogMeter {
		m.size = min(limit-firstLogMeter+1, mostLogMeters)
	}
	for id, meter := range former {
		if meter >= firstLogMeter && meter < firstLogMeter+m.size {
			m.hold(id, meter)
		}
	}
	return m
}

func (m *logMeters) hold(id, meter uint32) {
	if m.of[id] = meter; len(m.holders[meter]) > 0 {
		m.shared[meter] = struct{}{}
	}
	link(m.holders, meter, id)
}

// get is the meter of an id, which gets one if it has none.
func (m *logMeters) get(id uint32) uint32 {
	if meter, has := m.of[id]; has {
		return meter
	}
	for ; m.taken < m.size; m.taken++ {
		if meter := firstLogMeter + m.taken; m.free(meter) {
			m.hold(id, meter)
			m.fresh = append(m.fresh, meter)
			return meter
		}
	}
	for n := range m.size {
		if meter := firstLogMeter + (id+n)%m.size; len(m.holders[meter]) > 0 {
			m.hold(id, meter)
			return meter
		}
	}
	return LogMeter
}

func (m *logMeters) free(meter uint32) bool {
	_, retired := m.retired[meter]
	return !retired && len(m.holders[meter]) == 0
}

// release takes an id's meter from it. The last leaves it retired, with its subject.
func (m *logMeters) release(id uint32, subject *Subject) {
	meter, has := m.of[id]
	if !has {
		return
	}
	delete(m.of, id)
	if unlink(m.holders, meter, id); len(m.holders[meter]) == 0 {
		m.retired[meter] = subject
	}
}

// takeFresh are the meters that are new since the last Update and still held.
func (m *logMeters) takeFresh() []uint32 {
	fresh := m.fresh
	m.fresh = nil
	return fresh
}

// MeterSubject is whose reports a meter of the log limits; nil where that is nobody's,
// several rules' or policies', or not known.
func (c *Compiler) MeterSubject(meter uint32) *Subject {
	if _, shared := c.meters.shared[meter]; shared {
		return nil
	}
	for id := range c.meters.holders[meter] {
		return c.soleSubject(id)
	}
	return c.meters.retired[meter]
}

// soleSubject is what an id reports packets of, if that is one rule, or the isolation by one
// policy.
func (c *Compiler) soleSubject(id uint32) *Subject {
	n := c.counts.of[id]
	if n == nil {
		return nil
	}
	if pt := c.byConj[id]; pt != nil && len(pt.body.members) > 1 {
		return nil // Alike, and each might be named.
	}
	if list := n.subjects(); len(list) == 1 {
		return &list[0]
	}
	return nil
}

// RetiredMeters are those that no flow names any more, as of the last Update.
func (c *Compiler) RetiredMeters() []uint32 { return slices.Sorted(maps.Keys(c.meters.retired)) }

// DropMeters gives up retired meters: they are to be taken out, and may be given
// to others.
func (c *Compiler) DropMeters(ids []uint32) {
	for _, id := range ids {
		if _, retired := c.meters.retired[id]; retired {
			delete(c.meters.retired, id)
			delete(c.meters.shared, id)
			c.meters.taken = min(c.meters.taken, id-firstLogMeter)
		}
	}
}

// RetireMeters retires meters that a former compiler gave out, unless the assignment
// has them: nobody gets one before it is dropped. Each comes with whose it was, nil
// where that is not one's. It is called before the first Update.
func (c *Compiler) RetireMeters(former map[uint32]*Subject) {
	for meter, of := range former {
		if meter >= firstLogMeter && meter-firstLogMeter < c.meters.size && c.meters.free(meter) {
			c.meters.retired[meter] = of
		}
	}
}

// Reporter is what a flow of a rule or of an isolation that reports to the log says of
// itself.
type Reporter struct {
	Meter  uint32
	ID     uint32 // Of the part of the rule, or of the isolation.
	Action policyv1.Action
}

// ReporterOf reads a flow, whichever compiler made it; false where that reports
// nothing to the log.
func ReporterOf(f openflow.Flow) (r Reporter, ok bool) {
	kind, id, ours := ParseCookie(f.Cookie)
	switch {
	case ours && kind == KindRule:
		r.ID, r.Action = id, policyv1.Action_ACTION_ALLOW
	case ours && kind == KindIsolation:
		r.Action = policyv1.Action_ACTION_DROP
	default:
		return r, false
	}
	for _, a := range f.Actions.List() {
		switch a := a.(type) {
		case openflow.Controller:
			if a.ControllerID == LogController {
				r.Meter, ok = a.MeterID, true
			} else if a.ControllerID == RejectController {
				r.Action = policyv1.Action_ACTION_REJECT
			}
		case openflow.Resubmit:
			r.Action = policyv1.Action_ACTION_PASS // Counted, and then on.
		case openflow.Goto:
			if uint8(a) == TableRuleMetric && r.Action != policyv1.Action_ACTION_REJECT {
				r.Action = policyv1.Action_ACTION_DROP
			}
		case openflow.SetField:
			if kind == KindIsolation && a.ID == openflow.FieldReg(regDecision) {
				r.ID = uint32(a.Value.Uint64())
			}
		}
	}
	return r, ok
}

// Meters are the meters that the flows name, and those that are retired.
func (c *Compiler) Meters() []openflow.Meter {
	out := []openflow.Meter{c.logMeter(LogMeter), {ID: RejectMeter, Rate: c.cfg.RejectRate, Burst: c.cfg.RejectRate}, {ID: SpoofMeter, Rate: spoofRate, Burst: spoofRate},
		{ID: RecoveryMeter, Rate: recoveryRate, Burst: recoveryRate}}
	if len(c.cfg.Observe) > 0 {
		out = append(out, openflow.Meter{ID: ObserveMeter, Rate: c.cfg.ObserveRate, Burst: c.cfg.ObserveRate})
	}
	for meter := range c.meters.holders {
		out = append(out, c.logMeter(meter))
	}
	for meter := range c.meters.retired {
		out = append(out, c.logMeter(meter))
	}
	return out
}

// Metered are the flows of Desired whose reports meters of some ids limit.
func (c *Compiler) Metered(ids map[uint32]bool) (out []openflow.Flow) {
	c.flows.all(func(f openflow.Flow) {
		for _, a := range f.Actions.List() {
			if to, is := a.(openflow.Controller); is && ids[to.MeterID] {
				out = append(out, f)
				return
			}
		}
	})
	return out
}

func (c *Compiler) logMeter(id uint32) openflow.Meter {
	return openflow.Meter{ID: id, Rate: c.cfg.RuleLogRate, Burst: c.cfg.RuleLogBurst}
}

// logAction reports a packet to the log under the meter of an id; zero is none. Only is
// whether nothing asks for that but that the staged world's verdict is another.
func (c *Compiler) logAction(id uint32, only bool) openflow.Action {
	meter := uint32(LogMeter)
	if id != 0 {
		meter = c.meters.get(id)
	}
	return openflow.Controller{ControllerID: LogController, MaxLen: logBytes, MeterID: meter, UserData: logData(meter, only)}
}

// logData is what a report tells of itself: whether it is for its mark alone, and
// which meter let it through.
func logData(meter uint32, only bool) string {
	return string(binary.BigEndian.AppendUint32([]byte{byte(bit(only))}, meter))
}

// Reported says whether a log event is of a packet that is reported for its mark
// alone.
func Reported(userData []byte) bool { return len(userData) > 0 && userData[0] == 1 }

// MeterOf is the meter that let a log event through.
func MeterOf(userData []byte) uint32 {
	if len(userData) < 5 {
		return LogMeter
	}
	return binary.BigEndian.Uint32(userData[1:])
}
