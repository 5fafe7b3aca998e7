package status

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weirnet/weir/services/policy/api"
)

// metrics tell of the holder of the Lease alone: other replicas have no figures of
// policies.
type metrics struct {
	holder prometheus.Gauge
	writes *prometheus.CounterVec
	events *prometheus.CounterVec
	look   prometheus.Histogram
	took   prometheus.Histogram

	mu    sync.Mutex // Guards what follows.
	since map[api.Ref]unrealized
	seen  map[api.Ref]generation // Of policies whose time was told, or is to be left out.
}

// unrealized is since when a policy is not in force as it must be.
type unrealized struct {
	uid string
	at  time.Time
}

type generation struct {
	uid string
	n   int64
}

// maxSeries is how many policies have a series of their own.
const maxSeries = 100

var (
	descUnrealized = prometheus.NewDesc("weir_policy_unrealized", "Policies that are not in force on all nodes of their span, or not as they are written. Told by the replica that writes the status.", nil, nil)
	descFor        = prometheus.NewDesc("weir_policy_unrealized_seconds", "For how long a policy has not been in force; those for which that is more than a second, the 100 longest.", []string{"kind", "namespace", "policy"}, nil)
)

func newMetrics() *metrics {
	return &metrics{
		holder: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weir_policy_status_holder", Help: "1 where this replica writes the status of policies."}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_policy_status_writes_total", Help: "Statuses that were to be written; gone ones of objects that were deleted meanwhile."}, []string{"outcome"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_policy_status_events_total", Help: "Events that were to be written; what is held is written later, if it still holds."}, []string{"outcome"}),
		look: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weir_policy_status_look_seconds", Help: "Time to look at all policies once, and to write what differs.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weir_policy_realize_seconds", Help: "Time from the commit of a policy that is new or changed until every node of its span had put it in force.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 20)}),
		seen: make(map[api.Ref]generation),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.holder, m.writes, m.events, m.look, m.took, m} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

// take takes what a look has found.
func (m *metrics) take(policies []Policy, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first := m.since == nil
	since, seen := make(map[api.Ref]unrealized), make(map[api.Ref]generation, len(policies))
	for i := range policies {
		p := &policies[i]
		g := generation{p.UID, p.Generation}
		if told, was := m.seen[p.Ref]; was && told == g {
			seen[p.Ref] = g
		}
		if p.inForce() {
			if _, was := seen[p.Ref]; !was && !first && p.Nodes > 0 {
				m.observe(p, now)
			}
			seen[p.Ref] = g
			continue
		}
		u := unrealized{p.UID, now}
		if former, was := m.since[p.Ref]; was && former.uid == u.uid {
			u = former
		}
		since[p.Ref] = u
	}
	m.since, m.seen = since, seen
}

func (p *Policy) inForce() bool { return p.phase() == PhaseRealized }

// observe notes how long a policy took, where that is known.
func (m *metrics) observe(p *Policy, now time.Time) {
	switch {
	case p.Took > 0:
		m.took.Observe(p.Took.Seconds())
	case !p.Changed.IsZero():
		m.took.Observe(now.Sub(p.Changed).Seconds())
	}
}

// forget forgets all: another replica tells it now.
func (m *metrics) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.since, m.seen = nil, make(map[api.Ref]generation)
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- descUnrealized
	ch <- descFor
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.since == nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(descUnrealized, prometheus.GaugeValue, float64(len(m.since)))
	refs := make([]api.Ref, 0, len(m.since))
	now := time.Now()
	for ref, u := range m.since {
		if now.Sub(u.at) > time.Second {
			refs = append(refs, ref)
		}
	}
	slices.SortFunc(refs, func(a, b api.Ref) int {
		return cmp.Or(m.since[a].at.Compare(m.since[b].at), cmp.Compare(a.String(), b.String()))
	})
	for _, ref := range refs[:min(len(refs), maxSeries)] {
		ch <- prometheus.MustNewConstMetric(descFor, prometheus.GaugeValue, now.Sub(m.since[ref].at).Seconds(), ref.Kind.String(), ref.Namespace, ref.Name)
	}
}
