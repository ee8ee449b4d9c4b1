package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// plan describes a mesh: groups of nodes that see each other. The last group has eleven nodes, so that a change of one of
// them affects ten others.
type plan struct {
	nodes, group int
}

const last = 11

// calm is how long after the joins the coordinator counts as idle.
const calm = 15 * time.Second

// groups returns the sizes of the groups.
func (p plan) groups() (sizes []int) {
	for left := p.nodes - last; left > 0; left -= p.group {
		sizes = append(sizes, min(left, p.group))
	}
	return append(sizes, last)
}

// policy lets each group reach itself on a port; group odd uses another port (-1: no group does).
func (p plan) policy(port, odd int) string {
	var owners, grants strings.Builder
	for i := range p.groups() {
		fmt.Fprintf(&owners, "\"tag:g%d\": [], ", i)
		at := port
		if i == odd {
			at++
		}
		fmt.Fprintf(&grants, "{\"src\": [\"tag:g%d\"], \"dst\": [\"tag:g%d\"], \"ip\": [\"tcp:%d\"]},\n", i, i, at)
	}
	return "{\"tagOwners\": {" + owners.String() + "},\n\"grants\": [\n" + grants.String() + "]}"
}

// codes returns the join codes of all nodes, by worker.
func (f *fleet) codes(ctx context.Context) ([workers][]string, error) {
	var out [workers][]string
	i := 0
	for g, size := range f.groups() {
		t, err := f.admin.CreateToken(ctx, &redoubtv1.CreateTokenRequest{Tags: []string{fmt.Sprintf("tag:g%d", g)}, Reusable: true})
		if err != nil {
			return out, err
		}
		for range size {
			out[i%workers] = append(out[i%workers], t.GetCode())
			i++
		}
	}
	return out, nil
}

func (f *fleet) apply(ctx context.Context, port, odd int) error {
	_, err := f.admin.ApplyPolicy(ctx, &redoubtv1.ApplyPolicyRequest{Source: f.policy(port, odd)})
	return err
}

func measure(ctx context.Context, bin, metrics string, p plan, rounds int, idle, renew time.Duration) error {
	dir, err := os.MkdirTemp("", "fleet")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	f, err := start(ctx, bin, metrics, dir, p)
	if err != nil {
		return err
	}
	r := result{plan: p}
	if renew > 0 {
		err = f.renewals(ctx, &r, idle, renew)
	} else {
		err = f.run(ctx, &r, rounds, idle)
	}
	if closed := f.close(); err == nil {
		err = closed
	}
	if err == nil {
		r.print()
	}
	return err
}

// renewRate is how many renewals 10,000 nodes need per second to renew within half an hour.
const renewRate = 10_000 / (30. * 60)

// renewals makes nodes renew at that rate. It measures only a node's first renewal: all others cost the same.
func (f *fleet) renewals(ctx context.Context, r *result, idle, during time.Duration) error {
	if err := f.joined(ctx, r, idle); err != nil {
		return err
	}
	r.renewed = min(int(renewRate*during.Seconds()), f.nodes) / workers * workers
	over := time.Duration(float64(r.renewed) / renewRate * float64(time.Second))
	before, begin := f.cpu(), time.Now()
	if _, err := f.all(func(int) command { return command{Do: "renew", Count: r.renewed / workers, Over: over} }); err != nil {
		return err
	}
	// Peers that need not learn of it at once do so within a minute.
	if err := pause(ctx, 65*time.Second); err != nil {
		return err
	}
	if err := f.settled(ctx); err != nil {
		return err
	}
	r.renewCPU = (f.cpu() - before - r.idle*time.Since(begin).Seconds()) / float64(r.renewed)
	progress("%d renewals in %v, %.2f CPU-ms each above the idle coordinator", r.renewed, over, 1e3*r.renewCPU)
	return nil
}

type result struct {
	plan
	join, rss, idle float64 // CPU seconds each; KB per node; fraction of a core
	back, backCPU   float64
	all, ten, rule  change
	renewed         int
	renewCPU        float64 // seconds each
}

// change is the cost of one kind of change: milliseconds, CPU seconds each, and bytes.
type change struct {
	lasts, times []float64
	cpu          float64
	bytes        int64
	silent       int64
}

func (c change) p99() float64 { return quantile(c.times, 0.99) }

func quantile(all []float64, q float64) float64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[min(int(q*float64(len(all))), len(all)-1)]
}

func (r *result) print() {
	name := fmt.Sprint(r.nodes)
	if r.group == r.nodes {
		name += ", all to all"
	}
	if r.renewed > 0 {
		fmt.Printf("| %s | %d | %.2f | %.1f | %.1f |\n", name, r.renewed, 1e3*r.renewCPU, 100*r.renewCPU*renewRate, 100*r.idle)
		return
	}
	fmt.Printf("| %s | %.1f | %.0f | %.1f | %.1f | %.1f | %.0f | %.0f | %.2f | %.0f | %.0f | %.0f | %d | %d |\n", name,
		1e3*r.join, r.rss, 100*r.idle, r.back, r.backCPU, quantile(r.all.lasts, 0.5), r.all.p99(), r.all.cpu,
		r.ten.p99(), r.rule.p99(), 1e3*r.rule.cpu, r.rule.bytes, r.rule.silent)
}

