package distribute

import (
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
