package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// metricsAt is where a relay serves its metrics, on its own host.
const metricsAt = "127.0.0.1:9090"

// relayed is two nodes of a mesh that reach each other only through a relay.
type relayed struct {
	*pair
	relay *lab.Host
	by    string // how the relay receives the nodes' packets, by the name in its metrics
	pid   int    // the relay's
}

// What is offered to measure the cost per packet: UDP, in packets that become datagrams of 1,320 bytes once sealed for the
// relay.
const (
	fullRate  = 300e6 // bit/s
	fullInner = 1320 - 8 - 32
)

// Rows of the relays' table.
const (
	relayedOne    = "TCP 1 flow, Gbit/s"
	relayedFour   = "TCP 4 flows, Gbit/s"
	relayCPUOne   = "relay's CPU-us per forwarded packet, 1 flow"
	relayCPUFour  = "relay's CPU-us per forwarded packet, 4 flows"
	agentsCPUOne  = "agents' CPU-s per GB, 1 flow"
	agentsCPUFour = "agents' CPU-s per GB, 4 flows"
	relayCPUFull  = "relay's CPU-us per forwarded 1,320-byte packet"
	relayedFull   = "arrived of 300 Mbit/s of those, %"
)

var relayMetrics = []string{relayedOne, relayedFour, relayCPUOne, relayCPUFour, relayCPUFull, relayedFull, agentsCPUOne, agentsCPUFour}

