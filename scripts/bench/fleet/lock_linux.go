package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// measureLocks withdraws the trust in one node after the other, by lock and by revocation, while so many nodes that all know
// it stay attached, and prints how long it took from the command to the last acknowledgement.
func measureLocks(ctx context.Context, bin, metrics string, nodes, rounds int) error {
	dir, err := os.MkdirTemp("", "fleet")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	// The nodes that lose trust are additional; the last group of the plan knows none of them.
	f, err := start(ctx, bin, metrics, dir, plan{nodes: nodes + 2*rounds + last, group: nodes + 2*rounds})
	if err != nil {
		return err
	}
	err = f.locks(ctx, nodes, rounds)
	if closed := f.close(); err == nil {
		err = closed
	}
	return err
}

func (f *fleet) locks(ctx context.Context, nodes, rounds int) error {
	if err := f.apply(ctx, 1, -1); err != nil {
		return err
	}
	codes, err := f.codes(ctx)
	if err != nil {
		return err
	}
	if _, err := f.all(func(i int) command { return command{Do: "join", Codes: codes[i]} }); err != nil {
		return err
	}
	if err := f.settled(ctx); err != nil {
		return err
	}
	progress("%d nodes joined", f.nodes)
	targets, err := f.targets(ctx, 2*rounds)
	if err != nil {
		return err
	}
	fmt.Println("| who loses trust | holders attached, at least | rounds | median, ms | p99, ms | most, ms | coordinator's CPU-ms each |")
	fmt.Println("| --- | --- | --- | --- | --- | --- | --- |")
	for _, kind := range []struct {
		name string
		once func(node string) (*redoubtv1.CreateLockResponse, error)
	}{
		{"lock create --node", func(node string) (*redoubtv1.CreateLockResponse, error) {
			return f.admin.CreateLock(ctx, &redoubtv1.CreateLockRequest{Kind: "node", Subject: node})
		}},
		{"node revoke", func(node string) (*redoubtv1.CreateLockResponse, error) {
			a, err := f.admin.RevokeNode(ctx, &redoubtv1.RevokeNodeRequest{Node: node})
			return &redoubtv1.CreateLockResponse{Holders: a.GetHolders(), Enforced: a.GetEnforced(), EnforcedUs: a.GetEnforcedUs()}, err
		}},
	} {
		var times []float64
		before := f.cpu()
		for range rounds {
			a, err := kind.once(targets[0])
			if err != nil {
				return err
			}
			targets = targets[1:]
			if int(a.GetHolders()) < nodes {
				return fmt.Errorf("%s: %d nodes knew of it, want at least %d", kind.name, a.GetHolders(), nodes)
			}
			if a.GetEnforced() != a.GetHolders() { // the time is that of giving up, not of the last node
				progress("%s: %d of %d nodes enforce it after %d ms", kind.name, a.GetEnforced(), a.GetHolders(), a.GetEnforcedUs()/1000)
			}
			times = append(times, float64(a.GetEnforcedUs())/1000)
			if err := f.settled(ctx); err != nil {
				return err
			}
		}
		cpu := 1000 * (f.cpu() - before) / float64(rounds)
		fmt.Printf("| %s | %d | %d | %.0f | %.0f | %.0f | %.0f |\n", kind.name, nodes, rounds, quantile(times, 0.5), quantile(times, 0.99), quantile(times, 1), cpu)
	}
	return nil
}

// targets returns the ids of n nodes of the group in which all know each other.
func (f *fleet) targets(ctx context.Context, n int) (ids []string, err error) {
	a, err := f.admin.ListNodes(ctx, &redoubtv1.ListNodesRequest{})
	if err != nil {
		return nil, err
	}
	for _, x := range a.GetNodes() {
		if len(ids) < n && strings.Join(x.GetTags(), "") == "tag:g0" {
			ids = append(ids, x.GetId())
		}
	}
	if len(ids) < n {
		return nil, fmt.Errorf("%d nodes could lose trust, want %d", len(ids), n)
	}
	return ids, nil
}
