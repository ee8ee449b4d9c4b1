package directory

import (
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Patience is how long after the end of its certificate, and of the grace, a node stays in the netmaps of others: a machine
// that slept soon renews, and is then not news to everybody. That nothing of it passes meanwhile is for those to see to who
// judge its certificate.
const Patience = 10 * time.Minute

// Lapsed says that nobody may trust a node's certificate any more, and it nobody's, as far as Expire has noticed. It is no
// part of others' netmaps until it has renewed.
func (s *Snapshot) Lapsed(id proto.NodeID) bool {
	_, ok := s.state.lapsed.Get(id)
	return ok
}

// lapse notices whose certificates ended longer ago than others may trust them by grace: when a coordinator comes back after
// an outage it must not part those who got over it.
func (t *tx) lapse(grace time.Duration) {
	for id := range over(t.ends, t.now.Add(-grace-Patience-1)) {
		n, _ := t.state.nodes.Get(id)
		drop(&t.ends, timeKey(n.Certificate.NotAfter, idKey(id)))
		put(&t.lapsed, id, id)
		drop(&t.peers, id)
		t.nodes = append(t.nodes, id)
	}
}
