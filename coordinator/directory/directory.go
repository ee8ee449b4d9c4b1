package directory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
)

// block is how many version numbers one write of the head reserves.
const block = 1 << 16

// Config holds a directory's dependencies and settings.
type Config struct {
	Clock func() time.Time
	Rand  io.Reader // cryptographically random
	Issue Issue
	// Signer signs the checkpoints of the audit log.
	Signer *audit.Signer
	// Grace is how long agents without contact to a coordinator may trust certificates past their expiry.
	Grace time.Duration
	// Ages tells how the passing of time affects the policy. If nil, only Grace matters; otherwise Ages determines the grace.
	Ages Ages
	// Demands returns what the policy requires of machines; nil means nothing.
	Demands Demands
}

// Directory owns the coordinator's state; see the package comment. All methods are safe for concurrent use.
type Directory struct {
	store  store.Store
	config Config
	opened time.Time

	current  atomic.Pointer[Snapshot]
	requests chan *request
	stop     chan struct{} // closed by Close
	done     chan struct{} // closed when the writer has ended
	closing  sync.Once
	err      error // why the writer ended; read after done

	live liveness
	subs subscriptions

	watches watches

	// Owned by the writer: the head as it is on disk, and its revision.
	head     headRecord
	headRev  uint64
	auditEnd atomic.Uint64 // head.Audit, for readers
}

// Open loads the directory from a store that Ensure has prepared, and fences off any earlier writer.
func Open(ctx context.Context, s store.Store, c Config) (*Directory, error) {
	if c.Clock == nil || c.Rand == nil || c.Issue == nil || c.Signer == nil {
		return nil, errors.New("open the directory: clock, randomness, issuer and signer are required")
	}
	if c.Ages == nil {
		c.Ages = noAges(c.Grace)
	}
	d := &Directory{
		store: s, config: c, opened: wall(c.Clock()),
		requests: make(chan *request), stop: make(chan struct{}), done: make(chan struct{}),
	}
	snap, err := d.load(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the directory: %w", err)
	}
	d.live.init()
	d.current.Store(snap)
	go d.write()
	return d, nil
}

// load reads the store and reserves the first block of version numbers.
func (d *Directory) load(ctx context.Context) (*Snapshot, error) {
	e, err := d.store.Get(ctx, headKey)
	if err != nil {
		return nil, fmt.Errorf("read the head: %w", err)
	}
	if d.head, err = parse[headRecord](e); err != nil {
		return nil, err
	}
	first := d.head.Reserved + 1
	d.head.Reserved += block
	records, err := d.openBook(ctx)
	if err != nil {
		return nil, err
	}
	ops, err := d.head.enter(records, page{now: d.opened}, d.config.Signer)
	if err != nil {
		return nil, err
	}
	op, err := putRecord(headKey, d.head)
	if err != nil {
		return nil, err
	}
	if d.headRev, err = d.store.Txn(ctx, []store.Cmp{{Key: headKey, Modified: e.Modified}}, append(ops, op)); err != nil {
		return nil, fmt.Errorf("reserve version numbers: %w", err)
	}
	d.auditEnd.Store(d.head.Audit)
	snap := &Snapshot{version: proto.Version{Epoch: d.head.Epoch, N: first}, now: d.opened}
	if snap.mesh, err = loadMesh(ctx, d.store); err != nil {
		return nil, err
	}
	if snap.state, err = loadState(ctx, d.store, d.opened); err != nil {
		return nil, err
	}
	snap.state.lapseRevoked(d.opened, d.config.Ages.Grace(snap))
	d.reckon(snap, nil, true)
	return snap, nil
}

// Snapshot returns the current state.
func (d *Directory) Snapshot() *Snapshot { return d.current.Load() }

// Done is closed when the directory stops accepting changes: after Close, or when the store failed or was opened by another
// coordinator. Err tells which.
func (d *Directory) Done() <-chan struct{} { return d.done }

// Err returns nil until Done is closed, and ErrClosed after Close.
func (d *Directory) Err() error {
	select {
	case <-d.done:
		return d.err
	default:
		return nil
	}
}

// Close stops the writer after the transaction in flight, and ends all subscriptions. The store stays open. It may be called
// more than once.
func (d *Directory) Close() error {
	d.closing.Do(func() { close(d.stop) })
	<-d.done
	return nil
}
