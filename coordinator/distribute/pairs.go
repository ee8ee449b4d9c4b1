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
			sets = merge(l.sets, s.changed(l.dirty))
		} else {
			for id := range s.Snapshot.All() {
				if members, trusted := s.pairsOf(id); trusted {
					sets = append(sets, proto.Set{Name: id.String(), Members: members})
				}
			}
		}
		p.sets.Store(&sets)
		p.lead.Store(nil) // follow may have stored one since
	})
	return *p.sets.Load()
}

// pairing is the set that a node has now; it has none if it is not trusted.
type pairing struct {
	proto.Set
	trusted bool
}

// changed returns the sets of nodes, sorted by name.
func (s *bound) changed(nodes map[proto.NodeID]struct{}) []pairing {
	out := make([]pairing, 0, len(nodes))
	for id := range nodes {
		members, trusted := s.pairsOf(id)
		out = append(out, pairing{proto.Set{Name: id.String(), Members: members}, trusted})
	}
	slices.SortFunc(out, func(a, b pairing) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// merge returns a copy of sets with the changed ones replaced, added or removed. Both lists are sorted by name.
func merge(sets []proto.Set, changed []pairing) []proto.Set {
	out := make([]proto.Set, 0, len(sets)+len(changed))
	for _, c := range changed {
		at, there := slices.BinarySearchFunc(sets, c.Name, func(s proto.Set, name string) int { return strings.Compare(s.Name, name) })
		out = append(out, sets[:at]...)
		if there {
			at++
		}
		sets = sets[at:]
		if c.trusted {
			out = append(out, c.Set)
		}
	}
	return append(out, sets...)
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
