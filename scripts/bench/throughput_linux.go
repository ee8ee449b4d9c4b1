package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// pair is two hosts connected by what is measured.
type pair struct {
	name  string
	hosts [2]*lab.Host
	addrs [2]netip.Addr // through what is measured
	pids  []int         // of the daemons, for their CPU time and memory
	close func() error

	world *lab.World
	key   key.NodePublic // of the far end, and where it listens
	at    netip.AddrPort
}

// direction is a pair in one direction: from one of its hosts to the other.
type direction struct {
	*pair
	from, to *lab.Host
	target   netip.Addr
}

func (p *pair) there() direction { return direction{p, p.hosts[0], p.hosts[1], p.addrs[1]} }
func (p *pair) back() direction  { return direction{p, p.hosts[1], p.hosts[0], p.addrs[0]} }

// figures are the results of one measurement, by name.
type figures map[string]float64

// metrics are the rows of the table; measurements produce them.
var metrics = []string{
	"TCP 1 flow, Gbit/s", "TCP 4 flows, Gbit/s", "TCP 1 flow, reverse, Gbit/s", "TCP 4 flows, reverse, Gbit/s",
	"daemons' CPU-s per GB, 1 flow", "daemons' CPU-s per GB, 4 flows",
	"64 B UDP received, kpps", "64 B UDP delivered, kpps", "RTT p50, us", "RTT p99, us",
	"daemons' CPU-us per delivered packet, 64 B UDP",
}

var measurements = []struct {
	name string
	run  func(context.Context, *pair, time.Duration) (figures, error)
}{
	{"tcp1", func(ctx context.Context, p *pair, d time.Duration) (figures, error) {
		r, err := flows(ctx, p.there(), 1, d)
		return figures{metrics[0]: r.gbits, metrics[4]: r.cpu}, err
	}},
	{"tcp4", func(ctx context.Context, p *pair, d time.Duration) (figures, error) {
		r, err := flows(ctx, p.there(), 4, d)
		return figures{metrics[1]: r.gbits, metrics[5]: r.cpu}, err
	}},
	{"back1", func(ctx context.Context, p *pair, d time.Duration) (figures, error) {
		r, err := flows(ctx, p.back(), 1, d)
		return figures{metrics[2]: r.gbits}, err
	}},
	{"back4", func(ctx context.Context, p *pair, d time.Duration) (figures, error) {
		r, err := flows(ctx, p.back(), 4, d)
		return figures{metrics[3]: r.gbits}, err
	}},
	{"udp", func(ctx context.Context, p *pair, d time.Duration) (figures, error) {
		r, err := datagrams(ctx, p.there(), d)
		return figures{metrics[6]: r.received / 1e3, metrics[7]: r.delivered / 1e3, metrics[10]: r.cpu}, err
	}},
	{"rtt", func(ctx context.Context, p *pair, d time.Duration) (figures, error) {
		p50, p99, err := roundTrips(ctx, p.there(), d)
		return figures{metrics[8]: p50, metrics[9]: p99}, err
	}},
}

// throughput runs the measurements on all pairs in interleaved rounds: all of them, or those named in only.
func throughput(ctx context.Context, bin, other, only string, rounds int, d time.Duration) (err error) {
	var pairs []*pair
	defer func() {
		for _, p := range pairs {
			err = errors.Join(err, p.close())
		}
	}()
	makers := []func() (*pair, error){
		rawPair,
		func() (*pair, error) { return stockPair(ctx, bin) },
		func() (*pair, error) { return redoubtPair(ctx, bin, "Redoubt, filter on") },
	}
	if other != "" {
		makers = append(makers, func() (*pair, error) { return redoubtPair(ctx, other, "the other Redoubt") })
	}
	for _, make := range makers {
		p, err := make()
		if err != nil {
			return err
		}
		pairs = append(pairs, p)
	}
	results := map[*pair][]figures{}
	for _, p := range pairs {
		if _, err := flows(ctx, p.there(), 1, 300*time.Millisecond); err != nil { // handshake, caches
			return fmt.Errorf("%s: %w", p.name, err)
		}
		results[p] = make([]figures, rounds)
	}
	for round := range rounds {
		for _, m := range measurements {
			if only != "" && !slices.Contains(strings.Split(only, ","), m.name) {
				continue
			}
			// Whoever is measured second finds the machine in another state, so they take turns.
			order := slices.Clone(pairs)
			if round%2 == 1 {
				slices.Reverse(order)
			}
			for _, p := range order {
				f, err := m.run(ctx, p, d)
				if err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				if results[p][round] == nil {
					results[p][round] = figures{}
				}
				maps.Copy(results[p][round], f)
			}
		}
	}
	report(pairs, results, rounds)
	return nil
}

