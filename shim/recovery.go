package shim

import (
	"context"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/shim/pipeline"
)

// What becomes of packets of connections that the switch has forgotten: values of a
// metric's label.
const (
	recoveryAnswer   = "recovered"
	recoveryJudged   = "judged"    // As no answer: the rules decide.
	recoveryUnread   = "unread"    // And lost.
	recoveryLost     = "lost"      // In our queue, or with the switch.
	recoveryOverRate = "over-rate" // The meter let no more through.
)

// recovery is the time after the switch has forgotten what it held, in which
// connections that were allowed are picked up by what answers them: see
// pipeline/recovery.go.
type recovery struct {
	ours      bool      // The bridge held our flows.
	forgotten bool      // It does not any more, and no time was given yet.
	until     time.Time // Zero: it is no such time.
	recovered int
	lost      packetlog.Losses
}

// recoveryKeeper is a Dataplane that keeps the end of a recovery where it outlives us.
type recoveryKeeper interface {
	// KeepRecovery keeps it; the zero time is none.
	KeepRecovery(ctx context.Context, until time.Time) error
}

// noticeLoss sees whether the bridge has forgotten our flows, and begins a recovery
// where it has; held says that it has any of ours. The flows that are to be put in for it are part of the change that
// brings the others back.
func (l *loop) noticeLoss(now time.Time, held bool) []openflow.Flow {
	r := &l.recovery
	if l.adopting != nil || l.shim.cfg.RecoveryWindow <= 0 {
		return nil
	}
	r.forgotten = r.forgotten || r.ours && !held
	if !l.complete {
		return nil
	}
	r.ours = true
	if !r.forgotten {
		return nil
	}
	r.forgotten, r.recovered, r.until = false, 0, now.Add(l.shim.cfg.RecoveryWindow)
	l.shim.metrics.forgotten.Inc()
	l.shim.logger.Warn("the switch has forgotten its flows, and maybe its connections: they are put back, and TCP connections that were allowed go on by what answers them", "for", l.shim.cfg.RecoveryWindow)
	return pipeline.Recovery()
}

// recovering says whether packets may be judged as answers.
func (l *loop) recovering(now time.Time) bool { return now.Before(l.recovery.until) }

// goOnRecovering renews what a recovery needs, and ends it when its time is over.
func (l *loop) goOnRecovering(ctx context.Context, now time.Time) {
	r := &l.recovery
	if r.until.IsZero() || l.compiler == nil {
		return
	}
	change := bridge.Change{Upsert: pipeline.Recovery()}
	if !l.recovering(now) {
		for _, f := range change.Upsert {
			change.Delete = append(change.Delete, f.Key())
		}
		change.Upsert = nil
	}
	if err := l.sw.Apply(ctx, change); err != nil {
		return // They go by themselves.
	}
	if len(change.Delete) == 0 {
		return
	}
	r.until = time.Time{}
	l.keepRecovery(ctx)
	l.shim.logger.Info("packets in the midst of unknown connections are judged as the first of new ones from now on", "recovered", r.recovered)
}

// keepRecovery keeps the end of the recovery where the next shim finds it.
func (l *loop) keepRecovery(ctx context.Context) {
	k, ok := l.sw.(recoveryKeeper)
	if !ok {
		return
	}
	if err := k.KeepRecovery(ctx, l.recovery.until); err != nil {
		l.shim.logger.Warn("the end of the recovery cannot be kept: a shim that starts before it does not go on with it", "err", err)
	}
}

// recover judges a packet of a connection that the switch does not know, and puts it
// back.
func (l *loop) recover(ctx context.Context, p *openflow.PacketIn) {
	outcome := l.recoverBy(ctx, p)
	if outcome == recoveryAnswer {
		l.recovery.recovered++
	}
	l.shim.metrics.recovered.WithLabelValues(outcome).Inc()
}

func (l *loop) recoverBy(ctx context.Context, p *openflow.PacketIn) string {
	pkt, err := packetlog.Parse(p.Packet)
	if err != nil {
		return recoveryUnread
	}
	answer := l.compiler != nil && l.recovering(time.Now()) && l.compiler.Answers(p.Metadata.InPort(), pipeline.Hit{Src: pkt.Src, Dst: pkt.Dst, Proto: pkt.Proto, SrcPort: pkt.SrcPort, DstPort: pkt.DstPort})
	if err := l.sw.PacketOut(ctx, openflow.PacketOut{InPort: p.Metadata.InPort(), Actions: pipeline.Recovered(answer), Packet: p.Packet}); err != nil {
		return recoveryLost
	}
	if answer {
		return recoveryAnswer
	}
	return recoveryJudged
}
