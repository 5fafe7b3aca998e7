package shim

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage/faultpoint"
)

// logLosses is what the loop knows of what was reported and did not arrive. Each
// meter has its own reckoning: so a loss is known by rule.
type logLosses struct {
	of   map[uint32]*packetlog.Losses // By meter.
	read time.Time                    // When meters were read last. Zero: never.
	gone map[uint32]bool              // Of these, those that are no more: whether others took it, so that flows may report on.
	// put is what had come by a meter's number before it was put last.
	put map[uint32]uint64
	// unbound are those put since they were read last while flows reported under meters
	// that were gone.
	unbound map[uint32]bool
	// retired are how often meters were read since no packet meets them any more.
	retired map[uint32]int
	// opened are accounts as the ledger has them.
	opened map[uint32]packetlog.Account
}

func newLogLosses() logLosses {
	return logLosses{of: make(map[uint32]*packetlog.Losses), gone: make(map[uint32]bool), put: make(map[uint32]uint64), unbound: make(map[uint32]bool),
		retired: make(map[uint32]int), opened: make(map[uint32]packetlog.Account)}
}

// ledgerName is the ledger's file in the state folder.
const ledgerName = "reported"

func newLedger(dir string, logger hclog.Logger) *packetlog.Ledger {
	return packetlog.NewLedger(filepath.Join(dir, ledgerName), clock()().Boot, logger)
}

// retiredFor is how many readings a meter stays that nothing has any more: what is
// lost inside Open vSwitch shows by then.
const retiredFor = 5

// countLosses compares what the flows reported, to the log and of what was
// forged, observed and rejected, with what arrived of each.
func (l *loop) countLosses(ctx context.Context, now time.Time) {
	readings, err := l.readMeters(ctx, now)
	if err != nil {
		return // The bridge is away; reconcile says so.
	}
	if l.compiler != nil && slices.ContainsFunc(l.compiler.Meters(), func(m openflow.Meter) bool { _, is := readings[m.ID]; return !is }) {
		l.disturbed = true // No switch tells of meters.
	}
	for id := range ownControllers {
		if id != pipeline.SpoofMeter { // That is one of the log's.
			delete(l.logLosses.unbound, id)
		}
	}
	for _, e := range l.unanswered.Next(readings[pipeline.RejectMeter]) {
		outcome := answerLost
		if e.GetStage() == auditv1.LossStage_LOSS_STAGE_METER {
			outcome = answerOverRate
		}
		l.shim.metrics.rejected.WithLabelValues(outcome).Add(float64(e.GetCount()))
	}
	for _, e := range l.recovery.lost.Next(readings[pipeline.RecoveryMeter]) {
		outcome := recoveryLost
		if e.GetStage() == auditv1.LossStage_LOSS_STAGE_METER {
			outcome = recoveryOverRate
		}
		l.shim.metrics.recovered.WithLabelValues(outcome).Add(float64(e.GetCount()))
	}
	if l.shim.ledger != nil && (!l.shim.ledger.Settled() || l.compiler == nil && l.logLosses.read.IsZero()) {
		return // What a former shim had brought to record is not known yet. Counters count on.
	}
	l.countLogLosses(readings, now)
	faultpoint.Reach("shim.log.stated")
	l.dropMeters(ctx)
}

// meterTries is how often meters are read where each time it takes so long that their
// births are not known.
const meterTries = 3

// readMeters reads all meters, after what has arrived of their reports. It reads them
// again where the shim was kept from its work meanwhile: a meter's birth is known only as
// well as when its age was read.
func (l *loop) readMeters(ctx context.Context, now time.Time) (map[uint32]packetlog.Reading, error) {
	var received map[uint32]arrived
	var counters []openflow.MeterStats
	var up time.Duration
	for try, took := 0, packetlog.BornSlack; took >= packetlog.BornSlack/2 && try < meterTries; try++ {
		received = l.received()
		began := l.counts.now().Up
		var err error
		if counters, err = l.sw.MeterCounters(ctx); err != nil {
			return nil, err
		}
		up = l.counts.now().Up
		took = up - began
	}
	readings := make(map[uint32]packetlog.Reading, len(counters))
	for _, m := range counters {
		r := packetlog.Reading{Time: now, Metered: m.Packets, Limited: m.Dropped, Received: received[m.ID].n, Unread: received[m.ID].unread,
			Before: l.logLosses.put[m.ID], Unbound: l.logLosses.unbound[m.ID]}
		if m.Age > 0 {
			r.Born = up - m.Age
		}
		readings[m.ID] = r
	}
	return readings, nil
}

// arrived is what arrived of a meter's reports in all, and what of that could not be read.
type arrived struct{ n, unread uint64 }

// received is what arrived, by meter.
func (l *loop) received() map[uint32]arrived {
	out := make(map[uint32]arrived)
	for meter, n := range l.shim.reports.Came() {
		out[meter] = arrived{n: n}
	}
	for meter, id := range ownControllers {
		in := l.sw.PacketInStats(id)
		out[meter] = arrived{in.Received, in.Dropped + in.Bad}
	}
	came := l.shim.samples.Came()[0] // Before what became of it.
	lost := l.shim.samples.TakeLost()[0]
	l.samplesLost += lost.OverRate + lost.Dropped
	out[pipeline.ObserveMeter] = arrived{came, l.samplesLost}
	return out
}

