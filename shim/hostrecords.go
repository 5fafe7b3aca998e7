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

// hostRecords makes records of what the host's rules report. They are under
// budgets of their own, as large as those of the bridge's log: one of each rule,
// and one of all, which they share.
type hostRecords struct {
	shim        *Shim
	reports     *packetlog.Intake[hostReport]
	undelivered atomic.Uint64 // Reports, since losses were stated.

	mu      sync.Mutex                  // Guards what follows.
	plans   map[uint64]*hostpolicy.Plan // By their shape, the newest of each.
	kept    []uint64                    // The shapes, the newest last.
	rules   map[hostRule]*hostBudget
	classes []hostRule // Of reports, less one. What has class 0 is of no rule that is told apart.
	stated  time.Time  // When losses were stated last.
}

// hostRule is a rule by what records name it.
type hostRule struct {
	list      hostpolicy.List
	kind      policyv1.PolicyKind
	namespace string
	name      string // Of the policy. Empty: none decides.
	rule      string
}

// hostBudget is that of one rule.
type hostBudget struct {
	class    uint32
	budget   *rate.Limiter
	overRate uint64 // Since losses were stated.
}

// hostReport is a report that is within its rule's budget.
type hostReport struct {
	key   packetlog.Key
	pkt   packetlog.Packet
	m     packetlog.Meaning
	known bool
}

// hostRulesMost is how many rules have budgets of their own. Those that come when there
// are so many have one together.
const hostRulesMost = 1024

const (
	// plansKept is how many plans are known: reports come after their time.
	plansKept = 8
	// hostTable stands in keys of the log for the host's rules, less the list.
	hostTable = 255
)

// tables stand in records for the lists of the host's rules.
var tables = map[hostpolicy.List]string{hostpolicy.NodePorts: "NodePort", hostpolicy.Ingress: "NodeIngress", hostpolicy.Egress: "NodeEgress"}

func newHostRecords(s *Shim) *hostRecords {
	return &hostRecords{shim: s, reports: packetlog.NewIntake[hostReport](s.cfg.LogRate, s.cfg.logBurst()),
		plans: make(map[uint64]*hostpolicy.Plan), rules: make(map[hostRule]*hostBudget)}
}

// expect makes reports of a plan be understood.
func (h *hostRecords) expect(p *hostpolicy.Plan) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, known := h.plans[p.Shape]
	if h.plans[p.Shape] = p; known {
		return
	}
	if h.kept = append(h.kept, p.Shape); len(h.kept) > plansKept {
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
	plan := h.plans[r.Shape]
	h.mu.Unlock()
	m, known := packetlog.Meaning{Direction: r.List.Direction(), Table: tables[r.List], AppliedTo: "node:" + h.shim.cfg.Node}, false
	if plan != nil && r.Rule < len(plan.Rules(r.List)) {
		if known = decide(plan, r, pkt, &m); !known {
			return // The staged policies make no difference.
		}
	}
	now := time.Now()
	class, within := h.allow(now, ruleOf(r.List, &m))
	if !within {
		return
	}
	key := packetlog.Key{Table: hostTable - uint8(r.List), Cookie: r.Shape, InPort: uint32(r.Rule), Unlogged: r.Staged, Class: hostClasses | class}
	h.reports.Put(now, class, hostReport{key, pkt, m, known})
}

// hostClasses tells classes of the host's rules from those of the bridge's, in the log.
const hostClasses = 1 << 31

func ruleOf(list hostpolicy.List, m *packetlog.Meaning) hostRule {
	at := hostRule{list: list, rule: m.Rule}
	if len(m.Policies) > 0 {
		at.kind, at.namespace, at.name = m.Policies[0].GetKind(), m.Policies[0].GetNamespace(), m.Policies[0].GetName()
	}
	return at
}

// allow charges a report to its rule, and says whether that has anything left.
func (h *hostRecords) allow(now time.Time, of hostRule) (class uint32, within bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.rules[of]; !known && len(h.rules) >= hostRulesMost {
		of = hostRule{}
	}
	b := h.rules[of]
	if b == nil {
		b = &hostBudget{budget: rate.NewLimiter(rate.Limit(h.shim.cfg.ruleLogRate()), int(h.shim.cfg.ruleLogBurst()))}
		if of != (hostRule{}) {
			h.classes = append(h.classes, of)
			b.class = uint32(len(h.classes))
		}
		h.rules[of] = b
	}
	if !b.budget.AllowN(now, 1) {
		b.overRate++
		return b.class, false
	}
	return b.class, true
}

// take makes events of what was reported, as far as the rate of all allows.
func (h *hostRecords) take(now time.Time) {
	h.reports.Take(now, reportsAtOnce, func(at time.Time, r hostReport) {
		h.shim.log.Add(at, r.key, r.pkt, func() (packetlog.Meaning, bool) { return r.m, r.known })
	})
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
		h.undelivered.Add(reader.TakeLost())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stated.IsZero() {
		h.stated = now.Add(-time.Second)
	}
	lose := func(stage auditv1.LossStage, n uint64, of hostRule) {
		if n == 0 {
			return
		}
		e := &auditv1.LossEvent{From: timestamppb.New(h.stated), To: timestamppb.New(now), Count: n, Stage: stage}
		if of != (hostRule{}) {
			e.Direction = of.list.Direction()
		}
		if of.name != "" {
			e.Policy, e.Rule = &policyv1.PolicyRef{Kind: of.kind, Namespace: of.namespace, Name: of.name}, of.rule
		}
		h.shim.lose(e)
	}
	for of, b := range h.rules {
		lose(auditv1.LossStage_LOSS_STAGE_RULE_METER, b.overRate, of)
		b.overRate = 0
	}
	for class, lost := range h.reports.TakeLost() {
		var of hostRule
		if class > 0 {
			of = h.classes[class-1]
		}
		lose(auditv1.LossStage_LOSS_STAGE_METER, lost.OverRate, of)
		lose(auditv1.LossStage_LOSS_STAGE_QUEUE, lost.Dropped, of)
	}
	lose(auditv1.LossStage_LOSS_STAGE_QUEUE, h.undelivered.Swap(0), hostRule{}) // The kernel does not say whose.
	h.stated = now
}

// missed states that nobody read what was reported: nobody knows how much that was.
func (h *hostRecords) missed(from, to time.Time) {
	h.shim.log.Lose(&auditv1.LossEvent{From: timestamppb.New(from), To: timestamppb.New(to), Stage: auditv1.LossStage_LOSS_STAGE_UNKNOWN})
}
