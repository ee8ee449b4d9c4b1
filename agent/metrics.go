package agent

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redoubt-mesh/redoubt/agent/machine"
)

// collector reads the metrics when they are scraped.
type collector struct {
	a *Agent

	state, connected, heard, expires, version, peers, problems, flows, packets, bytes, dropped, lost *prometheus.Desc

	tunnels tunnelMetrics
}

func newCollector(a *Agent) *collector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("redoubt_agent_"+name, help, labels, nil)
	}
	return &collector{
		a:         a,
		state:     d("state", "1 for what the node is doing.", "state"),
		connected: d("coordinator_connected", "1 while there is a stream with the coordinator."),
		heard:     d("coordinator_last_heard_seconds", "Mesh time when the coordinator was heard last."),
		expires:   d("certificate_expires_seconds", "Mesh time when the node's certificate ends."),
		version:   d("policy_version", "Number of the netmap that is enforced, without its epoch."),
		peers:     d("peers", "Peers whose certificates hold."),
		problems:  d("problems", "How many problems the status names."),
		flows:     d("flows", "Connections in the flow table."),
		packets:   d("packets_total", "Packets that passed the filter.", "direction"),
		bytes:     d("bytes_total", "Bytes that passed the filter.", "direction"),
		dropped:   d("packets_dropped_total", "Packets that the filter dropped.", "reason"),
		lost:      d("flow_records_lost_total", "Decisions that found no room in the flow log."),
		tunnels:   newTunnelMetrics(d),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// metricsPatience is how long a scrape waits for the loop.
const metricsPatience = 2 * time.Second

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	f := c.a.filter.Counters()
	gauge(c.flows, float64(f.Flows))
	count(c.packets, f.In.Packets, "in")
	count(c.packets, f.Out.Packets, "out")
	count(c.bytes, f.In.Bytes, "in")
	count(c.bytes, f.Out.Bytes, "out")
	count(c.lost, f.RecordsLost)
	for reason, n := range f.Dropped.Each {
		count(c.dropped, n, reason.String())
	}
	select {
	case <-c.a.running:
	default:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), metricsPatience)
	defer cancel()
	var v machine.View
	var t tunnels
	var up bool
	if c.a.call(ctx, func() { v = c.a.loop.machine.View(c.a.time.Now()); t, up = c.a.tunnels(v.Peers) }) != nil {
		return
	}
	if up {
		c.tunnels.collect(t, gauge, count)
	}
	gauge(c.state, 1, string(v.State))
	connected := 0.0
	if v.Connected {
		connected = 1
	}
	gauge(c.connected, connected)
	if !v.LastHeard.IsZero() {
		gauge(c.heard, float64(v.LastHeard.UnixMilli())/1000)
	}
	if v.Node != nil {
		gauge(c.expires, float64(v.Node.NotAfter.Unix()))
	}
	gauge(c.version, float64(v.Version.N))
	gauge(c.peers, float64(len(v.Peers)))
	gauge(c.problems, float64(len(v.Problems)))
}