// ownControllers are the controllers that have a meter of their own.
var ownControllers = map[uint32]uint16{pipeline.SpoofMeter: pipeline.SpoofController, pipeline.RejectMeter: pipeline.RejectController, pipeline.RecoveryMeter: pipeline.RecoveryController}

// putMeters notes what had come by the numbers of meters that are about to be put.
func (l *loop) putMeters(meters []openflow.Meter) {
	if len(meters) == 0 {
		return
	}
	received := l.received()
	for _, m := range meters {
		l.logLosses.put[m.ID] = received[m.ID].n
	}
}

// countLogLosses states what was reported and is not on record, by rule where that is
// known. A meter that was not there before begins with nothing.
func (l *loop) countLogLosses(readings map[uint32]packetlog.Reading, now time.Time) {
	g, ledger := &l.logLosses, l.shim.ledger
	from := g.read
	if from.IsZero() {
		if from = now; ledger != nil && !ledger.Since().IsZero() {
			from = ledger.Since()
		}
	}
	since := from                    // Since when something is unknown.
	unknown := make(map[string]bool) // By reason.
	meters := make(map[string]int)   // Of which that is so, by why.
	doubt := func(id uint32, why string) {
		unknown[reasonOf(id)] = true
		meters[why]++
	}
	for id, r := range readings {
		if !pipeline.IsLogMeter(id) && id != pipeline.SpoofMeter && id != pipeline.ObserveMeter {
			continue
		}
		losses, known := g.of[id]
		_, gone := g.gone[id]
		if !known {
			losses = new(packetlog.Losses)
			g.of[id] = losses
		}
		switch {
		case !known && g.read.IsZero():
			if l.takeUp(losses, id, r) {
				doubt(id, "nothing says what of its reports a former shim had brought to record")
			}
		case !known || gone && !r.Unbound: // Else it is not known since it was read last.
			losses.Begin(g.read, g.put[id])
		}
		delete(g.gone, id)
		delete(g.unbound, id)
		lost := losses.Next(r)
		if a := losses.Account(); ledger != nil && (a.Base != g.opened[id].Base || a.OverRate != g.opened[id].OverRate || !packetlog.SameMeter(a.Born, g.opened[id].Born)) {
			ledger.Begin(id, a)
			g.opened[id] = a
		}
		for _, e := range lost {
			if e.GetStage() == auditv1.LossStage_LOSS_STAGE_UNKNOWN {
				doubt(id, "its counters went back")
				if e.GetFrom().AsTime().Before(since) {
					since = e.GetFrom().AsTime()
				}
			} else {
				l.loseOf(id, e.GetStage() == auditv1.LossStage_LOSS_STAGE_METER, e)
			}
		}
	}
	taken := false
	for id := range g.of {
		if _, there := readings[id]; !there {
			if _, known := g.gone[id]; !known {
				doubt(id, "it is gone, and its last counters with it")
				l.forgetMeter(id)
				g.gone[id] = true
			}
			taken = taken || g.gone[id]
		}
	}
	if g.read.IsZero() && ledger != nil {
		var gone []uint32
		for id, a := range ledger.Formers() {
			if _, there := readings[id]; !there && !a.Discarded {
				doubt(id, "a former shim had it, and it is gone with its last counters")
				gone = append(gone, id)
			}
		}
		ledger.Discard(gone) // So that it is said once.
	}
	if g.read = now; ledger != nil && !taken { // Else the next life would take what follows for known.
		ledger.Read(now)
	}
	for why, n := range meters {
		l.shim.logger.Warn("how many reports to the log were lost is not known", "meters", n, "why", why)
	}
	for reason := range unknown { // Of whichever rules: one statement does.
		l.shim.lose(&auditv1.LossEvent{From: timestamppb.New(since), To: timestamppb.New(now), Stage: auditv1.LossStage_LOSS_STAGE_UNKNOWN, Reason: reason})
	}
	for id, lost := range l.shim.reports.TakeLost() {
		for stage, n := range map[auditv1.LossStage]uint64{auditv1.LossStage_LOSS_STAGE_METER: lost.OverRate, auditv1.LossStage_LOSS_STAGE_QUEUE: lost.Dropped} {
			if n > 0 {
				l.loseOf(id, false, &auditv1.LossEvent{From: timestamppb.New(from), To: timestamppb.New(now), Count: n, Stage: stage})
			}
		}
	}
}

// reasonOf is what losses of a meter say they are of.
func reasonOf(meter uint32) string {
	switch meter {
	case pipeline.SpoofMeter:
		return "spoof"
	case pipeline.ObserveMeter:
		return "observed"
	}
	return ""
}

