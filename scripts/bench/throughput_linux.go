package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// pair is two hosts with something between them that is to be measured.
type pair struct {
	name   string
	from   *lab.Host
	to     *lab.Host
	target netip.Addr // of the far end, through what is measured
	pids   []int      // of the daemons, for their CPU time and memory
	close  func() error

	world *lab.World
	key   key.NodePublic // of the far end, and where it listens
	at    netip.AddrPort
}

// rate is what one flow reached.
type rate struct {
	gbits float64
	cpu   float64 // CPU-seconds of the daemons a gigabyte
}

// throughput measures all pairs in interleaved rounds.
func throughput(ctx context.Context, bin string, rounds int, d time.Duration) (err error) {
	var pairs []*pair
	defer func() {
		for _, p := range pairs {
			err = errors.Join(err, p.close())
		}
	}()
	for _, make := range []func(context.Context, string) (*pair, error){rawPair, stockPair, redoubtPair} {
		p, err := make(ctx, bin)
		if err != nil {
			return err
		}
		pairs = append(pairs, p)
	}
	results := map[*pair]map[int][]rate{}
	for _, p := range pairs {
		results[p] = map[int][]rate{}
		if _, err := flows(ctx, p, 1, 300*time.Millisecond); err != nil { // handshake, caches
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for round := range rounds {
		for _, n := range []int{1, 4} {
			// Whoever comes second finds another machine than the first: they take turns.
			order := slices.Clone(pairs)
			if round%2 == 1 {
				slices.Reverse(order)
			}
			for _, p := range order {
				r, err := flows(ctx, p, n, d)
				if err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				results[p][n] = append(results[p][n], r)
			}
		}
	}
	report(pairs, results, rounds)
	return nil
}

func report(pairs []*pair, results map[*pair]map[int][]rate, rounds int) {
	gbits := func(r rate) float64 { return r.gbits }
	cpu := func(r rate) float64 { return r.cpu }
	fmt.Printf("TCP, inner MTU 1420, medians of %d interleaved rounds; both ends on this machine\n\n", rounds)
	fmt.Println("| | 1 flow Gbit/s | 4 flows Gbit/s | daemons' CPU-s a GB | peak RSS MB |")
	fmt.Println("| --- | --- | --- | --- | --- |")
	for _, p := range pairs {
		r := results[p]
		fmt.Printf("| %s | %.2f | %.2f | %.2f | %.0f |\n", p.name, median(r[1], gbits), median(r[4], gbits), median(r[1], cpu), peakRSS(p.pids))
	}
	stock := pairs[1]
	for _, p := range pairs[2:] {
		own, theirs := results[p], results[stock]
		fmt.Printf("| %s / %s, median of the rounds' ratios | %.2fx | %.2fx | %.2fx | %.2fx |\n", p.name, stock.name,
			ratio(own[1], theirs[1], gbits), ratio(own[4], theirs[4], gbits), ratio(own[1], theirs[1], cpu), peakRSS(p.pids)/peakRSS(stock.pids))
	}
}

// ratio is the median of the rounds' ratios: what disturbs the machine mostly disturbs both of one round.
func ratio(a, b []rate, f func(rate) float64) float64 {
	var all []float64
	for i := range a {
		all = append(all, f(a[i])/f(b[i]))
	}
	return median(all, func(x float64) float64 { return x })
}

// flows sends over n connections for a while and says how much arrived.
func flows(ctx context.Context, p *pair, n int, d time.Duration) (rate, error) {
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
