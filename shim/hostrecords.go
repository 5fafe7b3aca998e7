package shim

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostfw"
	"github.com/weirnet/weir/shim/hostpolicy"
	"github.com/weirnet/weir/shim/nflog"
	"github.com/weirnet/weir/shim/packetlog"
)

// hostRecords makes records of what the host's rules report. They are under a
// budget of their own, as large as that of the bridge's log.
type hostRecords struct {
	shim   *Shim
	budget *rate.Limiter

	overRate, undelivered lossCount

	mu    sync.Mutex // Guards what follows.
	plans map[uint64]*hostpolicy.Plan
	kept  []uint64 // Their ids, the newest last.
}

const (
	// plansKept is how many plans are known: reports come after their time.
	plansKept = 8
	// hostTable stands in keys of the log for the host's rules, less the list.
	hostTable = 255
)

// tables stand in records for the lists of the host's rules.
var tables = map[hostpolicy.List]string{hostpolicy.NodePorts: "NodePort", hostpolicy.Ingress: "NodeIngress", hostpolicy.Egress: "NodeEgress"}

func newHostRecords(s *Shim) *hostRecords {
	limit := s.cfg.LogRate
	return &hostRecords{shim: s, budget: rate.NewLimiter(rate.Limit(limit), int(limit)), plans: make(map[uint64]*hostpolicy.Plan)}
}

// expect makes reports of a plan be understood.
func (h *hostRecords) expect(p *hostpolicy.Plan) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.plans[p.ID] != nil {
		return
	}
	h.plans[p.ID] = p
	if h.kept = append(h.kept, p.ID); len(h.kept) > plansKept {
		delete(h.plans, h.kept[0])
		h.kept = h.kept[1:]
	}
}

// report records a packet that a rule reported.
func (h *hostRecords) report(prefix string, packet []byte) {
	r, err := hostfw.ParseReport(prefix)
	var pkt packetlog.Packet
	if err == nil {
		pkt, err = packetlog.ParseIP(packet)
	}
	if err != nil {
		h.shim.metrics.unparsed.Inc()
		return
	}
	h.mu.Lock()
	plan := h.plans[r.Plan]
	h.mu.Unlock()
	m, known := packetlog.Meaning{Direction: r.List.Direction(), Table: tables[r.List], AppliedTo: "node:" + h.shim.cfg.Node}, false
	if plan != nil && r.Rule < len(plan.Rules(r.List)) {
		if known = decide(plan, r, pkt, &m); !known {
			return // The staged policies make no difference.
		}
	}
	if !h.budget.Allow() {
		h.overRate.add(1)
		return
	}
	key := packetlog.Key{Table: hostTable - uint8(r.List), Cookie: r.Plan, InPort: uint32(r.Rule), Unlogged: r.Staged}
	h.shim.log.Add(time.Now(), key, pkt, func() (packetlog.Meaning, bool) { return m, known })
}

// decide says what a report means. It is false where it is no matter of record:
// the world with the staged policies decides the same, or what decides in the
// other reports the packet itself.
func decide(plan *hostpolicy.Plan, r hostfw.Report, pkt packetlog.Packet, m *packetlog.Meaning) bool {
	c := hostpolicy.Connection{Own: pkt.Dst, Peer: pkt.Src, Protocol: pkt.Proto, Port: pkt.DstPort, SourcePort: pkt.SrcPort, ICMPType: pkt.ICMPType, ICMPCode: pkt.ICMPCode}
	if r.List == hostpolicy.Egress {
		c.Own, c.Peer = c.Peer, c.Own
	}
	rules := plan.Rules(r.List)
	enforced, staged := plan.Judge(r.List, c, false), plan.Judge(r.List, c, true)
	rule := r.Rule // Is what decided, also where the packet is cut short.
	if r.Staged {
		rule = enforced.Rule
		if enforced.Action == staged.Action || rule >= 0 && rules[rule].Log {
			return false
		}
		m.Unlogged = true
	}
	if m.Action = policyv1.Action_ACTION_ALLOW; rule >= 0 {
		d := &rules[rule]
		m.Action, m.Policies, m.Rule, m.LogLabel = d.Action, []*policyv1.PolicyRef{d.Policy}, d.Name, d.LogLabel
	}
	if enforced.Action != staged.Action {
		m.Staged = outcome(rules, staged)
	}
	return true
}

// outcome is what the staged world decides, and by which staged policy.
func outcome(rules []hostpolicy.Rule, v hostpolicy.Verdict) *auditv1.StagedOutcome {
	out := &auditv1.StagedOutcome{Action: v.Action}
	if v.Rule >= 0 {
		out.Policies = []*policyv1.PolicyRef{rules[v.Rule].Policy}
	}
	for _, i := range []int{v.Rule, v.PassedBy} {
		if i >= 0 && rules[i].Staged {
			out.Policy, out.Rule = rules[i].Policy, rules[i].Name
			break
		}
	}
	return out
}

// countLosses states what was reported and is not on record.
func (h *hostRecords) countLosses(reader *nflog.Reader, now time.Time) {
	if reader != nil {
		h.undelivered.add(reader.TakeLost())
	}
	for _, l := range []struct {
		stage auditv1.LossStage
		count *lossCount
	}{{auditv1.LossStage_LOSS_STAGE_METER, &h.overRate}, {auditv1.LossStage_LOSS_STAGE_QUEUE, &h.undelivered}} {
		from, n := l.count.take(now)
		if n == 0 {
			continue
		}
		h.shim.metrics.lost.WithLabelValues(l.stage.String(), "").Add(float64(n))
		h.shim.log.Lose(&auditv1.LossEvent{From: timestamppb.New(from), To: timestamppb.New(now), Count: n, Stage: l.stage})
	}
}

// missed states that nobody read what was reported: nobody knows how much that was.
func (h *hostRecords) missed(from, to time.Time) {
	h.shim.log.Lose(&auditv1.LossEvent{From: timestamppb.New(from), To: timestamppb.New(to), Stage: auditv1.LossStage_LOSS_STAGE_UNKNOWN})
}

// lossCount counts packets that were lost since the last look.
type lossCount struct {
	n    atomic.Uint64
	last time.Time // Of the one goroutine that looks.
}

func (l *lossCount) add(n uint64) { l.n.Add(n) }

func (l *lossCount) take(now time.Time) (from time.Time, n uint64) {
	from, n = l.last, l.n.Swap(0)
	if from.IsZero() {
		from = now.Add(-time.Second)
	}
	l.last = now
	return from, n
}