// standingMeters are the log's meters that the bridge has, with whose reports they limit: nil
// where that is several's, or where flows and accounts do not tell.
func (l *loop) standingMeters(actual bridge.State) map[uint32]*pipeline.Subject {
	by := make(map[uint32]map[pipeline.Subject]struct{}) // Meter.
	for _, f := range actual.Flows {
		r, reports := pipeline.ReporterOf(f)
		if !reports {
			continue
		}
		subjects := l.counts.subjects(r.ID)
		if len(subjects) == 0 {
			subjects = []pipeline.Subject{{}} // Somebody's.
		}
		for _, s := range subjects {
			if by[r.Meter] == nil {
				by[r.Meter] = make(map[pipeline.Subject]struct{})
			}
			by[r.Meter][s] = struct{}{}
		}
	}
	meters := make(map[uint32]*pipeline.Subject)
	for id := range actual.Meters {
		if by[id] == nil && l.adopting != nil {
			continue // It may be another's.
		}
		meters[id] = nil
		for s := range by[id] {
			if len(by[id]) == 1 && s != (pipeline.Subject{}) {
				meters[id] = &s
			}
		}
	}
	return meters
}

// takeUp begins the reckoning of a meter that may be a former shim's. It is true where
// nothing says how much of it that shim had brought to record.
func (l *loop) takeUp(losses *packetlog.Losses, meter uint32, r packetlog.Reading) (unknown bool) {
	ledger := l.shim.ledger
	if ledger == nil || r.Born == 0 {
		return false
	}
	former := ledger.Formers()
	a, known := former[meter]
	same := known && packetlog.SameMeter(a.Born, r.Born)
	switch {
	case same && a.Discarded:
		return false // All was stated before: the first look is where it stands.
	case known && (a.Born == 0 || a.Discarded): // The former shim had put it, and died before it looked.
		losses.Resume(ledger.Since(), packetlog.Account{Born: r.Born, Base: a.Base, OverRate: a.OverRate})
		return false
	case same:
		losses.Resume(ledger.Since(), a)
		return false
	case ledger.Since().IsZero() && r.Born < l.born: // There is no ledger, but there was a shim.
		return r.Metered > 0
	}
	if put, own := l.logLosses.put[meter]; own || !known { // It was put since.
		losses.Resume(r.Time, packetlog.Account{Born: r.Born, Base: -int64(put)})
	} // Else the former shim put it, and nothing says what of it that had brought to record.
	return known
}

// loseOf states a loss of a meter's reports, that the meter held back or others.
func (l *loop) loseOf(meter uint32, held bool, e *auditv1.LossEvent) {
	if e.Reason = reasonOf(meter); e.Reason == "" && held {
		e.Stage = auditv1.LossStage_LOSS_STAGE_RULE_METER
	}
	if l.compiler != nil {
		if s := l.compiler.MeterSubject(meter); s != nil {
			e.Policy = &policyv1.PolicyRef{Kind: s.Kind, Namespace: s.Namespace, Name: s.Name}
			e.Rule, e.Direction = s.Rule, s.Direction
			if s.Isolation {
				e.Reason = "isolation"
			}
		}
	}
	l.shim.metrics.lose(e)
	l.shim.log.LoseOf(meter, held, e)
}

// lose counts and states a loss of what no meter counts.
func (s *Shim) lose(e *auditv1.LossEvent) {
	s.metrics.lose(e)
	s.log.Lose(e)
}

func (m *metrics) lose(e *auditv1.LossEvent) {
	reason := e.GetReason()
	if reason == "isolation" {
		reason = "" // As it was ever: what policies log.
	}
	m.lost.WithLabelValues(e.GetStage().String(), reason).Add(float64(e.GetCount()))
}

// underWay says whether something of a meter's reports is on its way to the collector,
// to be accounted for when it arrives.
func (l *loop) underWay(meter uint32) bool {
	return l.shim.ledger != nil && (l.shim.log.Holds(meter) || l.shim.ledger.Awaits(meter))
}

// dropMeters takes out meters that nothing names any more, once what they counted
// last is stated.
func (l *loop) dropMeters(ctx context.Context) {
	g := &l.logLosses
	if l.compiler == nil || !l.complete || l.stale || l.unsettled { // Flows of a former life may report under one.
		return
	}
	retired, seen := l.compiler.RetiredMeters(), make(map[uint32]int)
	var ids []uint32
	for _, id := range retired {
		if seen[id] = g.retired[id] + 1; seen[id] > retiredFor && !l.underWay(id) {
			ids = append(ids, id)
		}
	}
	if g.retired = seen; len(ids) == 0 {
		return
	}
	if l.shim.ledger != nil {
		l.shim.ledger.Discard(ids)
	}
	if err := l.sw.Apply(ctx, bridge.Change{DeleteMeters: ids}); err != nil {
		l.stale = true
		l.failed(err)
		return
	}
	l.compiler.DropMeters(ids)
	for _, id := range ids {
		l.forgetMeter(id)
	}
}

// forgetMeter is told that a meter is gone, and what it counted is stated, or cannot be.
func (l *loop) forgetMeter(id uint32) {
	g := &l.logLosses
	if _, known := g.of[id]; known {
		g.gone[id] = false
		delete(g.unbound, id)
		delete(g.retired, id)
	}
}
