package directory

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/ipam"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
)

const (
	// AwayLimit is how long an ephemeral node may be away before it is removed.
	AwayLimit = 30 * time.Minute
	maxReason = 500
)

// RevokeNode permanently revokes a node. It does nothing if the node is revoked already.
func (d *Directory) RevokeNode(ctx context.Context, id proto.NodeID, reason, by string) (*Node, error) {
	if len(reason) > maxReason {
		return nil, fmt.Errorf("reason of %d bytes: at most %d: %w", len(reason), maxReason, ErrInvalid)
	}
	var n *Node
	err := d.do(ctx, func(t *tx) (err error) {
		if n, err = t.knownNode(id); err != nil || n.Revoked != nil {
			return err
		}
		revoked := *n
		revoked.Revoked = &Revocation{At: t.now, By: by, Reason: reason}
		n = &revoked
		t.recordOf(n.User.Name, by, audit.NodeRevoke, id.String(), n.Name, reason)
		return t.setNode(n)
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// DeleteNode removes a node. Its name is free at once, its addresses are held back for ipam.Rest, its keys are never accepted
// again.
func (d *Directory) DeleteNode(ctx context.Context, id proto.NodeID, by string) error {
	return d.do(ctx, func(t *tx) error {
		n, err := t.knownNode(id)
		if err != nil {
			return err
		}
		t.recordOf(n.User.Name, by, audit.NodeDelete, id.String(), n.Name, "")
		return d.remove(t, n)
	})
}

func (d *Directory) remove(t *tx, n *Node) error {
	until := t.now.Add(ipam.Rest)
	rest, err := putRecord(freedPath(n.Addrs.V4), freedRecord{version: v1, Until: until})
	if err != nil {
		return err
	}
	t.writes = append(t.writes, rest, store.Delete(nodePath(n.ID)), store.Delete(traitsPath(n.ID)))
	t.rest(n.Addrs.V4, until)
	t.dropNode(n)
	t.nodes = append(t.nodes, n.ID)
	return nil
}

// SetReach stores how a node may be reached, in memory only.
func (d *Directory) SetReach(ctx context.Context, id proto.NodeID, reach proto.Reach) error {
	if err := d.Snapshot().Mesh().ValidReach(reach); err != nil {
		return fmt.Errorf("what node %s reports: %w: %w", id, ErrInvalid, err)
	}
	reach.Endpoints = slices.Clone(reach.Endpoints)
	return d.do(ctx, func(t *tx) error {
		n, err := t.trustedNode(id)
		if err != nil {
			return err
		}
		if old, _ := t.reaches.Get(id); old.Equal(&reach) {
			return nil
		}
		put(&t.reaches, id, reach)
		if _, seen := t.peers.Get(id); seen {
			t.present(n)
		}
		t.nodes = append(t.nodes, id)
		return nil
	})
}

// Expire removes what has expired: ephemeral nodes that were away too long, held-back addresses, tokens long past their expiry.
// Nodes whose certificates expired long ago lapse. It returns the nodes it removed, even if it fails halfway. The coordinator
// calls it about once a minute.
func (d *Directory) Expire(ctx context.Context) (gone []proto.NodeID, err error) {
	for more := true; more; {
		var some []proto.NodeID
		err := d.do(ctx, func(t *tx) (err error) {
			some, more, err = d.expireSome(t)
			return err
		})
		if err != nil {
			return gone, err
		}
		gone = append(gone, some...)
	}
	return gone, nil
}

// expireSome removes as much of what has expired as the transaction has room for. It reports whether there may be more.
func (d *Directory) expireSome(t *tx) (gone []proto.NodeID, more bool, err error) {
	if gone, err = d.expireNodes(t); err != nil {
		return nil, false, err
	}
	t.lapse(d.config.Ages.Grace(d.Snapshot()))
	t.expireFreed()
	t.expireKeys()
	t.expireCandidates()
	t.expireTokens() // without their last candidates
	err = t.expireFacts()
	return gone, t.full(), err
}

func (d *Directory) expireNodes(t *tx) (gone []proto.NodeID, err error) {
	for id := range values(t.ephemeral) {
		if t.full() {
			break
		}
		n, _ := t.state.nodes.Get(id)
		since, away := d.away(n)
		if !away || t.now.Sub(since) < AwayLimit {
			continue
		}
		t.recordOf(n.User.Name, "coordinator", audit.NodeExpire, id.String(), n.Name, "ephemeral, away since "+since.Format(time.RFC3339))
		if err := d.remove(t, n); err != nil {
			return nil, err
		}
		gone = append(gone, id)
	}
	return gone, nil
}

// away reports whether a node is away, and since when. Nothing is known about the time before this directory was opened; every
// node is assumed to have been connected then.
func (d *Directory) away(n *Node) (time.Time, bool) {
	live, ok := d.Live(n.ID)
	if live.Connected {
		return time.Time{}, false
	}
	since := d.opened
	if n.Created.After(since) {
		since = n.Created
	}
	if ok && live.LastSeen.After(since) {
		since = live.LastSeen
	}
	return since, true
}

func (t *tx) expireFreed() {
	for a := range over(t.rests, t.now) {
		if t.full() {
			return
		}
		t.writes = append(t.writes, store.Delete(freedPath(a)))
		t.wake(a)
	}
}

// expireTokens forgets tokens that expired long ago, except those that candidates wait with.
func (t *tx) expireTokens() {
	for token := range over(t.tokenEnds, t.now.Add(-keepToken)) {
		if t.full() {
			return
		}
		if t.awaited(token.ID) {
			continue
		}
		t.writes = append(t.writes, store.Delete(tokenPath(token.ID)))
		t.dropToken(token)
	}
}
