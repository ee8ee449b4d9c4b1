package directory

import (
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Patience is how long after its certificate and the grace have expired a node stays in the netmaps of others, so that a
// machine waking from a short sleep can renew without a change for everyone. Peers drop its packets in the meantime by checking
// its certificate.
const Patience = 10 * time.Minute

// Lapsed reports whether a node's certificate has expired beyond grace and Patience, as of the last Expire: nobody trusts it any
// longer, and it trusts nobody. The node is in no other node's netmap until it renews.
func (s *Snapshot) Lapsed(id proto.NodeID) bool {
	_, ok := s.state.lapsed.Get(id)
	return ok
}

// lapse finds nodes whose certificates expired longer ago than grace allows others to trust them: a coordinator that comes back
// after an outage must not cut off nodes that survived it.
func (t *tx) lapse(grace time.Duration) {
	for id := range over(t.ends, t.now.Add(-grace-Patience-1)) {
		n, _ := t.state.nodes.Get(id)
		t.state.lapse(n)
		t.nodes = append(t.nodes, id)
	}
}

// lapse records that a node's certificate is over. From then on, policies ignore the node if it was revoked.
func (s *state) lapse(n *Node) {
	drop(&s.ends, timeKey(n.Certificate.NotAfter, idKey(n.ID)))
	put(&s.lapsed, n.ID, n.ID)
	drop(&s.peers, n.ID)
	if n.Revoked != nil {
		s.overlook(n)
	}
}

// lapseRevoked lapses, when a directory is opened, revoked nodes whose certificates expired long ago.
func (s *state) lapseRevoked(now time.Time, grace time.Duration) {
	for id := range over(s.ends, now.Add(-grace-Patience-1)) {
		if n, _ := s.nodes.Get(id); n.Revoked != nil {
			s.lapse(n)
		}
	}
}
