package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// TestFleet has nodes join, come back all at once, and be told of policies, over real control streams: each time every node ends
// with the peers and the rule that the plan gives it, built from the snapshots and changes that it was sent.
func TestFleet(t *testing.T) {
	r := newRig(t, plan{nodes: 95, group: 21})
	var codes []string
	var groups []int
	for g, size := range r.groups() {
		a, err := r.co.Admin().CreateToken(t.Context(), &redoubtv1.CreateTokenRequest{Tags: []string{fmt.Sprintf("tag:g%d", g)}, Reusable: true})
		if err != nil {
			t.Fatal(err)
		}
		for range size {
			codes, groups = append(codes, a.GetCode()), append(groups, g)
		}
	}
	r.apply(1, -1)
	if err := r.nodes.do(command{Do: "join", Codes: codes}, &answer{}); err != nil {
		t.Fatal(err)
	}
	r.check("all joined", groups, 1, -1)
	r.apply(2, 1)
	r.check("rules changed", groups, 2, 1)

	if err := r.nodes.do(command{Do: "renew", Count: 20, Over: 200 * time.Millisecond}, &answer{}); err != nil {
		t.Fatal(err)
	}
	r.check("some renewed", groups, 2, 1)
	if err := r.nodes.do(command{Do: "drop"}, &answer{}); err != nil {
		t.Fatal(err)
	}
	r.apply(3, 0) // while nobody is there
	if err := r.nodes.do(command{Do: "attach"}, &answer{}); err != nil {
		t.Fatal(err)
	}
	r.check("all back at once", groups, 3, 0)

	gone := r.nodes[0]
	gone.client.Swap(nil).Close()
	if _, err := r.co.Admin().DeleteNode(t.Context(), &redoubtv1.DeleteNodeRequest{Node: gone.self.Node.ID.String()}); err != nil {
		t.Fatal(err)
	}
	r.nodes, groups = r.nodes[1:], groups[1:]
	r.check("one left", groups, 3, 0)
}

type rig struct {
	plan
	t     *testing.T
	co    *coordinator.Coordinator
	nodes crowd
}

func newRig(t *testing.T, p plan) *rig {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	co, err := coordinator.New(t.Context(), coordinator.Config{Data: t.TempDir(), URLs: []string{"https://" + l.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{plan: p, t: t, co: co}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- co.Run(ctx, l) }()
	t.Cleanup(func() {
		r.nodes.drop()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) apply(port, odd int) {
	r.t.Helper()
	if _, err := r.co.Admin().ApplyPolicy(r.t.Context(), &redoubtv1.ApplyPolicyRequest{Source: r.policy(port, odd)}); err != nil {
		r.t.Fatal(err)
	}
}

// check waits until the coordinator takes every node for current, and looks at what they have.
func (r *rig) check(when string, groups []int, port, odd int) {
	r.t.Helper()
	st, err := r.co.Admin().PolicyStatus(r.t.Context(), &redoubtv1.PolicyStatusRequest{WaitMs: uint64(time.Minute / time.Millisecond)})
	if err != nil || len(st.GetLaggards()) > 0 {
		r.t.Fatalf("%s: %d nodes lag, %v", when, len(st.GetLaggards()), err)
	}
	for i, n := range r.nodes {
		nm := n.knows()
		var want, got []string
		for j, other := range r.nodes {
			if i != j && groups[i] == groups[j] {
				want = append(want, other.self.Node.ID.String())
			}
		}
		for _, p := range nm.Peers {
			got = append(got, p.ID.String())
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			r.t.Errorf("%s: a node of group %d has peers %v, should have %v", when, groups[i], got, want)
		}
		at := port
		if groups[i] == odd {
			at++
		}
		for _, rule := range nm.Rules {
			if len(rule.Services) != 1 || int(rule.Services[0].First) != at {
				r.t.Errorf("%s: a node of group %d has %+v, should have port %d", when, groups[i], rule, at)
			}
		}
		if len(nm.Rules) != 2 {
			r.t.Errorf("%s: a node of group %d has %d rules, should have one each way", when, groups[i], len(nm.Rules))
		}
	}
}
