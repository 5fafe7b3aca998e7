package shim

import (
	"context"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/shim/pipeline"
)

// packetIn records what a log flow reported.
func (l *loop) packetIn(p openflow.PacketIn) {
	pkt, err := packetlog.Parse(p.Packet)
	if err != nil {
		l.shim.metrics.unparsed.Inc()
		return
	}
	mark := pipeline.MarkOf(p.Table, p.Metadata.Reg)
	key := packetlog.Key{Table: p.Table, Cookie: p.Cookie, InPort: p.Metadata.InPort(), OutPort: p.Metadata.Reg(1),
		Mark: [3]uint32{uint32(mark.Verdict), mark.Rule, mark.Pass}, Decision: pipeline.DecisionOf(p.Cookie, p.Metadata.Reg), Unlogged: pipeline.Reported(p.UserData), Service: pipeline.ServiceOf(p.Metadata),
		Revision: pipeline.RevisionOf(p.Metadata.Reg)}
	l.shim.log.Add(time.Now(), key, pkt, func() (packetlog.Meaning, bool) {
		if l.compiler == nil {
			return packetlog.Meaning{}, false
		}
		a, ok := l.compiler.Attribute(pipeline.Hit{Table: p.Table, Cookie: p.Cookie, InPort: key.InPort, OutPort: key.OutPort,
			Src: pkt.Src, Dst: pkt.Dst, Proto: pkt.Proto, SrcPort: pkt.SrcPort, DstPort: pkt.DstPort, ICMPType: pkt.ICMPType, ICMPCode: pkt.ICMPCode,
			Service: key.Service, Decision: key.Decision, Revision: key.Revision, Mark: mark, Reported: key.Unlogged})
		return packetlog.Meaning(a), ok
	})
}

// spoofed records a packet that a Pod sent in another's name.
func (l *loop) spoofed(p openflow.PacketIn) {
	pkt, err := packetlog.ParseForged(p.Packet)
	if err != nil {
		l.shim.metrics.unparsed.Inc()
		return
	}
	key := packetlog.Key{Table: p.Table, Cookie: p.Cookie, InPort: p.Metadata.InPort()}
	l.shim.log.Add(time.Now(), key, pkt, func() (packetlog.Meaning, bool) {
		if l.compiler == nil {
			return packetlog.Meaning{}, false
		}
		a, ok := l.compiler.Attribute(pipeline.Hit{Table: p.Table, Cookie: p.Cookie, InPort: key.InPort})
		return packetlog.Meaning(a), ok
	})
}

// forgetRevisions lets the compiler forget what was otherwise before a revision
// that packets have met for a second and more: what was reported of them has come.
func (l *loop) forgetRevisions() {
	if l.compiler == nil {
		return
	}
	l.compiler.Forget(l.revision)
	if !l.stale && !l.unsettled {
		l.revision = l.compiler.Revision()
	}
}

// hear takes the packets whose reports have arrived, as long as the compiler
// knows the rules that reported them. Those that go on to arrive wait.
func (l *loop) hear() {
	for range len(l.shim.packetIns) {
		l.packetIn(<-l.shim.packetIns)
	}
}

// countLosses compares what the flows reported, to the log and of what was
// forged, with what arrived of each.
func (l *loop) countLosses(ctx context.Context, now time.Time) {
	stats, err := l.sw.MeterCounters(ctx)
	if err != nil {
		return // The bridge is away; reconcile says so.
	}
	read := func(meter uint32, controller uint16) packetlog.Reading {
		in := l.sw.PacketInStats(controller)
		r := packetlog.Reading{Time: now, Received: in.Received, Unread: in.Dropped + in.Bad}
		for _, m := range stats {
			if m.ID == meter {
				r.Metered, r.Limited = m.Packets, m.Dropped
			}
		}
		return r
	}
	for _, path := range []struct {
		losses     *packetlog.Losses
		meter      uint32
		controller uint16
		reason     string
	}{
		{&l.losses, pipeline.LogMeter, pipeline.LogController, ""},
		{&l.spoofLosses, pipeline.SpoofMeter, pipeline.SpoofController, "spoof"},
	} {
		for _, e := range path.losses.Next(read(path.meter, path.controller)) {
			e.Reason = path.reason
			l.shim.metrics.lost.WithLabelValues(e.GetStage().String(), path.reason).Add(float64(e.GetCount()))
			l.shim.log.Lose(e)
		}
	}
	for _, e := range l.unanswered.Next(read(pipeline.RejectMeter, pipeline.RejectController)) {
		outcome := answerLost
		if e.GetStage() == auditv1.LossStage_LOSS_STAGE_METER {
			outcome = answerOverRate
		}
		l.shim.metrics.rejected.WithLabelValues(outcome).Add(float64(e.GetCount()))
	}
}
