package distribute

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	computed  prometheus.Counter
	snapshots prometheus.Counter
	deltas    prometheus.Counter
	enforced  prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		computed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "redoubt_coordinator_netmaps_computed_total", Help: "Netmaps that were made again because something changed.",
		}),
		snapshots: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "redoubt_coordinator_netmaps_sent_total", Help: "Whole netmaps that were sent.",
		}),
		deltas: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "redoubt_coordinator_deltas_sent_total", Help: "Differences between netmaps that were sent.",
		}),
		enforced: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "redoubt_coordinator_enforcement_seconds", Help: "From a change of a node's netmap until the node enforces it.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 14),
		}),
	}
	r.MustRegister(m.computed, m.snapshots, m.deltas, m.enforced)
	return m
}

func (m metrics) sent(u Update) {
	if u.Netmap != nil {
		m.snapshots.Inc()
	} else {
		m.deltas.Inc()
	}
}
