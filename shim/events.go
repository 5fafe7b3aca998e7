package shim

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/shim/pipeline"
)

// logReport is what a log flow reported, as far as it is read before the loop takes
// it: no packet is kept.
type logReport struct {
	key      packetlog.Key
	pkt      packetlog.Packet
	mark     pipeline.Mark
	observed policyv1.Direction // Of a sample.
}

// takeReport reads what a log flow reported, on the goroutine that it arrives on.
func (s *Shim) takeReport(p openflow.PacketIn) {
	meter := pipeline.MeterOf(p.UserData)
	pkt, err := packetlog.Parse(p.Packet)
	if err != nil {
		s.metrics.unparsed.Inc()
		s.reports.Spoil(meter)
		return
	}
	mark := pipeline.MarkOf(p.Table, p.Metadata.Reg)
	s.reports.Put(time.Now(), meter, logReport{pkt: pkt, mark: mark, key: packetlog.Key{Table: p.Table, Cookie: p.Cookie, InPort: p.Metadata.InPort(), OutPort: p.Metadata.Reg(1),
		Mark: [3]uint32{uint32(mark.Verdict), mark.Rule, mark.Pass}, Decision: pipeline.DecisionOf(p.Cookie, p.Metadata.Reg), Unlogged: pipeline.Reported(p.UserData), Service: pipeline.ServiceOf(p.Metadata),
		Revision: pipeline.RevisionOf(p.Metadata.Reg), Class: meter}})
}

// record makes an event of what was reported.
func (l *loop) record(at time.Time, r logReport) {
	key, pkt := r.key, r.pkt
	l.shim.log.Add(at, key, pkt, func() (packetlog.Meaning, bool) {
		if l.compiler == nil {
			return l.meantFormerly(key)
		}
		a, ok := l.compiler.Attribute(pipeline.Hit{Table: key.Table, Cookie: key.Cookie, InPort: key.InPort, OutPort: key.OutPort,
			Src: pkt.Src, Dst: pkt.Dst, Proto: pkt.Proto, SrcPort: pkt.SrcPort, DstPort: pkt.DstPort, ICMPType: pkt.ICMPType, ICMPCode: pkt.ICMPCode,
			Service: key.Service, Decision: key.Decision, Revision: key.Revision, Mark: r.mark, Reported: key.Unlogged, Observed: r.observed})
		if !ok {
			return l.meantFormerly(key)
		}
		return packetlog.Meaning(a), ok
	})
}

// reporters are what the bridge's flows that report to the log do, by the id of a rule or an
// isolation.
func reporters(actual bridge.State) map[uint32]policyv1.Action {
	out := make(map[uint32]policyv1.Action)
	for _, f := range actual.Flows {
		if r, reports := pipeline.ReporterOf(f); reports {
			out[r.ID] = r.Action
		}
	}
	return out
}

// meantFormerly is what a report of a flow means that no compiler knows, since it is of a
// former life without a checkpoint: as much as flow and accounts tell. Whom the packet
// was from and for they do not.
func (l *loop) meantFormerly(key packetlog.Key) (packetlog.Meaning, bool) {
	kind, id, _ := pipeline.ParseCookie(key.Cookie)
	if kind == pipeline.KindIsolation {
		id = key.Decision
	}
	subjects := l.counts.subjects(id)
	action, reports := l.reporters[id]
	if len(subjects) == 0 || !reports || kind != pipeline.KindIsolation && kind != pipeline.KindRule {
		return packetlog.Meaning{}, false
	}
	m := packetlog.Meaning{Table: pipeline.TableName(key.Table), Direction: subjects[0].Direction, Action: action, Rule: subjects[0].Rule, Isolation: subjects[0].Isolation, Unlogged: key.Unlogged}
	for _, s := range subjects {
		m.Policies = append(m.Policies, &policyv1.PolicyRef{Kind: s.Kind, Namespace: s.Namespace, Name: s.Name})
	}
	return m, true
}

// spoofed records a packet that a Pod sent in another's name.
func (l *loop) spoofed(p openflow.PacketIn) {
	pkt, err := packetlog.ParseForged(p.Packet)
	if err != nil {
		l.shim.metrics.unparsed.Inc()
		now := timestamppb.Now()
		l.loseOf(pipeline.SpoofMeter, false, &auditv1.LossEvent{From: now, To: now, Count: 1, Stage: auditv1.LossStage_LOSS_STAGE_QUEUE})
		return
	}
	key := packetlog.Key{Table: p.Table, Cookie: p.Cookie, InPort: p.Metadata.InPort(), Class: pipeline.SpoofMeter}
	l.shim.log.Add(time.Now(), key, pkt, func() (packetlog.Meaning, bool) {
		if l.compiler == nil {
			return packetlog.Meaning{}, false
		}
		a, ok := l.compiler.Attribute(pipeline.Hit{Table: p.Table, Cookie: p.Cookie, InPort: key.InPort})
		return packetlog.Meaning(a), ok
	})
}

// takeSample reads a packet that was observed.
func (s *Shim) takeSample(p openflow.PacketIn) {
	pkt, err := packetlog.Parse(p.Packet)
	if err != nil {
		s.metrics.unparsed.Inc()
		s.samples.Spoil(0)
		return
	}
	s.samples.Put(time.Now(), 0, logReport{pkt: pkt, observed: pipeline.ObservedOf(p.Cookie, p.UserData), key: packetlog.Key{Table: p.Table, Cookie: p.Cookie,
		InPort: p.Metadata.InPort(), OutPort: p.Metadata.Reg(1), Decision: pipeline.DecisionOf(p.Cookie, p.Metadata.Reg), Service: pipeline.ServiceOf(p.Metadata),
		Revision: pipeline.RevisionOf(p.Metadata.Reg), Class: pipeline.ObserveMeter}})
}

// forgetRevisions lets the compiler forget what was otherwise before a revision
// that packets have met for a second and more: what was reported of them has come.
func (l *loop) forgetRevisions() {
	if l.compiler == nil {
		return
	}
	l.hear() // What waits was judged before.
	l.compiler.Forget(l.revision)
	if !l.stale && !l.unsettled {
		l.revision = l.compiler.Revision()
	}
}

// sampleRate is no limit: the meter is, for there is but one class.
const sampleRate = 1 << 20

// reportsAtOnce is how many reports the loop makes events of before it looks at what
// else there is to do.
const reportsAtOnce = 256

// hear takes the packets whose reports have arrived, as long as the compiler
// knows the rules that reported them. Those that go on to arrive wait.
func (l *loop) hear() {
	if l.reporters == nil {
		return // Before the bridge was read nothing says what they mean. The intake is bounded.
	}
	now := time.Now()
	l.shim.reports.TakeAll(now, l.record)
	l.shim.samples.TakeAll(now, l.record)
}

// takeReports makes events of what was reported, as far as the rates allow.
func (l *loop) takeReports(now time.Time) {
	if l.reporters == nil {
		return
	}
	l.shim.reports.Take(now, reportsAtOnce, l.record)
	l.shim.samples.Take(now, reportsAtOnce, l.record)
}
