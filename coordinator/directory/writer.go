package directory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// maxBatch is the maximum number of operations per transaction. Each writes few keys, so that a batch is far below the store's
// limit.
const maxBatch = 256

// maxUpkeep is how many writes a transaction may have for something that has expired to be removed in it too. The rest of the
// store's limit is for the batch's operations.
const maxUpkeep = store.MaxOps / 2

// request is an operation submitted to the writer.
type request struct {
	run  func(*tx) error
	from string // where the request came from
	err  error
	done chan struct{}
}

// tx is the state that operations change, with the writes it requires. Being a value, it can be copied before an operation and
// restored if that fails.
type tx struct {
	state
	mesh   Mesh
	now    time.Time // of the clock
	moment time.Time // the moment that the snapshot will describe
	writes []store.Op
	from   string // where the running operation's request came from
	audits []audit.Record
	nodes  []proto.NodeID // that changed
	policy bool
	judged []key.DevicePublic // candidates judged or forgotten
	relays bool               // the relays in service changed
}

// do has the writer run an operation, and waits until it is on disk and visible. If ctx ends first, the operation may still
// happen, even while the caller goes on: whatever it assigns may be read only if do returns nil.
func (d *Directory) do(ctx context.Context, run func(*tx) error) error {
	r := &request{run: run, from: origin(ctx), done: make(chan struct{})}
	select {
	case d.requests <- r:
	case <-d.done:
		return d.err
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("gave up waiting, the change may still be made: %w", ctx.Err())
	}
}

// write runs the writer.
func (d *Directory) write() {
	defer func() {
		d.subs.close()
		close(d.done)
	}()
	age := time.NewTimer(d.current.Load().pause(wall(d.config.Clock())))
	defer age.Stop()
	for {
		var batch []*request
		select {
		case <-d.stop:
			d.err = ErrClosed
			return
		case <-age.C:
		case r := <-d.requests:
			batch = d.collect(r)
		}
		written, err := d.commit(batch)
		for _, r := range batch {
			close(r.done)
		}
		if err != nil {
			d.err = err
			return
		}
		pause := d.current.Load().pause(wall(d.config.Clock()))
		if !written {
			pause = max(pause, retryAging)
		}
		age.Reset(pause)
	}
}

// collect gathers the operations already waiting.
func (d *Directory) collect(first *request) []*request {
	batch := []*request{first}
	for len(batch) < maxBatch {
		select {
		case r := <-d.requests:
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
}

// commit decides the operations of a batch in order, and what time has changed meanwhile, writes the result in one transaction
// and publishes the snapshot. It reports whether the write succeeded; a non-nil error ends the writer.
func (d *Directory) commit(batch []*request) (written bool, err error) {
	before := d.current.Load()
	t := &tx{state: before.state, mesh: before.mesh, now: wall(d.config.Clock())}
	var back bool
	t.moment, back = momentAfter(before.now, t.now)
	for _, r := range batch {
		saved := *t
		t.from = r.from
		if r.err = r.run(t); r.err != nil {
			*t = saved
		}
	}
	t.from = ""
	t.age(back)
	after := &Snapshot{version: before.version, mesh: before.mesh, now: t.moment, state: t.state}
	if t.visible() {
		after.version.N++
		d.reckon(after, t.nodes, t.policy)
	}
	if err := d.persist(t, after.version.N); err != nil {
		for _, r := range batch {
			if r.err == nil {
				r.err = err
			}
		}
		if errors.Is(err, ErrFenced) || errors.Is(err, store.ErrFailed) || errors.Is(err, store.ErrClosed) {
			return false, err
		}
		return false, nil
	}
	d.publish(after, t)
	return true, nil
}

// full reports whether nothing more that has expired should be removed in this transaction.
func (t *tx) full() bool { return len(t.writes)+len(t.audits) >= maxUpkeep }

// publish makes a snapshot current and notifies the subscribers.
func (d *Directory) publish(after *Snapshot, t *tx) {
	defer d.watches.tell(t)
	if !t.visible() {
		d.current.Store(after)
		return
	}
	d.subs.publish(func() { d.current.Store(after) }, after, t.nodes, t.policy, t.relays)
	d.forget(after, t.nodes)
}

// visible reports whether any netmap may have changed.
func (t *tx) visible() bool { return len(t.nodes) > 0 || t.policy || t.relays }

// persist writes a batch along with the head, which every transaction updates. It does nothing if there is nothing to store.
func (d *Directory) persist(t *tx, n uint64) error {
	if len(t.writes) == 0 && len(t.audits) == 0 && n <= d.head.Reserved {
		return nil
	}
	head := d.head
	if n+block/2 > head.Reserved {
		head.Reserved = n + block
	}
	ops := last(t.writes)
	book, err := head.enter(t.audits, page{t.now, proto.Version{Epoch: head.Epoch, N: n}, numberOf(t.state.policy)}, d.config.Signer)
	if err != nil {
		return err
	}
	ops = append(ops, book...)
	op, err := putRecord(headKey, head)
	if err != nil {
		return err
	}
	// Not any caller's context: a caller that gives up must not affect the others in the batch.
	rev, err := d.store.Txn(context.Background(), []store.Cmp{{Key: headKey, Modified: d.headRev}}, append(ops, op))
	switch {
	case errors.Is(err, store.ErrConflict):
		return fmt.Errorf("write to the store: %w; only one may run, stop this one", ErrFenced)
	case err != nil:
		return fmt.Errorf("write to the store: %w", err)
	}
	d.head, d.headRev = head, rev
	d.auditEnd.Store(head.Audit)
	return nil
}

// last keeps only the last write of each key, since a transaction accepts only one.
func last(writes []store.Op) []store.Op {
	at := make(map[string]int, len(writes))
	var ops []store.Op
	for _, w := range writes {
		if i, ok := at[w.Key]; ok {
			ops[i] = w
			continue
		}
		at[w.Key] = len(ops)
		ops = append(ops, w)
	}
	return ops
}

// record adds a record to the audit log.
func (t *tx) record(by, action, subject, name, reason string) {
	t.recordOf("", by, action, subject, name, reason)
}

// recordOf is record for an action that concerns a user, by login name.
func (t *tx) recordOf(user, by, action, subject, name, reason string) {
	t.audits = append(t.audits, audit.Record{
		By: by, From: t.from, Action: action, Subject: subject, Name: name, User: user, Reason: reason,
	})
}

// setNode writes a node and makes it visible.
func (t *tx) setNode(n *Node) error {
	op, err := nodeOp(n)
	if err != nil {
		return err
	}
	t.writes = append(t.writes, op)
	t.state.setNode(n)
	t.nodes = append(t.nodes, n.ID)
	return nil
}

// hold records that a node holds a key. Only node keys that are retired are ever forgotten.
func (t *tx) hold(path, held string, id proto.NodeID) error {
	op, err := putRecord(path, heldRecord{version: v1, Node: id, Since: t.now})
	if err != nil {
		return err
	}
	t.writes = append(t.writes, op)
	put(&t.held, held, id)
	return nil
}

// setToken writes a token.
func (t *tx) setToken(token *Token) error {
	op, err := tokenOp(token)
	if err != nil {
		return err
	}
	t.writes = append(t.writes, op)
	t.state.setToken(token)
	return nil
}
