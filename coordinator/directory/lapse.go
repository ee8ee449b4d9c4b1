package directory

import (
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Patience is how long after the end of its certificate a node stays in the netmaps of others, where it passes nothing any
// more: a machine that slept soon renews, and is then not news to everybody.
const Patience = 10 * time.Minute

// Lapsed says that a node's certificate ended longer than Patience ago, as far as Expire has noticed. It is no part of
// others' netmaps until it has renewed.
func (s *Snapshot) Lapsed(id proto.NodeID) bool {
	_, ok := s.state.lapsed.Get(idKey(id))
	return ok
}

// lapse notices whose certificates ended.
func (t *tx) lapse() {
	for id := range over(t.ends, t.now.Add(-Patience-1)) {
		n, _ := t.state.nodes.Get(idKey(id))
		drop(&t.ends, timeKey(n.Certificate.NotAfter, idKey(id)))
		put(&t.lapsed, idKey(id), id)
		t.nodes = append(t.nodes, id)
	}
}
