package directory

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
)

type originKey struct{}

// From returns a context that records in the audit log where its operations come from, such as an address.
func From(ctx context.Context, where string) context.Context {
	return context.WithValue(ctx, originKey{}, where)
}

func origin(ctx context.Context) string {
	where, _ := ctx.Value(originKey{}).(string)
	return where
}

// page holds the fields common to records that are entered together.
type page struct {
	now     time.Time
	version proto.Version
	policy  uint64
}

// enter returns the writes that append records to those that h knows of, with the checkpoints that go with them. Without a
// signer there are no checkpoints: the next Open makes them.
func (h *headRecord) enter(list []audit.Record, p page, signer *audit.Signer) ([]store.Op, error) {
	if len(list) == 0 {
		return nil, nil
	}
	var ops []store.Op
	kept := map[uint64]string{}
	for _, r := range list {
		r.Number, r.At, r.Policy = h.Audit+1, p.now, p.policy
		if !p.version.IsZero() {
			r.Version = p.version.String()
		}
		op, hash, err := audit.Append(h.AuditHash, r)
		if err != nil {
			return nil, err
		}
		ops = append(ops, op)
		if h.Audit, h.AuditHash = r.Number, hash; r.Number%audit.SealEvery == 0 {
			kept[r.Number] = hash
		}
	}
	if signer == nil {
		return ops, nil
	}
	seals, err := signer.Seals(h.Audit, h.AuditHash, kept, p.now)
	return append(ops, seals...), err
}

// openBook returns the records to add when the directory is opened: if the signing key has changed, or if the log does not end
// as its last checkpoint says.
func (d *Directory) openBook(ctx context.Context) (list []audit.Record, err error) {
	key := audit.Fingerprint(d.config.Signer.Public())
	sealed := d.head.AuditKey != ""
	if d.head.AuditKey != key {
		reason := "first key"
		switch {
		case sealed:
			reason = "the key before was " + d.head.AuditKey
		case d.head.Audit > 1:
			reason = fmt.Sprintf("first key; records 1 to %d had no checkpoint", d.head.Audit)
		}
		list = append(list, audit.Record{By: "coordinator", Action: audit.KeyChange, Subject: key, Reason: reason})
		d.head.AuditKey = key
	}
	if !sealed {
		return list, nil
	}
	if err := d.checkEnd(ctx); err != nil {
		if !errors.Is(err, audit.ErrBroken) && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		list = append(list, audit.Record{By: "coordinator", Action: audit.BookUnsealed, Reason: err.Error()})
	}
	return list, nil
}

// checkEnd checks that the log continues from its last checkpoint to what the head says. A restore adds a record that could not
// be signed with the coordinator's key.
func (d *Directory) checkEnd(ctx context.Context) error {
	last, err := audit.Last(ctx, d.store)
	if err != nil {
		return err
	}
	chain := audit.From(last.Number, last.Hash)
	for line, err := range audit.Forward(ctx, d.store, last.Number, d.head.Audit, false) {
		if err != nil {
			return err
		}
		if _, err := chain.Add(line); err != nil {
			return err
		}
	}
	if err := chain.Ends(d.head.Audit); err != nil {
		return err
	}
	if chain.Hash() != d.head.AuditHash {
		return fmt.Errorf("%w: record %d is not the one that was written last", audit.ErrBroken, chain.Number())
	}
	return nil
}

// AuditQuery selects audit records.
type AuditQuery struct {
	Since time.Time // zero: from the first record
	// Node selects records about or by a node: its id, or its name.
	Node string
	// User selects records about a user, their nodes and tokens, or by them, by login name.
	User string
}

// Takes reports whether q selects a record.
func (q AuditQuery) Takes(r audit.Record) bool {
	if r.At.Before(q.Since) {
		return false
	}
	if q.Node != "" && r.Subject != q.Node && r.Name != q.Node && r.By != "node "+q.Node {
		return false
	}
	return q.User == "" || r.User == q.User || r.Subject == q.User || r.By == q.User
}

