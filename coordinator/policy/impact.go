package policy

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// maxPairs is how many pairs of nodes an Impact names; the rest is counted.
const maxPairs = 100

// Impact is what one program changes against another, for the nodes that there are.
type Impact struct {
	Nodes        int
	Touched      int // nodes for which something changes: what they may open, or who may open something to them
	Gained, Lost int // pairs of nodes that come to know each other, or cease to
	Pairs        []Pair
}

// Pair is two nodes that come to know each other, or cease to.
type Pair struct {
	Gained bool
	A, B   proto.Identity // by name
}

// Compare makes the views of every node by both programs. Where in the file a rule stands makes no difference.
func Compare(ctx context.Context, before, after *compile.Program, inv compile.Inventory) (Impact, error) {
	var out Impact
	old, next := before.On(inv), after.On(inv)
	for _, id := range slices.Sorted(inv.All()) {
		if err := ctx.Err(); err != nil {
			return Impact{}, err
		}
		out.Nodes++
		a, b := old.For(id), next.For(id)
		if !slices.Equal(substance(a), substance(b)) {
			out.Touched++
		}
		out.pairs(inv, id, a.Peers, b.Peers)
	}
	slices.SortStableFunc(out.Pairs, func(x, y Pair) int {
		return cmp.Or(cmp.Compare(x.A.Name, y.A.Name), cmp.Compare(x.B.Name, y.B.Name))
	})
	return out, nil
}

// pairs counts each pair at the node with the lower id.
func (m *Impact) pairs(inv compile.Inventory, id proto.NodeID, before, after []proto.NodeID) {
	note := func(peer proto.NodeID, gained bool, count *int) {
		if *count++; len(m.Pairs) >= maxPairs {
			return
		}
		a, _ := inv.Node(id)
		b, _ := inv.Node(peer)
		if b.Name < a.Name {
			a, b = b, a
		}
		m.Pairs = append(m.Pairs, Pair{Gained: gained, A: a, B: b})
	}
	for _, peer := range after {
		if _, had := slices.BinarySearch(before, peer); id < peer && !had {
			note(peer, true, &m.Gained)
		}
	}
	for _, peer := range before {
		if _, has := slices.BinarySearch(after, peer); id < peer && !has {
			note(peer, false, &m.Lost)
		}
	}
}

// substance is what a view makes a node do, in an order of its own, without the places that rules come from.
func substance(v compile.View) []string {
	out := make([]string, 0, len(v.Rules)+len(v.Sets))
	for _, r := range v.Rules {
		r.Key, r.Origin = "", proto.Origin{}
		out = append(out, fmt.Sprintf("%+v", r))
	}
	for _, s := range v.Sets {
		var b strings.Builder
		fmt.Fprintf(&b, "%s %v", s.Name, s.Conditional)
		for _, m := range s.Members {
			fmt.Fprintf(&b, " %d", uint64(m))
		}
		out = append(out, b.String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}
