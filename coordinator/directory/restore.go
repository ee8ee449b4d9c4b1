package directory

import (
	"fmt"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Restoration describes what a restored backup contains, for the operator.
type Restoration struct {
	Mesh   proto.Mesh
	Epoch  uint64
	Nodes  int
	Voided int       // tokens invalidated
	Latest time.Time // time of the last record in the backup; everything after it is lost, revocations included
}

// Restored prepares a backup for use, in the transaction that turns it into a store again; a coordinator must not open it
// before. Whatever was decided after the backup is lost, so:
//
//   - A new epoch begins, later than any before it even if the same backup is restored twice: agents accept its state as
//     newer than what they heard last.
//   - Every token that is still valid is voided: it may have been used since.
//   - All candidates are dropped, approved ones included: they may have been denied since.
//   - Certificates continue with sequence numbers higher than any issued since.
//   - Nodes that joined since are unknown, and are refused until an administrator lets them join again.
//   - Nodes that were revoked or deleted since are trusted again: the administrator must revoke them once more.
func Restored(t store.Tx, now time.Time, by string) (Restoration, error) {
	now = wall(now)
	r, err := restoredMesh(t)
	if err != nil {
		return r, err
	}
	head, err := restoredHead(t, now)
	if err != nil {
		return r, err
	}
	r.Epoch = head.Epoch
	if err := r.nodes(t, now); err != nil {
		return r, err
	}
	if err := r.tokens(t, now, by); err != nil {
		return r, err
	}
	if err := dropCandidates(t); err != nil {
		return r, err
	}
	if err := r.latest(t, head.Audit); err != nil {
		return r, err
	}
	ops, err := head.enter([]audit.Record{{
		By: by, From: "command line", Action: audit.Restore, Subject: string(r.Mesh.ID),
		Reason: fmt.Sprintf("epoch %d; %s, %s voided", r.Epoch, number(r.Nodes, "node", "nodes"), number(r.Voided, "token", "tokens")),
	}}, page{now: now}, nil)
	if err != nil {
		return r, err
	}
	op, err := putRecord(headKey, head)
	if err != nil {
		return r, err
	}
	for _, op := range append(ops, op) {
		if err := t.Put(op.Key, op.Value); err != nil {
			return r, err
		}
	}
	return r, nil
}

func restoredMesh(t store.Tx) (Restoration, error) {
	v, ok := t.Get(meshKey)
	if !ok {
		return Restoration{}, fmt.Errorf("the backup has no mesh: %w", store.ErrNotFound)
	}
	m, err := parse[meshRecord](store.Entry{Key: meshKey, Value: v})
	return Restoration{Mesh: proto.Mesh{ID: m.ID, Domain: m.Domain, V4: m.V4, V6: m.V6}}, err
}

// restoredHead begins the new epoch, which is the time of the restore, so that two restores of one backup differ.
func restoredHead(t store.Tx, now time.Time) (headRecord, error) {
	v, ok := t.Get(headKey)
	if !ok {
		return headRecord{}, fmt.Errorf("the backup has no head: %w", store.ErrNotFound)
	}
	head, err := parse[headRecord](store.Entry{Key: headKey, Value: v})
	head.Epoch = max(head.Epoch+1, uint64(max(now.Unix(), 0)))
	return head, err
}

// nodes raises the sequence numbers to the time of the restore in milliseconds, which no number of certificates issued can
// reach.
func (r *Restoration) nodes(t store.Tx, now time.Time) error {
	list, err := t.List(nodePrefix)
	if err != nil {
		return err
	}
	for _, e := range list {
		n, err := parseNode(e)
		if err != nil {
			return err
		}
		n.Certificate.Sequence = max(n.Certificate.Sequence, uint64(max(now.UnixMilli(), 0)))
		op, err := nodeOp(n)
		if err != nil {
			return err
		}
		if err := t.Put(op.Key, op.Value); err != nil {
			return err
		}
		r.Nodes++
	}
	return nil
}

func (r *Restoration) tokens(t store.Tx, now time.Time, by string) error {
	list, err := t.List(tokenPrefix)
	if err != nil {
		return err
	}
	for _, e := range list {
		token, err := parseToken(e)
		if err != nil {
			return err
		}
		if token.State(now) != TokenValid {
			continue
		}
		token.Revoked = &Revocation{At: now, By: by, Reason: "voided by a restore"}
		op, err := tokenOp(token)
		if err != nil {
			return err
		}
		if err := t.Put(op.Key, op.Value); err != nil {
			return err
		}
		r.Voided++
	}
	return nil
}

func dropCandidates(t store.Tx) error {
	list, err := t.List(candidatePrefix)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := t.Delete(e.Key); err != nil {
			return err
		}
	}
	return nil
}

func (r *Restoration) latest(t store.Tx, number uint64) error {
	list, err := t.List(audit.Key(number))
	if err != nil {
		return err
	}
	for _, e := range list {
		a, err := audit.Parse(e)
		if err != nil {
			return err
		}
		r.Latest = a.At
	}
	return nil
}
