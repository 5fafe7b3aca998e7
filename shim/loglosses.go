package shim

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/shim/pipeline"
)

// logLosses is what the loop knows of what was reported to the log and did not
// arrive. Each meter of the log has its own reckoning: so a loss is known by rule.
type logLosses struct {
	of   map[uint32]*packetlog.Losses // By meter.
	read time.Time                    // When meters were read last. Zero: never.
	// came is what had come by a meter's number when it was dropped.
	came map[uint32]uint64
	// retired are how often meters were read since no packet meets them any more.
	retired map[uint32]int
}

// retiredFor is how many readings a meter stays that nothing has any more: what is
// lost inside Open vSwitch shows by then.
const retiredFor = 5

// countLosses compares what the flows reported, to the log and of what was
// forged, observed and rejected, with what arrived of each.
func (l *loop) countLosses(ctx context.Context, now time.Time) {
	counters, err := l.sw.MeterCounters(ctx)
	if err != nil {
		return // The bridge is away; reconcile says so.
	}
	stats := make(map[uint32]openflow.MeterStats, len(counters))
	for _, m := range counters {
		stats[m.ID] = m
	}
	l.countLogLosses(stats, now)
	reading := func(meter uint32, in bridge.PacketInStats) packetlog.Reading {
		m := stats[meter]
		return packetlog.Reading{Time: now, Metered: m.Packets, Limited: m.Dropped, Received: in.Received, Unread: in.Dropped + in.Bad}
	}
	for _, e := range l.spoofLosses.Next(reading(pipeline.SpoofMeter, l.sw.PacketInStats(pipeline.SpoofController))) {
		e.Reason = "spoof"
		l.shim.lose(e)
	}
	came, lost := l.shim.samples.Came(0), l.shim.samples.TakeLost()[0]
	l.samplesLost += lost.OverRate + lost.Dropped
	for _, e := range l.sampleLosses.Next(reading(pipeline.ObserveMeter, bridge.PacketInStats{Received: came, Dropped: l.samplesLost})) {
		e.Reason = "observed"
		l.shim.lose(e)
	}
	for _, e := range l.unanswered.Next(reading(pipeline.RejectMeter, l.sw.PacketInStats(pipeline.RejectController))) {
		outcome := answerLost
		if e.GetStage() == auditv1.LossStage_LOSS_STAGE_METER {
			outcome = answerOverRate
		}
		l.shim.metrics.rejected.WithLabelValues(outcome).Add(float64(e.GetCount()))
	}
	for _, e := range l.recovery.lost.Next(reading(pipeline.RecoveryMeter, l.sw.PacketInStats(pipeline.RecoveryController))) {
		outcome := recoveryLost
		if e.GetStage() == auditv1.LossStage_LOSS_STAGE_METER {
			outcome = recoveryOverRate
		}
		l.shim.metrics.recovered.WithLabelValues(outcome).Add(float64(e.GetCount()))
	}
	l.dropMeters(ctx)
}

// countLogLosses states what log flows reported and is not on record, by rule where
// that is known. A meter that was not there before begins with nothing.
func (l *loop) countLogLosses(stats map[uint32]openflow.MeterStats, now time.Time) {
	g := &l.logLosses
	if g.of == nil {
		g.of, g.came, g.retired = make(map[uint32]*packetlog.Losses), make(map[uint32]uint64), make(map[uint32]int)
	}
	unknown := false
	for id, m := range stats {
		if !pipeline.IsLogMeter(id) {
			continue
		}
		losses := g.of[id]
		if losses == nil {
			losses = new(packetlog.Losses)
			if g.of[id] = losses; !g.read.IsZero() {
				losses.Begin(g.read, g.came[id])
			}
		}
		for _, e := range losses.Next(packetlog.Reading{Time: now, Metered: m.Packets, Limited: m.Dropped, Received: l.shim.reports.Came(id)}) {
			switch e.GetStage() {
			case auditv1.LossStage_LOSS_STAGE_UNKNOWN:
				unknown = true
				continue
			case auditv1.LossStage_LOSS_STAGE_METER:
				e.Stage = auditv1.LossStage_LOSS_STAGE_RULE_METER
			}
			l.loseOf(id, e)
		}
	}
	for id := range g.of {
		if _, there := stats[id]; !there {
			l.forgetMeter(id)
			unknown = true // Its last counters are gone with it.
		}
	}
	from := g.read
	if g.read = now; from.IsZero() {
		from = now
	}
	if unknown { // Of whichever rules: one statement does.
		l.shim.lose(&auditv1.LossEvent{From: timestamppb.New(from), To: timestamppb.New(now), Stage: auditv1.LossStage_LOSS_STAGE_UNKNOWN})
	}
	for id, lost := range l.shim.reports.TakeLost() {
		for stage, n := range map[auditv1.LossStage]uint64{auditv1.LossStage_LOSS_STAGE_METER: lost.OverRate, auditv1.LossStage_LOSS_STAGE_QUEUE: lost.Dropped} {
			if n > 0 {
				l.loseOf(id, &auditv1.LossEvent{From: timestamppb.New(from), To: timestamppb.New(now), Count: n, Stage: stage})
			}
		}
	}
}

// loseOf states a loss of what a meter of the log limits.
func (l *loop) loseOf(meter uint32, e *auditv1.LossEvent) {
	if l.compiler != nil {
		if s := l.compiler.MeterSubject(meter); s != nil {
			e.Policy = &policyv1.PolicyRef{Kind: s.Kind, Namespace: s.Namespace, Name: s.Name}
			e.Rule, e.Direction = s.Rule, s.Direction
			if s.Isolation {
				e.Reason = "isolation"
			}
		}
	}
	l.shim.lose(e)
}

// lose counts and states a loss.
func (s *Shim) lose(e *auditv1.LossEvent) {
	reason := e.GetReason()
	if reason == "isolation" {
		reason = "" // As it was ever: what policies log.
	}
	s.metrics.lost.WithLabelValues(e.GetStage().String(), reason).Add(float64(e.GetCount()))
	s.log.Lose(e)
}

// dropMeters takes out meters that nothing names any more, once what they counted
// last is stated.
func (l *loop) dropMeters(ctx context.Context) {
	g := &l.logLosses
	if l.compiler == nil || l.stale || l.unsettled {
		return
	}
	retired, seen := l.compiler.RetiredMeters(), make(map[uint32]int)
	var ids []uint32
	for _, id := range retired {
		if seen[id] = g.retired[id] + 1; seen[id] > retiredFor {
			ids = append(ids, id)
		}
	}
	if g.retired = seen; len(ids) == 0 {
		return
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
	if _, known := l.logLosses.of[id]; known {
		delete(l.logLosses.of, id)
		delete(l.logLosses.retired, id)
		l.logLosses.came[id] = l.shim.reports.Came(id)
	}
}