// Audit returns up to limit audit records with numbers below before, newest first; before 0 starts with the newest.
func (d *Directory) Audit(ctx context.Context, before uint64, limit int, q AuditQuery) ([]audit.Record, error) {
	last := d.auditEnd.Load()
	if before == 0 {
		before = last + 1
	}
	return audit.Read(ctx, d.store, before, last, limit, func(r audit.Record) (take, more bool) {
		return q.Takes(r), !r.At.Before(q.Since.Add(-backstep))
	})
}

// AuditLines yields the lines of the log after one record up to another, oldest first. With follow, it continues with new ones
// until ctx ends.
func (d *Directory) AuditLines(ctx context.Context, after, last uint64, follow bool) iter.Seq2[[]byte, error] {
	return audit.Forward(ctx, d.store, after, last, follow)
}

// AuditSeals returns the retained checkpoints of the log, that of the newest record last, and the newest record's number.
func (d *Directory) AuditSeals(ctx context.Context) (lines [][]byte, last uint64, err error) {
	if lines, err = audit.SealLines(ctx, d.store); err != nil {
		return nil, 0, err
	}
	var newest store.Entry
	var number uint64
	// Done in the writer, so that the checkpoint and the number match.
	err = d.do(ctx, func(*tx) (err error) {
		number = d.head.Audit
		newest, err = d.store.Get(ctx, audit.LastSeal)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return append(lines, newest.Value), number, nil
}

// Checkpoint returns the checkpoint of the newest record.
func (d *Directory) Checkpoint(ctx context.Context) (audit.Checkpoint, error) {
	return audit.Last(ctx, d.store)
}

// AuditKey returns the public half of the key that signs checkpoints.
func (d *Directory) AuditKey() ed25519.PublicKey { return d.config.Signer.Public() }

// Limits on how fast refusals fill the audit log. All of them appear in the program's log.
const (
	// refusalPause is how long a repeated refusal of a node or token is not recorded again.
	refusalPause = 10 * time.Minute
	// fewRefusals is how many of one token, or of one node's requests, are recorded at once: several machines may share a token.
	fewRefusals = 5
	// burstOfRefusals is how many of these are recorded at once in all; beyond that it is one per second.
	burstOfRefusals = 10
	// maxRefusals bounds how many subjects are remembered.
	maxRefusals = 10_000
)

// room reports whether another refusal may be recorded under a key, and counts it: few at once, then one per pause.
func (t *tx) room(key string, few int, pause time.Duration) bool {
	free, _ := t.refusals.Get(key)
	if free.Before(t.now) || free.Sub(t.now) > time.Duration(few)*pause { // the latter if the clock was set back
		free = t.now
	}
	if free.Sub(t.now) > time.Duration(few-1)*pause {
		return false
	}
	if t.refusals.Len() >= maxRefusals {
		t.refusals = newIndex[string, time.Time]()
	}
	put(&t.refusals, key, free.Add(pause))
	return true
}

// sharedRoom is room for a refusal that counts for its subject and for all subjects together. Nobody can use up what others need
// with one token.
func (t *tx) sharedRoom(subject string) bool {
	before := t.refusals
	if t.room("refused "+subject, fewRefusals, refusalPause) && t.room("all", burstOfRefusals, time.Second) {
		return true
	}
	t.refusals = before
	return false
}

// RenewRefused records that a node was refused its next certificate, or refused to attach.
func (d *Directory) RenewRefused(ctx context.Context, id proto.NodeID, why error) {
	n, ok := d.Snapshot().Lookup(id)
	if !ok {
		return
	}
	d.refused(ctx, audit.Record{
		By: "node " + id.String(), Action: audit.RenewRefuse, Subject: id.String(), Name: n.Name, User: n.User.Name, Reason: why.Error(),
	})
}

// refused records a refusal, but not repeatedly. Failing to record it is ignored: the refusal stands either way.
func (d *Directory) refused(ctx context.Context, r audit.Record) {
	_ = d.do(ctx, func(t *tx) error {
		if t.room(r.Subject, 1, refusalPause) {
			r.From = t.from
			t.audits = append(t.audits, r)
		}
		return nil
	})
}
