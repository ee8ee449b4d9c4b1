package distribute

import (
	"cmp"
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Holders returns the nodes whose netmaps contain any of ids, except ids themselves, sorted.
func Holders(source Source, ids []proto.NodeID) []proto.NodeID {
	s := source.bind()
	met := make(map[proto.NodeID]struct{})
	for _, id := range ids {
		if !s.Snapshot.Trusted(id) {
			continue
		}
		for _, peer := range s.policy.For(id).Peers {
			if s.Snapshot.Trusted(peer) && !s.Snapshot.Lapsed(peer) {
				met[peer] = struct{}{}
			}
		}
	}
	for _, id := range ids {
		delete(met, id)
	}
	out := make([]proto.NodeID, 0, len(met))
	for id := range met {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// Behind returns the nodes among ids that do not yet enforce what they should, sorted by name, connected or not. Nodes that
// nobody may trust any more are left out.
func (h *Hub) Behind(ids []proto.NodeID) (out []Laggard) {
	s, now := h.Source(), h.config.Clock()
	for _, id := range ids {
		n, ok := counted(s.Snapshot, id)
		if !ok {
			continue
		}
		l := Laggard{ID: id, Name: n.Name, Wanted: s.Snapshot.Version(), Lag: now.Sub(n.Created)}
		h.mu.Lock()
		r := h.nodes[id]
		l.Connected = r != nil && r.session != nil
		h.mu.Unlock()
		if r == nil || r.describe(&l, now) {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b Laggard) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}
