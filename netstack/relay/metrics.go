package relay

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	packets, bytes *prometheus.CounterVec
	refused        *prometheus.CounterVec
	dropped        prometheus.Counter
}

func newMetrics(r prometheus.Registerer, s *Server) metrics {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "redoubt_relay_" + name, Help: help}, labels)
	}
	m := metrics{
		packets: vec("packets_total", "Packets that were forwarded, by how they came.", "by"),
		bytes:   vec("bytes_total", "Bytes that were forwarded, by how they came.", "by"),
		refused: vec("refused_total", "What was refused, by reason.", "reason"),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "redoubt_relay_dropped_total", Help: "Frames that were dropped because too much waited for their node."}),
	}
	gauge := func(name, help string, f func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "redoubt_relay_" + name, Help: help}, func() float64 {
			s.mu.RLock()
			defer s.mu.RUnlock()
			return float64(f())
		})
	}
	r.MustRegister(
		m.packets, m.bytes, m.refused, m.dropped,
		gauge("sessions", "Sessions by UDP.", func() int { return len(s.sessions) }),
		gauge("streams", "Sessions by stream.", func() int { return len(s.streams) }),
	)
	return m
}
