package server

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/engine"
)

// pruneInterval is how often it is looked for policies that are gone.
const pruneInterval = time.Minute

// keepTallies gets to know what nodes told other replicas, and forgets what is
// not needed, until the context ends.
func (s *Server) keepTallies(ctx context.Context) {
	exchange := time.NewTicker(exchangeInterval)
	defer exchange.Stop()
	prune := time.NewTicker(pruneInterval)
	defer prune.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-exchange.C:
			s.learnTallies(ctx)
		case now := <-prune.C:
			s.tallies.prune(s.exists, s.known(), now)
		}
	}
}

// exists says whether there is a policy object.
func (s *Server) exists(key tallyKey) bool {
	ref, ok := api.RefOf(&policyv1.PolicyRef{Kind: key.kind, Namespace: key.namespace, Name: key.name})
	if !ok {
		return false
	}
	uid, known := s.cfg.Model.PolicyUID(ref)
	return known && uid == key.uid
}

// learnTallies asks the other replicas, all at once, for what is new to this one.
func (s *Server) learnTallies(ctx context.Context) {
	r := s.barriers.replicas
	if r == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var asked sync.WaitGroup
	for address, conn := range r.others() {
		asked.Go(func() {
			epoch, err := s.learnTalliesOf(ctx, r, address, conn)
			if status.Code(err) == codes.FailedPrecondition {
				epoch, err = r.epoch, nil
			}
			r.answered(address, epoch, err)
		})
	}
	asked.Wait()
}

// learnTalliesOf asks one replica, from where its last answer ended.
func (s *Server) learnTalliesOf(ctx context.Context, r *replicas, address string, conn *grpc.ClientConn) (epoch string, err error) {
	from := r.tallied(address)
	answer, err := policyv1.NewReplicaServiceClient(conn).Counters(ctx, &policyv1.CountersRequest{Epoch: r.epoch, Of: from.epoch, After: from.mark})
	if err != nil {
		return "", err
	}
	var report []*policyv1.NodeStats
	for {
		m, err := answer.Recv()
		if errors.Is(err, io.EOF) {
			return epoch, nil
		}
		if err != nil {
			return "", err
		}
		if m.GetNode() != "" {
			if report = append(report, m.GetStats()); !m.GetStats().GetMore() {
				s.tallies.report(m.GetNode(), report, false, time.Now())
				report = nil
			}
		}
		if m.GetEpoch() != "" {
			epoch = m.GetEpoch()
			r.setTallied(address, talliesMark{epoch, m.GetMark()})
		}
	}
}

// Counters implements ReplicaService.
func (s *Server) Counters(req *policyv1.CountersRequest, answer grpc.ServerStreamingServer[policyv1.CountersResponse]) error {
	if err := s.cfg.MayReplicate(answer.Context()); err != nil {
		return status.Errorf(codes.PermissionDenied, "caller is no policy service: %v", err)
	}
	epoch := s.cfg.Store.Epoch()
	if req.GetEpoch() == epoch {
		return status.Error(codes.FailedPrecondition, "the caller is this replica")
	}
	after := req.GetAfter()
	if req.GetOf() != epoch {
		after = 0
	}
	reports, mark := s.tallies.changed(after)
	for node, report := range reports {
		for _, m := range report {
			if err := answer.Send(&policyv1.CountersResponse{Node: node, Stats: m}); err != nil {
				return err
			}
		}
	}
	return answer.Send(&policyv1.CountersResponse{Epoch: epoch, Mark: mark})
}

// count puts into a policy's summary what its rules matched.
func (s *Server) count(p engine.PolicyInfo, out *policyv1.PolicySummary) {
	sums := s.tallies.of(keyOf(p.Wire.GetRef(), p.Wire.GetUid()), p.Wire.GetCreated())
	out.NodesCounted, out.CountedSinceMs, out.UncountedMs = uint32(sums.nodes), sums.since, uint64(sums.uncounted.Milliseconds())
	add := func(rule ruleKey) {
		c := sums.cells[rule]
		out.Rules = append(out.Rules, &policyv1.RuleStats{Direction: rule.direction, Rule: rule.rule, Index: rule.index, Isolation: rule.isolation,
			Sessions: c.sessions, Packets: c.packets, Bytes: c.bytes})
	}
	told := make(map[ruleKey]bool)
	for _, r := range p.Rules {
		rule := ruleKey{direction: r.Direction, rule: r.Name}
		if r.Name == "" {
			rule.index = uint32(r.Index)
		}
		if !told[rule] { // Rules of one name are one.
			told[rule] = true
			add(rule)
		}
	}
	if p.Wire.GetIsolatesIngress() {
		add(ruleKey{direction: policyv1.Direction_DIRECTION_INGRESS, isolation: true})
	}
	if p.Wire.GetIsolatesEgress() {
		add(ruleKey{direction: policyv1.Direction_DIRECTION_EGRESS, isolation: true})
	}
}

// maxRuleSeries is how many rules, and isolations, have metrics.
const maxRuleSeries = 20000

// ruleMetrics are worked out when they are asked for. All replicas have the same.
type ruleMetrics struct{ *Server }

var (
	ruleLabels       = []string{"kind", "namespace", "policy", "direction", "rule"}
	descRuleSessions = prometheus.NewDesc("weir_policy_rule_sessions_total",
		"Connections that a rule allowed, or packets that it dropped, rejected or passed, over all nodes.", ruleLabels, nil)
	descRulePackets = prometheus.NewDesc("weir_policy_rule_packets_total",
		"Packets that a rule decided, and of the connections that it allowed, over all nodes.", ruleLabels, nil)
	descRuleBytes      = prometheus.NewDesc("weir_policy_rule_bytes_total", "Bytes of these packets.", ruleLabels, nil)
	descIsolationDrops = prometheus.NewDesc("weir_policy_isolation_drops_total",
		"Packets dropped since a policy isolates the Pod and none allows them, over all nodes; each counts for every policy that isolates the Pod.", ruleLabels[:4], nil)
	descLeftOut = prometheus.NewDesc("weir_policy_rule_metrics_left_out",
		"Rules and isolations that have no metrics, since there are too many; weirctl get policies --stats has them.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m ruleMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRuleSessions, descRulePackets, descRuleBytes, descIsolationDrops, descLeftOut} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m ruleMetrics) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	told, left := 0, 0
	var last tallyKey
	exists := false
	for i, s := range m.tallies.all() {
		if i == 0 || s.policy != last {
			last, exists = s.policy, m.exists(s.policy)
		}
		switch {
		case !exists:
			continue
		case told >= maxRuleSeries:
			left++
			continue
		}
		told++
		direction := "ingress"
		if s.rule.direction == policyv1.Direction_DIRECTION_EGRESS {
			direction = "egress"
		}
		labels := []string{api.PolicyKindName(s.policy.kind), s.policy.namespace, s.policy.name, direction}
		if s.rule.isolation {
			counter(descIsolationDrops, s.sum.packets, labels...)
			continue
		}
		rule := s.rule.rule
		if rule == "" {
			rule = strconv.Itoa(int(s.rule.index))
		}
		labels = append(labels, rule)
		counter(descRuleSessions, s.sum.sessions, labels...)
		counter(descRulePackets, s.sum.packets, labels...)
		counter(descRuleBytes, s.sum.bytes, labels...)
	}
	ch <- prometheus.MustNewConstMetric(descLeftOut, prometheus.GaugeValue, float64(left))
}
