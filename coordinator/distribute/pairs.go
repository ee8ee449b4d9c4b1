package distribute

import (
	"slices"
	"strings"
	"sync"

	"github.com/redoubt-mesh/redoubt/proto"
)

// pairs are who may meet whom, as relays are told: a set for each node that is trusted, named by its id.
type pairs struct {
	once sync.Once
	sets []proto.Set // sorted by name; made when they are first asked for
	made bool

	// before and dirty lead from other pairs to these, where that is less than to make them all.
	before *pairs
	dirty  map[proto.NodeID]struct{}
}

// all makes the sets.
func (p *pairs) all(s *bound) []proto.Set {
	p.once.Do(func() {
		if p.before != nil && p.before.made {
			p.sets = p.before.sets
			for id := range p.dirty {
				members, trusted := s.pairsOf(id)
				p.sets = put(p.sets, id, members, trusted)
			}
		} else {
			for id := range s.Snapshot.All() {
				if members, trusted := s.pairsOf(id); trusted {
					p.sets = append(p.sets, proto.Set{Name: id.String(), Members: members})
				}
			}
		}
		p.before, p.dirty, p.made = nil, nil, true
	})
	return p.sets
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
