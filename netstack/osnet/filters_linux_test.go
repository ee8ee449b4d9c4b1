package osnet

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// TestFilters checks that Filters returns what others have set, but not what agents have.
func TestFilters(t *testing.T) {
	x := withNeighbour(t)
	up(t, x.a, x.n, configA())
	drop := nftables.ChainPolicyDrop
	ctx, cancel := context.WithCancel(t.Context())
	var changes <-chan struct{}
	var before, after []FilterChain
	if err := x.a.Do(func() (err error) {
		if before, err = Filters(); err == nil {
			changes, err = WatchFilters(ctx)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ruleset(t, x.a, nftables.Chain{
		Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	},
		append(is(expr.MetaKeyIIFNAME, "lo"), &expr.Verdict{Kind: expr.VerdictAccept}),
		[]expr.Any{&expr.Counter{}, &expr.Log{Key: 1 << 1, Data: []byte("in")}},
		[]expr.Any{&expr.Counter{}, &expr.Reject{Type: 0, Code: 3}},
		[]expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}},
	)
	ruleset(t, x.a, nftables.Chain{Name: "other"}, []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}})
	select {
	case _, ok := <-changes:
		if !ok {
			t.Error("the kernel stopped telling")
		}
	case <-time.After(time.Minute):
		t.Error("nobody told of the change")
	}
	if err := x.a.Do(func() (err error) {
		after, err = Filters()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := []FilterChain{
		{Family: "ip", Table: "user-input", Name: "input", Input: true, Drops: true, Rules: []FilterRule{
			{Conditional: true, Verdict: VerdictAccept}, {}, {Verdict: VerdictDrop}, {Verdict: VerdictReturn},
		}},
		{Family: "ip", Table: "user-other", Name: "other", Rules: []FilterRule{{Verdict: VerdictDrop}}},
	}
	if diff := cmp.Diff(want, after); diff != "" || len(before) > 0 {
		t.Errorf("before: %+v, after: %s", before, diff)
	}
	cancel()
	for range changes { //nolint:revive // until it is closed
	}
}
