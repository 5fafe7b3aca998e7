package audit

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// metrics are what the service counts itself; the rest is read from log and
// sinks when it is asked for.
type metrics struct {
	streams  prometheus.Gauge
	rejected prometheus.Counter
	refused  prometheus.Counter
	durable  prometheus.Histogram
}

func newMetrics() metrics {
	return metrics{
		streams:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "weir_audit_streams", Help: "Streams of nodes that report."}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_audit_rejected_requests_total", Help: "Malformed requests, each of which ended its stream."}),
		refused:  prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_audit_refused_subscribers_total", Help: "Subscribers turned away since there were too many."}),
		durable: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weir_audit_append_seconds",
			Help: "Time from the arrival of a batch until it was durable, or failed.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
	}
}

var (
	descKept        = prometheus.NewDesc("weir_audit_kept_events_total", "Events stored, by node.", []string{"node"}, nil)
	descDuplicates  = prometheus.NewDesc("weir_audit_duplicate_events_total", "Events that had been stored before.", nil, nil)
	descLost        = prometheus.NewDesc("weir_audit_lost_total", "Packets or events lost, by node and stage.", []string{"node", "stage"}, nil)
	descWritable    = prometheus.NewDesc("weir_audit_log_writable", "One if the event log can be written.", nil, nil)
	descSetAside    = prometheus.NewDesc("weir_audit_log_set_aside", "Databases of the event log that were damaged, and have been replaced and set aside.", nil, nil)
	descSubscribers = prometheus.NewDesc("weir_audit_subscribers", "Callers of Tail.", nil, nil)
	descNewest      = prometheus.NewDesc("weir_audit_log_newest_cursor", "Cursor of the newest record.", nil, nil)
	descOldest      = prometheus.NewDesc("weir_audit_log_oldest_cursor", "Cursor of the oldest record.", nil, nil)
	descLag         = prometheus.NewDesc("weir_audit_sink_lag_records", "Records stored and not written yet, by sink.", []string{"sink"}, nil)
	descLines       = prometheus.NewDesc("weir_audit_sink_lines_total", "Lines or messages written, by sink.", []string{"sink"}, nil)
	descMerged      = prometheus.NewDesc("weir_audit_sink_merged_packets_total", "Packets merged into a line written for another, by sink.", []string{"sink"}, nil)
	descSkipped     = prometheus.NewDesc("weir_audit_sink_skipped_records_total", "Records that retention removed before they were written, by sink.", []string{"sink"}, nil)
	descFollowed    = prometheus.NewDesc("weir_audit_policy_service_followed", "One if the policy service is followed, by which records get names.", nil, nil)
	descKnown       = prometheus.NewDesc("weir_audit_known_endpoints", "Pods, Nodes and Services whose addresses are known.", nil, nil)
	descFree        = prometheus.NewDesc("weir_audit_log_disk_free_bytes", "Room on the event log's disk.", nil, nil)
	descFailing     = prometheus.NewDesc("weir_audit_sink_failing", "One if a sink has failed since its last success.", []string{"sink"}, nil)
	descDead        = prometheus.NewDesc("weir_audit_sink_dead_letters_total", "Lines that the receiver refused for good, by sink.", []string{"sink"}, nil)
)

// Describe implements prometheus.Collector.
func (s *Service) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, ch) }

// Collect implements prometheus.Collector.
func (s *Service) Collect(ch chan<- prometheus.Metric) {
	s.metrics.streams.Collect(ch)
	s.metrics.rejected.Collect(ch)
	s.metrics.refused.Collect(ch)
	s.metrics.durable.Collect(ch)
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	st := s.log.Stats()
	for _, n := range st.Nodes {
		counter(descKept, n.Kept, n.Node)
		for _, l := range n.Lost {
			counter(descLost, l.Count, n.Node, strings.ToLower(strings.TrimPrefix(l.Stage.String(), "LOSS_STAGE_")))
		}
	}
	counter(descDuplicates, st.Duplicates)
	gauge(descSubscribers, float64(s.seats.count()))
	gauge(descWritable, oneIf(s.log.Health() == nil))
	gauge(descSetAside, float64(len(s.log.SetAside())))
	gauge(descNewest, float64(st.Newest))
	gauge(descOldest, float64(st.Oldest))
	if s.watcher != nil {
		gauge(descFollowed, oneIf(s.watcher.connected.Load()))
		gauge(descKnown, float64(s.facts.Known()))
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(s.cfg.Dir, &disk); err == nil {
		gauge(descFree, float64(disk.Bavail)*float64(disk.Bsize))
	}
	for _, k := range s.sinks {
		ks := k.Stats()
		if lag, err := s.log.Behind(ks.Cursor); err == nil { // Otherwise it is not known.
			gauge(descLag, float64(lag), ks.Name)
		}
		gauge(descFailing, oneIf(ks.LastError != ""), ks.Name)
		counter(descLines, ks.Lines, ks.Name)
		counter(descMerged, ks.Merged, ks.Name)
		counter(descSkipped, ks.Skipped, ks.Name)
		counter(descDead, ks.DeadLetters, ks.Name)
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