func (f *fleet) run(ctx context.Context, r *result, rounds int, idle time.Duration) error {
	if err := f.joined(ctx, r, idle); err != nil {
		return err
	}
	if err := f.changes(ctx, r, rounds); err != nil {
		return err
	}
	return f.storm(ctx, r)
}

// joined makes all nodes join, and measures the coordinator afterwards.
func (f *fleet) joined(ctx context.Context, r *result, idle time.Duration) error {
	if err := f.apply(ctx, 1, -1); err != nil {
		return err
	}
	codes, err := f.codes(ctx)
	if err != nil {
		return err
	}
	empty, before := f.rss(), f.cpu()
	if _, err := f.all(func(i int) command { return command{Do: "join", Codes: codes[i]} }); err != nil {
		return err
	}
	if err := f.settled(ctx); err != nil {
		return err
	}
	r.join = (f.cpu() - before) / float64(f.nodes)
	progress("%d nodes joined, %.2f CPU-ms each, RSS %.0f MB", f.nodes, 1e3*r.join, f.rss()/1e3)
	// The memory that counts is what the process occupies some time after the joins, not its peak use.
	if err := pause(ctx, calm); err != nil {
		return err
	}
	before = f.cpu()
	if err := pause(ctx, idle); err != nil {
		return err
	}
	r.idle = (f.cpu() - before) / idle.Seconds()
	r.rss = (f.rss() - empty) / float64(f.nodes)
	progress("idle %.1f %%, %.0f KB per node", 100*r.idle, r.rss)
	return nil
}

func (f *fleet) changes(ctx context.Context, r *result, rounds int) (err error) {
	// Every rule gets another port; then one rule, which affects the nodes of one group; then one node reports an endpoint.
	r.all, err = f.repeat(ctx, rounds, f.nodes, func(i int) error { return f.apply(ctx, 10+i, -1) })
	if err != nil {
		return err
	}
	progress("all: last %.0f ms, p99 %.0f ms, %.2f CPU-s", quantile(r.all.lasts, 0.5), r.all.p99(), r.all.cpu)
	r.rule, err = f.repeat(ctx, rounds, f.groups()[0], func(i int) error { return f.apply(ctx, 10+rounds-1, (i+1)%2-1) })
	if err != nil {
		return err
	}
	progress("one rule: p99 %.0f ms, %.3f CPU-s, %d bytes", r.rule.p99(), r.rule.cpu, r.rule.bytes)
	who := (f.nodes - 1) % workers
	r.ten, err = f.repeat(ctx, rounds, last-1, func(i int) error {
		_, err := f.workers[who].ask(command{Do: "report", Node: (f.nodes - 1) / workers, Port: uint16(1000 + i)})
		return err
	})
	progress("ten: p99 %.0f ms, %.3f CPU-s", r.ten.p99(), r.ten.cpu)
	return err
}

// repeat makes a change several times, and waits each time until all nodes that it affects have received it.
func (f *fleet) repeat(ctx context.Context, rounds, touches int, once func(i int) error) (c change, err error) {
	before := f.cpu()
	for i := range rounds {
		if _, err := f.do("mark"); err != nil {
			return c, err
		}
		begin := time.Now()
		if err := once(i); err != nil {
			return c, err
		}
		for got := 0; got < touches; {
			if time.Since(begin) > time.Minute {
				return c, fmt.Errorf("%d of %d nodes have a change after a minute", got, touches)
			}
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return c, err
			}
			if got, err = f.count(); err != nil {
				return c, err
			}
		}
		if err := f.settled(ctx); err != nil {
			return c, err
		}
		if err := f.note(&c, begin); err != nil {
			return c, err
		}
	}
	c.cpu = (f.cpu() - before) / float64(rounds)
	return c, nil
}

func (f *fleet) count() (n int, err error) {
	answers, err := f.do("collect")
	for _, a := range answers {
		n += len(a.Touched)
	}
	return n, err
}

func (f *fleet) note(c *change, begin time.Time) error {
	answers, err := f.do("collect")
	var most float64
	for _, a := range answers {
		c.silent += a.Silent
		for _, t := range a.Touched {
			ms := float64(t.At-begin.UnixNano()) / 1e6
			most = max(most, ms)
			c.times = append(c.times, ms)
			c.bytes = max(c.bytes, t.Bytes)
		}
	}
	c.lasts = append(c.lasts, most)
	return err
}

// storm drops all streams and makes all nodes reconnect at the same moment.
func (f *fleet) storm(ctx context.Context, r *result) error {
	if _, err := f.do("drop"); err != nil {
		return err
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return err
	}
	before, begin := f.cpu(), time.Now()
	if _, err := f.do("attach"); err != nil {
		return err
	}
	if err := f.settled(ctx); err != nil {
		return err
	}
	r.back, r.backCPU = time.Since(begin).Seconds(), f.cpu()-before
	progress("storm: %.1f s, %.1f CPU-s", r.back, r.backCPU)
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
