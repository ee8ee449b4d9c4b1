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
		t.state.lapse(n)
		t.nodes = append(t.nodes, id)
	}
}

// lapse notes that a node's certificate is over. One that was revoked is nothing to policies from then on.
func (s *state) lapse(n *Node) {
	drop(&s.ends, timeKey(n.Certificate.NotAfter, idKey(n.ID)))
	put(&s.lapsed, n.ID, n.ID)
	drop(&s.peers, n.ID)
	if n.Revoked != nil {
		s.overlook(n)
	}
}

// lapseRevoked is for a directory that is opened: those whose certificates ended long ago are not brought up again.
func (s *state) lapseRevoked(now time.Time, grace time.Duration) {
	for id := range over(s.ends, now.Add(-grace-Patience-1)) {
		if n, _ := s.nodes.Get(id); n.Revoked != nil {
			s.lapse(n)
		}
	}
}
