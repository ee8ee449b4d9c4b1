package distribute

import (
	"slices"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto"
)

// made returns pairs whose sets were requested.
func made(sets []proto.Set) *pairs {
	p := &pairs{}
	p.once.Do(func() { p.sets.Store(&sets) })
	return p
}

func TestPairsFollow(t *testing.T) {
	dirty := map[proto.NodeID]struct{}{1: {}}
	sets := []proto.Set{{Name: "a"}}
	p := &pairs{}
	p.follow(made(sets), dirty)
	if l := p.lead.Load(); l == nil || len(l.sets) != 1 || len(l.dirty) != 1 {
		t.Errorf("pairs that were made lead to %+v", l)
	}
	// Otherwise each change would keep all earlier ones alive if no relay ever asks.
	q := &pairs{}
	if q.follow(p, dirty); q.lead.Load() != nil {
		t.Error("pairs that nobody asked for are kept")
	}
	late := made(sets)
	if late.follow(made(nil), dirty); late.lead.Load() != nil {
		t.Error("pairs that are made already are led to")
	}
}

// TestPairsMerge checks that sets are replaced, added and removed, in one pass: the cost of a policy change that touches many
// nodes must not grow with their number times that of all nodes.
func TestPairsMerge(t *testing.T) {
	name := func(i int) string { return proto.NodeID(i).String() }
	const n = 1000
	var sets, want []proto.Set
	var changed []pairing
	for i := range n {
		before, after := proto.Set{Name: name(i), Members: []proto.NodeID{1}}, proto.Set{Name: name(i), Members: []proto.NodeID{2}}
		if i%5 != 0 { // the others are new, or stay unknown
			sets = append(sets, before)
		}
		switch trusted := i%2 == 0; {
		case i%3 == 0:
			if i%5 != 0 {
				want = append(want, before)
			}
		case trusted:
			want = append(want, after)
			fallthrough
		default:
			changed = append(changed, pairing{after, trusted})
		}
	}
	whole := slices.Clone(sets)
	var got []proto.Set
	if allocs := testing.AllocsPerRun(1, func() { got = merge(sets, changed) }); allocs > 1 {
		t.Errorf("%v allocations for %d changed sets", allocs, len(changed))
	}
	same := func(a, b proto.Set) bool { return a.Name == b.Name && slices.Equal(a.Members, b.Members) }
	if !slices.EqualFunc(got, want, same) {
		t.Errorf("%d sets, want %d: %v", len(got), len(want), got)
	}
	if !slices.EqualFunc(sets, whole, same) {
		t.Error("the sets that relays still use have changed")
	}
}
