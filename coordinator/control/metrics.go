package control

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	handshakes *prometheus.CounterVec
	enrolments *prometheus.CounterVec
	renewals   *prometheus.CounterVec
	refusals   *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, s *Server) metrics {
	counter := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "redoubt_coordinator_" + name, Help: help}, []string{label})
		r.MustRegister(c)
		return c
	}
	gauge := func(name, help string, f func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "redoubt_coordinator_" + name, Help: help}, f))
	}
	gauge("connected_nodes", "Nodes with a control stream.", func() float64 { return float64(s.Connected()) })
	gauge("lobby_connections", "Connections that have not shown who they are.", func() float64 { return float64(s.lobby.len()) })
	gauge("waiting_connections", "Connections of machines that wait for an approval, or for the end of a lock.", func() float64 { return float64(s.room.len()) })
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "redoubt_coordinator_lobby_dropped_total", Help: "Connections that gave way to newer ones because the lobby was full.",
	}, func() float64 { return float64(s.lobby.dropped.Load()) }))
	return metrics{
		handshakes: counter("handshakes_total", "TLS handshakes.", "result"),
		enrolments: counter("enrolments_total", "Machines that asked to join.", "result"),
		renewals:   counter("renewals_total", "Nodes that asked for their next certificate.", "result"),
		refusals:   counter("refusals_total", "Streams that were ended with a refusal.", "code"),
	}
}
