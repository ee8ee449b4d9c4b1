package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// control measures what people wait for: a node joining, and a policy taking effect.
func control(ctx context.Context, bin string, joins, changes int) (err error) {
	m, err := mesh.New(bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	first, times, err := joinTimes(ctx, m, joins)
	if err != nil {
		return err
	}
	fmt.Println("| what | median | worst | n |")
	fmt.Println("| --- | --- | --- | --- |")
	row("a new node, from `redoubt up CODE` to its first answered ping, ms", times)

	applied, err := policyTimes(ctx, m, changes)
	if err != nil {
		return err
	}
	row(fmt.Sprintf("`policy apply --wait` until %d nodes enforce it, ms", joins+1), applied)
	fmt.Printf("| resident memory of an idle agent, MB | %.1f | | 1 |\n", rss(first.Agent.PID()))
	fmt.Printf("| resident memory of the coordinator, MB | %.1f | | 1 |\n", rss(m.Serve.PID()))
	return nil
}

func row(what string, ms []float64) {
	id := func(f float64) float64 { return f }
	worst := 0.0
	for _, f := range ms {
		worst = max(worst, f)
	}
	fmt.Printf("| %s | %.0f | %.0f | %d |\n", what, median(ms, id), worst, len(ms))
}

// joinTimes starts a mesh and measures how long each new node takes to join.
func joinTimes(ctx context.Context, m *mesh.Mesh, n int) (first *mesh.Node, ms []float64, err error) {
	if err := m.StartCoordinator(ctx); err != nil {
		return nil, nil, err
	}
	if _, err := m.Apply(ctx, open); err != nil {
		return nil, nil, err
	}
	if first, err = join(ctx, m, "first"); err != nil {
		return nil, nil, err
	}
	st, err := first.Status(ctx)
	if err != nil {
		return nil, nil, err
	}
	for i := range n {
		code, err := m.Token(ctx, "--user", "ann@example.com")
		if err != nil {
			return nil, nil, err
		}
		node, err := m.AddNode(ctx, fmt.Sprintf("n%d", i))
		if err != nil {
			return nil, nil, err
		}
		begin := time.Now()
		if _, err := node.Up(ctx, code); err != nil {
			return nil, nil, err
		}
		if _, err := node.Host.Ping(ctx, st.V4()); err != nil {
			return nil, nil, err
		}
		ms = append(ms, millis(time.Since(begin)))
	}
	return first, ms, nil
}

// policyTimes applies policies and measures how long it takes until every node enforces each.
func policyTimes(ctx context.Context, m *mesh.Mesh, n int) (ms []float64, err error) {
	for i := range n {
		policy := fmt.Sprintf(`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["tcp:%d", "icmp:*"]}]}`, 1000+i)
		begin := time.Now()
		if _, err := m.Apply(ctx, policy, "--wait=5s"); err != nil {
			return nil, err
		}
		ms = append(ms, millis(time.Since(begin)))
	}
	return ms, nil
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
