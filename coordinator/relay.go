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

// Admission says to a relay beside this coordinator who may use it, and with whom.
type Admission struct{ c *Coordinator }

// Admission is for a relay in this process.
func (c *Coordinator) Admission() Admission { return Admission{c} }

// Admit judges a node's certificate (DER): whose it is, and until when it holds. A relay grants no grace.
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

// Trusted says whether a node is known, and neither revoked nor locked nor in quarantine.
func (a Admission) Trusted(id proto.NodeID) bool { return a.c.directory.Snapshot().Trusted(id) }

// Meet says whether the policy ties two nodes to each other.
func (a Admission) Meet(x, y proto.NodeID) bool { return a.c.hub.Meet(x, y) }

// Watch has f called after changes, with the nodes that may not be trusted any more. It must not wait.
func (a Admission) Watch(f func(changed []proto.NodeID)) *distribute.Meetings {
	return a.c.hub.WatchMeetings(f)
}

// RelayID is the id of the relay beside this coordinator: always the same.
func (c *Coordinator) RelayID() proto.NodeID {
	sum := sha256.Sum256([]byte("redoubt relay of coordinator c1 in mesh " + string(c.Mesh().ID)))
	return proto.NodeID(binary.BigEndian.Uint64(sum[:]) | 1) // 0 is nobody
}

// SetRelay tells nodes of a relay that serves.
func (c *Coordinator) SetRelay(ctx context.Context, r proto.Relay) error {
	return c.directory.SetRelay(ctx, r)
}
