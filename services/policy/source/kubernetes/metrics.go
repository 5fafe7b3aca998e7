package kubernetes

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	errors *prometheus.CounterVec
	down   *prometheus.GaugeVec
	writes *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_policy_source_errors_total",
			Help: "Lists and watches that the API server did not grant, by kind."}, []string{"kind"}),
		down: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weir_policy_source_failing",
			Help: "1 while a kind cannot be read from the API server."}, []string{"kind"}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_policy_source_writes_total",
			Help: "Objects written to the API server, by kind and outcome."}, []string{"kind", "outcome"}),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.errors, m.down, m.writes} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

func (m *metrics) failing(k *kind, is bool) {
	v := 0.0
	if is {
		v = 1
	}
	m.down.WithLabelValues(k.String()).Set(v)
}

func (m *metrics) wrote(what string, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	m.writes.WithLabelValues(what, outcome).Inc()
}
