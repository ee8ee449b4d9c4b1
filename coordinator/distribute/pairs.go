package distribute

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/redoubt-mesh/redoubt/proto"
)

// pairs are who may meet whom, as relays are told: a set for each node that is trusted, named by its id. They are made when they
// are first asked for, by any goroutine.
type pairs struct {
	once sync.Once
	sets atomic.Pointer[[]proto.Set] // sorted by name; nil until they are made
	lead atomic.Pointer[lead]        // nil: there is none, or it was taken
}

// lead is how pairs come about from those before a change, where that is less than to make them all.
type lead struct {
	sets  []proto.Set
	dirty map[proto.NodeID]struct{}
}

// follow says that only the sets of dirty nodes are others than before. Pairs that were never asked for lead to nothing: they
// would be kept for the sake of these, and those before for theirs.
func (p *pairs) follow(before *pairs, dirty map[proto.NodeID]struct{}) {
	sets := before.sets.Load()
	if sets == nil {
		return
	}
	p.lead.Store(&lead{*sets, maps.Clone(dirty)})
	if p.sets.Load() != nil { // somebody was faster, and made them all
		p.lead.Store(nil)
	}
}

// all makes the sets.
func (p *pairs) all(s *bound) []proto.Set {
	p.once.Do(func() {
		var sets []proto.Set
		if l := p.lead.Swap(nil); l != nil {
			sets = l.sets
			for id := range l.dirty {
				members, trusted := s.pairsOf(id)
				sets = put(sets, id, members, trusted)
			}
		} else {
			for id := range s.Snapshot.All() {
				if members, trusted := s.pairsOf(id); trusted {
					sets = append(sets, proto.Set{Name: id.String(), Members: members})
				}
			}
		}
		p.sets.Store(&sets)
	})
	return *p.sets.Load()
}

// put replaces the set of a node in a copy; one that is not trusted has none.
func put(sets []proto.Set, id proto.NodeID, members []proto.NodeID, trusted bool) []proto.Set {
	name := id.String()
	at, there := slices.BinarySearchFunc(sets, name, func(s proto.Set, name string) int { return strings.Compare(s.Name, name) })
	out := slices.Clone(sets)
	switch {
	case there && !trusted:
		return slices.Delete(out, at, at+1)
	case there:
		out[at] = proto.Set{Name: name, Members: members}
		return out
	case trusted:
		return slices.Insert(out, at, proto.Set{Name: name, Members: members})
	}
	return out
}

// pairsOf are the nodes that a node may meet, and whether it is trusted at all.
func (s *bound) pairsOf(id proto.NodeID) (members []proto.NodeID, trusted bool) {
	n, known := s.Snapshot.Lookup(id)
	if !known || n.Barred() || n.Relay {
		return nil, false
	}
	return s.policy.Peers(id), true
}

// relayNetmap is what a relay knows of the mesh.
func (s *bound) relayNetmap(id proto.NodeID) *proto.Netmap {
	return &proto.Netmap{
		Version: s.Snapshot.Version(), Mesh: s.Snapshot.Mesh(), Self: id, Authorities: s.Authorities, Outage: s.outage(),
		Sets: s.meets.all(s),
	}
}

// addRelays adds the relays to those whose netmaps are made again: any change may be one of who meets whom.
func (h *Hub) addRelays(source Source, dirty map[proto.NodeID]struct{}) {
	for _, r := range source.Snapshot.Relays() {
		if n, ok := source.Snapshot.Lookup(r.ID); ok && n.Relay {
			dirty[r.ID] = struct{}{}
		}
	}
}