// relays measures throughput through relays, over UDP and over TLS, in interleaved rounds; and the same for another build, if
// any.
func relays(ctx context.Context, bin, other string, rounds int, d time.Duration) (err error) {
	var all []*relayed
	defer func() {
		for _, p := range all {
			err = errors.Join(err, p.close())
		}
	}()
	builds := []struct{ dir, name string }{{bin, ""}}
	if other != "" {
		builds = append(builds, struct{ dir, name string }{other, ", the other Redoubt"})
	}
	for _, build := range builds {
		for _, by := range []string{"udp", "stream"} {
			p, err := newRelayed(ctx, build.dir, by, build.name)
			if err != nil {
				return err
			}
			all = append(all, p)
			if err := p.settle(ctx); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	results := map[*relayed][]figures{}
	for round := range rounds {
		order := slices.Clone(all)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, p := range order {
			f, err := p.measure(ctx, d)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			results[p] = append(results[p], f)
		}
	}
	fmt.Printf("Through a relay, inner MTU 1420, medians of %d interleaved rounds; both nodes and the relay on this machine\n\n|", rounds)
	rule := "\n| ---"
	for _, p := range all {
		fmt.Printf(" | %s", p.name)
		rule += " | ---"
	}
	fmt.Println(" |" + rule + " |")
	row := func(name string, places int, f func(*relayed) float64) {
		fmt.Printf("| %s", name)
		for _, p := range all {
			fmt.Printf(" | %.*f", places, f(p))
		}
		fmt.Println(" |")
	}
	for _, m := range relayMetrics {
		row(m, 2, func(p *relayed) float64 { return median(results[p], func(f figures) float64 { return f[m] }) })
	}
	row("relay's peak RSS, MB", 0, func(p *relayed) float64 { return peakRSS([]int{p.pid}) })
	row("agents' peak RSS, MB", 0, func(p *relayed) float64 { return peakRSS(p.pids) })
	return nil
}

// newRelayed returns a mesh whose nodes let in UDP only from their relay, or none at all.
func newRelayed(ctx context.Context, bin, by, build string) (*relayed, error) {
	m, err := mesh.New(bin)
	if err != nil {
		return nil, err
	}
	r := &relayed{by: by, pair: &pair{name: map[string]string{"udp": "UDP relay", "stream": "TLS relay"}[by] + build, close: m.Close, world: m.World}}
	if err := r.build(ctx, m); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return r, nil
}

func (r *relayed) build(ctx context.Context, m *mesh.Mesh) (err error) {
	if err := m.StartCoordinator(ctx, "--relay=false"); err != nil {
		return err
	}
	if _, err := m.Apply(ctx, open); err != nil {
		return err
	}
	if err := r.startRelay(ctx, m); err != nil {
		return err
	}
	let := []netip.Addr{}
	if r.by == "udp" {
		let = append(let, r.relay.V4())
	}
	for i, name := range []string{"a", "b"} {
		if r.hosts[i], err = m.World.AddHost(name, m.LAN); err != nil {
			return err
		}
		if err := r.hosts[i].UDPOnlyFrom(let...); err != nil {
			return err
		}
		n := m.NodeOn(r.hosts[i])
		if err := n.StartAgent(ctx); err != nil {
			return err
		}
		if err := up(ctx, m, n); err != nil {
			return err
		}
		st, err := n.Status(ctx)
		if err != nil {
			return err
		}
		r.addrs[i], r.pids = st.V4(), append(r.pids, n.Agent.PID())
	}
	return nil
}

func (r *relayed) startRelay(ctx context.Context, m *mesh.Mesh) (err error) {
	if r.relay, err = m.World.AddHost("relay", m.LAN); err != nil {
		return err
	}
	code, err := m.Token(ctx, "--relay")
	if err != nil {
		return err
	}
	v4 := r.relay.V4().String()
	p, err := r.relay.Start(lab.Command{Name: "relay", Path: m.Program("redoubt"), Args: []string{
		"relay", code, "--state", filepath.Join(m.World.Dir, "files", "relay"), "--address", v4, "--listen", ":443", "--url", "https://" + v4,
		"--metrics", metricsAt,
	}})
	if err != nil {
		return err
	}
	r.pid = p.PID()
	return nil
}

// settle waits until packets go through the relay.
func (r *relayed) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		before, err := r.forwarded(ctx)
		if err == nil {
			if _, err = r.hosts[0].Ping(ctx, r.addrs[1]); err == nil {
				_, err = flows(ctx, r.there(), 1, 300*time.Millisecond)
			}
		}
		if err == nil {
			var after map[string]float64
			if after, err = r.forwarded(ctx); err == nil && after[r.by] > before[r.by] {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing goes through the relay: %w", errors.Join(err, ctx.Err()))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// measure takes every measurement once.
func (r *relayed) measure(ctx context.Context, d time.Duration) (figures, error) {
	out := figures{}
	for _, m := range []struct {
		flows          int
		rate, cpu, own string
	}{{1, relayedOne, agentsCPUOne, relayCPUOne}, {4, relayedFour, agentsCPUFour, relayCPUFour}} {
		var got rate
		each, err := r.relaying(ctx, func() (err error) {
			got, err = flows(ctx, r.there(), m.flows, d)
			return err
		})
		if err != nil {
			return nil, err
		}
		out[m.rate], out[m.cpu], out[m.own] = got.gbits, got.cpu, each
	}
	var got stream
	each, err := r.relaying(ctx, func() (err error) {
		got, err = offer(ctx, r.pair, fullRate, fullInner, d)
		return err
	})
	out[relayCPUFull], out[relayedFull] = each, 100*got.arrived
	return out, err
}

// relaying returns the relay's CPU time in microseconds per packet that it forwarded during f. All packets must have used the
// transport that is measured.
func (r *relayed) relaying(ctx context.Context, f func() error) (float64, error) {
	before, err := r.forwarded(ctx)
	if err != nil {
		return 0, err
	}
	cpu := cpuSeconds([]int{r.pid})
	if err := f(); err != nil {
		return 0, err
	}
	cpu = cpuSeconds([]int{r.pid}) - cpu
	after, err := r.forwarded(ctx)
	if err != nil {
		return 0, err
	}
	packets := 0.0
	for by := range after {
		n := after[by] - before[by]
		if n > 0 && by != r.by {
			return 0, fmt.Errorf("the relay forwarded %.0f packets by %s", n, by)
		}
		packets += n
	}
	return cpu * 1e6 / packets, nil
}

// forwarded returns how many packets the relay has forwarded, by how they arrived.
func (r *relayed) forwarded(ctx context.Context) (map[string]float64, error) {
	c, err := r.relay.Dial(ctx, "tcp", metricsAt)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAt+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	if err := request.Write(c); err != nil {
		return nil, err
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	out := map[string]float64{}
	for s := bufio.NewScanner(answer.Body); s.Scan(); {
		by, found := strings.CutPrefix(s.Text(), `redoubt_relay_packets_total{by="`)
		by, value, _ := strings.Cut(by, `"} `)
		if !found {
			continue
		}
		if out[by], err = strconv.ParseFloat(value, 64); err != nil {
			return nil, err
		}
	}
	return out, nil
}
