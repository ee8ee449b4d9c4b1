package distribute

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/redoubt-mesh/redoubt/proto"
)

// pairs lists who may meet whom, in the form that relays get: one set per trusted node, named by its id. The sets are made on
// first use, by any goroutine.
type pairs struct {
	once sync.Once
	sets atomic.Pointer[[]proto.Set] // sorted by name; nil until made
	lead atomic.Pointer[lead]        // nil if there is none or it was consumed
}

// lead derives pairs from those before a change, where that is cheaper than making them all.
type lead struct {
	sets  []proto.Set
	dirty map[proto.NodeID]struct{}
}

// follow records that only the sets of dirty nodes differ from before. If before was never made, it does nothing: otherwise
// each pairs would keep its predecessor alive.
func (p *pairs) follow(before *pairs, dirty map[proto.NodeID]struct{}) {
	sets := before.sets.Load()
	if sets == nil {
		return
	}
	p.lead.Store(&lead{*sets, maps.Clone(dirty)})
	if p.sets.Load() != nil { // another goroutine was faster and made them all
		p.lead.Store(nil)
	}
}

// all returns the sets, making them on first use.
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

// put returns a copy of sets with the set of a node replaced, or removed if the node is not trusted.
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

// pairsOf returns the nodes that a node may meet, and whether it is trusted at all.
func (s *bound) pairsOf(id proto.NodeID) (members []proto.NodeID, trusted bool) {
	n, known := s.Snapshot.Lookup(id)
	if !known || n.Barred() || n.Relay {
		return nil, false
	}
	return s.policy.Peers(id), true
}

// relayNetmap returns the netmap of a relay.
func (s *bound) relayNetmap(id proto.NodeID) *proto.Netmap {
	return &proto.Netmap{
		Version: s.Snapshot.Version(), Mesh: s.Snapshot.Mesh(), Self: id, Authorities: s.Authorities, Outage: s.outage(),
		Sets: s.meets.all(s),
	}
}

// addRelays adds the relays to the nodes to recompute: any change may alter who meets whom.
func (h *Hub) addRelays(source Source, dirty map[proto.NodeID]struct{}) {
	for _, r := range source.Snapshot.Relays() {
		if n, ok := source.Snapshot.Lookup(r.ID); ok && n.Relay {
			dirty[r.ID] = struct{}{}
		}
	}
}