func report(pairs []*pair, results map[*pair][]figures, rounds int) {
	fmt.Printf("Inner MTU 1420, medians of %d interleaved rounds; both ends on this machine\n\n|", rounds)
	stock, own := pairs[1], pairs[2:]
	rule := "\n| ---"
	for _, p := range pairs {
		fmt.Printf(" | %s", p.name)
		rule += " | ---"
	}
	for _, p := range own {
		fmt.Printf(" | %s / %s, median of the rounds' ratios", p.name, stock.name)
		rule += " | ---"
	}
	fmt.Println(" |" + rule + " |")
	for _, m := range metrics {
		if _, measured := results[stock][0][m]; !measured {
			continue
		}
		fmt.Printf("| %s", m)
		for _, p := range pairs {
			fmt.Printf(" | %.2f", median(results[p], func(f figures) float64 { return f[m] }))
		}
		for _, p := range own {
			fmt.Printf(" | %.2fx", ratio(results[p], results[stock], m))
		}
		fmt.Println(" |")
	}
	fmt.Print("| peak RSS, MB")
	for _, p := range pairs {
		fmt.Printf(" | %.0f", peakRSS(p.pids))
	}
	for _, p := range own {
		fmt.Printf(" | %.2fx", peakRSS(p.pids)/peakRSS(stock.pids))
	}
	fmt.Println(" |")
}

// ratio returns the median of the rounds' ratios: a disturbance of the machine mostly affects both sides of a round.
func ratio(a, b []figures, metric string) float64 {
	var all []float64
	for i := range a {
		all = append(all, a[i][metric]/b[i][metric])
	}
	return median(all, func(x float64) float64 { return x })
}

// rate is what flows achieved.
type rate struct {
	gbits float64
	cpu   float64 // CPU-seconds of the daemons per gigabyte
}

// flows sends over n connections for a while and measures how much arrived.
func flows(ctx context.Context, p direction, n int, d time.Duration) (rate, error) {
	ctx, cancel := context.WithTimeout(ctx, d+20*time.Second)
	defer cancel()
	l, err := p.to.Listen(netip.AddrPortFrom(p.target, 5201))
	if err != nil {
		return rate{}, err
	}
	defer l.Close()
	got := make(chan int64, n)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 256<<10)
				total := int64(0)
				for {
					k, err := c.Read(buf)
					total += int64(k)
					if err != nil {
						got <- total
						return
					}
				}
			}()
		}
	}()
	var conns []net.Conn
	for range n {
		c, err := p.from.Dial(ctx, "tcp", l.Addr().String())
		if err != nil {
			return rate{}, err
		}
		conns = append(conns, c)
	}
	cpu := cpuSeconds(p.pids)
	begin := time.Now()
	for _, c := range conns {
		go func() {
			defer c.Close()
			buf := make([]byte, 256<<10)
			_ = c.SetDeadline(begin.Add(d))
			for {
				if _, err := c.Write(buf); err != nil {
					return
				}
			}
		}()
	}
	total := int64(0)
	for range n {
		select {
		case b := <-got:
			total += b
		case <-ctx.Done():
			return rate{}, ctx.Err()
		}
	}
	took := time.Since(begin).Seconds()
	if total == 0 {
		return rate{}, io.ErrNoProgress
	}
	return rate{gbits: float64(total) * 8 / took / 1e9, cpu: (cpuSeconds(p.pids) - cpu) / (float64(total) / 1e9)}, nil
}
