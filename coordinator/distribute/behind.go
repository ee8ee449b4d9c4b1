package distribute

import (
	"cmp"
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Holders are the nodes in whose netmaps any of these is, but for themselves; sorted.
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

// Behind are those of these nodes that do not enforce what they ought to, by name, connected or not. Nodes that are not trusted
// are not among them.
func (h *Hub) Behind(ids []proto.NodeID) (out []Laggard) {
	s, now := h.Source(), h.config.Clock()
	for _, id := range ids {
		n, ok := s.Snapshot.Lookup(id)
		if !ok || n.Barred() || s.Snapshot.Lapsed(id) {
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
