package coordinator

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/distribute"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// Admission tells a relay in this process which nodes may use it, and to reach which others.
type Admission struct{ c *Coordinator }

// Admission returns the Admission for a relay in this process.
func (c *Coordinator) Admission() Admission { return Admission{c} }

// Admit verifies a node's certificate (DER) and returns whose it is and when it expires. A relay grants no grace.
func (a Admission) Admit(certificate []byte) (proto.NodeID, time.Time, error) {
	n, err := a.c.issuer.Verifier().Node(certificate, a.c.config.Clock())
	if err != nil {
		return 0, time.Time{}, err
	}
	known, ok := a.c.directory.Snapshot().Lookup(n.ID)
	if !ok || known.Device != n.Device || !a.Trusted(n.ID) {
		return 0, time.Time{}, fmt.Errorf("node %s is not trusted", n.ID)
	}
	return n.ID, n.NotAfter.Add(cert.Skew), nil
}

// Trusted reports whether a node is known, and neither revoked, locked nor quarantined.
func (a Admission) Trusted(id proto.NodeID) bool { return a.c.directory.Snapshot().Trusted(id) }

// Meet reports whether the policy connects two nodes.
func (a Admission) Meet(x, y proto.NodeID) bool { return a.c.hub.Meet(x, y) }

// Watch has f called after changes, with the nodes that may no longer be trusted. f must not block.
func (a Admission) Watch(f func(changed []proto.NodeID)) *distribute.Meetings {
	return a.c.hub.WatchMeetings(f)
}

// RelayID returns the id of the relay in this process, which is always the same.
func (c *Coordinator) RelayID() proto.NodeID {
	sum := sha256.Sum256([]byte("redoubt relay of coordinator c1 in mesh " + string(c.Mesh().ID)))
	return proto.NodeID(binary.BigEndian.Uint64(sum[:]) | 1) // 0 is no node
}

// SetRelay announces a relay to nodes.
func (c *Coordinator) SetRelay(ctx context.Context, r proto.Relay) error {
	return c.directory.SetRelay(ctx, r)
}
