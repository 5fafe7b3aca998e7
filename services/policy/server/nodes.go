package server

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// absences are the nodes that ought to hold something and have never connected
// to this replica, with when that was noticed. What has a session is there or in
// the session.
type absences struct {
	mu    sync.Mutex // Guards since.
	since map[string]time.Time
}

// absenceInterval is how often nodes are looked for that never connected.
const absenceInterval = 5 * time.Second

// look makes absences a function of the nodes and the sessions, but for the
// times of those that were absent before.
func (a *absences) look(nodes []string, sessions *sessions, now time.Time) {
	sessions.mu.Lock()
	absent := nodes[:0]
	for _, name := range nodes {
		if sessions.byNode[name] == nil {
			absent = append(absent, name)
		}
	}
	sessions.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	since := make(map[string]time.Time, len(absent))
	for _, name := range absent {
		if at, was := a.since[name]; was {
			since[name] = at
		} else {
			since[name] = now
		}
	}
	a.since = since
}

// of is since when a node is absent; zero where that was not noticed yet.
func (a *absences) of(node string) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.since[node]
}

// seconds is for how long something is so since a time; zero for none.
func seconds(since, now time.Time) uint64 {
	if since.IsZero() || now.Before(since) {
		return 0
	}
	return uint64(now.Sub(since) / time.Second)
}

// nodeMetrics are worked out when they are asked for. A node has a series of its
// own only while something is wrong with it.
type nodeMetrics struct{ *Server }

var (
	descBehind = prometheus.NewDesc("weir_policy_node_behind_seconds",
		"For how long a node that is connected to this replica has not had all that it must hold; nodes for which that is more than a second.", []string{"node"}, nil)
	descConnected    = prometheus.NewDesc("weir_policy_nodes_connected", "Nodes that are connected to this replica.", nil, nil)
	descDisconnected = prometheus.NewDesc("weir_policy_nodes_disconnected",
		"Nodes with a Node object or Pods that are connected neither to this replica nor, when they were last asked, to another.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m nodeMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- descBehind
	ch <- descConnected
	ch <- descDisconnected
}

// Collect implements prometheus.Collector.
func (m nodeMetrics) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	connected := make(map[string]bool)
	for _, se := range m.sessions.all() {
		se.mu.Lock()
		here, since := se.stream != nil, se.behind
		se.mu.Unlock()
		if !here {
			continue
		}
		connected[se.node] = true
		if behind := now.Sub(since); !since.IsZero() && behind > time.Second {
			ch <- prometheus.MustNewConstMetric(descBehind, prometheus.GaugeValue, behind.Seconds(), se.node)
		}
	}
	var elsewhere map[string]bool
	if r := m.barriers.replicas; r != nil {
		elsewhere = r.theirs()
	}
	disconnected := 0
	for _, name := range m.cfg.Store.Nodes() {
		if !connected[name] && !elsewhere[name] {
			disconnected++
		}
	}
	ch <- prometheus.MustNewConstMetric(descConnected, prometheus.GaugeValue, float64(len(connected)))
	ch <- prometheus.MustNewConstMetric(descDisconnected, prometheus.GaugeValue, float64(disconnected))
}
