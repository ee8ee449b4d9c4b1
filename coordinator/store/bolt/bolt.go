package bolt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/redoubt-mesh/redoubt/coordinator/durable"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

const fileName = "redoubt.db"

// room is how large the file may grow before bbolt remaps it, for which writers wait for all readers: a client that stalls
// while it reads a backup must not delay a revocation. It costs address space, not memory.
const room = 1 << 30

var (
	metaBucket  = []byte("meta")
	entryBucket = []byte("entries")
	schemaKey   = []byte("schema")
	revisionKey = []byte("revision")
)

// Options describe what a program expects in the store.
type Options struct {
	// Migrations start at schema 1: the n-th turns schema n into n+1. They are append-only.
	Migrations []store.Edit
}

func (o Options) schema() uint64 { return 1 + uint64(len(o.Migrations)) }

// DB is a store in its own directory.
type DB struct {
	lock *Lock
	bolt *bbolt.DB

	mu       sync.Mutex // held during each write, so that history grows in the order of revisions
	revision uint64
	failed   error
	history  *store.History

	closing sync.Once
	err     error
}

var _ store.Store = (*DB)(nil)

// Open opens the store in dir, creating both if they do not exist. If another process has it open, the error is a *HeldError.
func Open(dir string, o Options) (*DB, error) {
	lock, err := Acquire(dir)
	if err != nil {
		return nil, err
	}
	db, err := open(dir, o)
	if err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	db.lock = lock
	return db, nil
}

func open(dir string, o Options) (*DB, error) {
	path := filepath.Join(dir, fileName)
	if err := ensureFile(path, o); err != nil {
		return nil, fmt.Errorf("make the store %s: %w", path, err)
	}
	b, err := openFile(path)
	if err != nil {
		return nil, err
	}
	db := &DB{bolt: b}
	err = migrate(b, o, func(schema uint64) error { return db.copyAside(path, schema) })
	if err == nil {
		db.revision, err = readNumber(b, revisionKey)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the store %s: %w", path, err), b.Close())
	}
	db.history = store.NewHistory(db.revision)
	return db, nil
}

// ensureFile creates an empty store if there is none. The file gets its name only when it is complete.
func ensureFile(path string, o Options) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	b, err := openFile(tmp)
	if err != nil {
		return err
	}
	if err := errors.Join(create(b, o.schema()), b.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return durable.Rename(tmp, path)
}

// openFile waits only a second for bbolt's own lock: the directory is already locked, so only a tool that inspects the file
// can hold it.
func openFile(path string) (*bbolt.DB, error) {
	o := &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType, NoStatistics: true, InitialMmapSize: room}
	if runtime.GOOS == "windows" {
		o.InitialMmapSize = 0 // there, the file would be this large
	}
	var b *bbolt.DB
	err := guarded(func() (err error) {
		if b, err = bbolt.Open(path, 0o600, o); err != nil {
			return err
		}
		return sound(b)
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open the store %s: another program has the file open", path)
	}
	if err == nil {
		return b, nil
	}
	if b != nil {
		err = errors.Join(err, b.Close())
	}
	return nil, fmt.Errorf("open the store %s: %w; restore a backup into an empty directory if it is damaged", path, err)
}

func readNumber(b *bbolt.DB, key []byte) (n uint64, err error) {
	err = b.View(func(t *bbolt.Tx) error {
		n, err = number(t, key)
		return err
	})
	return n, err
}

func number(t *bbolt.Tx, key []byte) (uint64, error) {
	meta := t.Bucket(metaBucket)
	if meta == nil || t.Bucket(entryBucket) == nil {
		return 0, errors.New("not a store of a coordinator")
	}
	v := meta.Get(key)
	if len(v) != 8 {
		return 0, fmt.Errorf("its %s is not a number", key)
	}
	return binary.BigEndian.Uint64(v), nil
}

func setNumber(t *bbolt.Tx, key []byte, n uint64) error {
	return t.Bucket(metaBucket).Put(key, binary.BigEndian.AppendUint64(nil, n))
}

// Get implements store.Store.
func (db *DB) Get(ctx context.Context, key string) (e store.Entry, err error) {
	if err := ctx.Err(); err != nil {
		return e, err
	}
	err = db.view(func(t *bbolt.Tx) error {
		v := t.Bucket(entryBucket).Get([]byte(key))
		if v == nil {
			return fmt.Errorf("%q: %w", key, store.ErrNotFound)
		}
		e, err = decode(key, v)
		return err
	})
	return e, err
}

// List implements store.Store.
func (db *DB) List(ctx context.Context, prefix string) (list []store.Entry, revision uint64, err error) {
	err = db.view(func(t *bbolt.Tx) error {
		if revision, err = number(t, revisionKey); err != nil {
			return err
		}
		list, err = entries(ctx, t, prefix)
		return err
	})
	return list, revision, err
}

func entries(ctx context.Context, t *bbolt.Tx, prefix string) (list []store.Entry, err error) {
	c := t.Bucket(entryBucket).Cursor()
	for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, err := decode(string(k), v)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

// Last implements store.Store.
func (db *DB) Last(ctx context.Context, prefix string) (e store.Entry, err error) {
	if err := ctx.Err(); err != nil {
		return e, err
	}
	err = db.view(func(t *bbolt.Tx) error {
		k, v := before(t.Bucket(entryBucket).Cursor(), after([]byte(prefix)))
		if k == nil || !bytes.HasPrefix(k, []byte(prefix)) {
			return fmt.Errorf("%q: %w", prefix, store.ErrNotFound)
		}
		e, err = decode(string(k), v)
		return err
	})
	return e, err
}

// after returns the first key that sorts after all keys with a prefix, or nil if there is none.
func after(prefix []byte) []byte {
	end := bytes.TrimRight(prefix, "\xff")
	if len(end) == 0 {
		return nil
	}
	end = bytes.Clone(end)
	end[len(end)-1]++
	return end
}

// before returns the last entry that sorts before end; nil means the last of all.
func before(c *bbolt.Cursor, end []byte) (k, v []byte) {
	if end == nil {
		return c.Last()
	}
	if k, _ := c.Seek(end); k == nil {
		return c.Last()
	}
	return c.Prev()
}

// header is the size of the revisions in front of a value.
const header = 16

func decode(key string, v []byte) (store.Entry, error) {
	if len(v) < header {
		return store.Entry{}, fmt.Errorf("entry %q has %d bytes, less than its revisions take", key, len(v))
	}
	return store.Entry{
		Key: key, Created: binary.BigEndian.Uint64(v), Modified: binary.BigEndian.Uint64(v[8:]),
		Value: slices.Clone(v[header:]),
	}, nil
}

func encode(e store.Entry) []byte {
	v := make([]byte, 0, header+len(e.Value))
	v = binary.BigEndian.AppendUint64(v, e.Created)
	v = binary.BigEndian.AppendUint64(v, e.Modified)
	return append(v, e.Value...)
}

// Txn implements store.Store.
func (db *DB) Txn(ctx context.Context, compare []store.Cmp, ops []store.Op) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := store.Check(compare, ops); err != nil {
		return 0, err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.failed != nil {
		return 0, db.failed
	}
	if len(ops) == 0 {
		return db.revision, db.view(func(t *bbolt.Tx) error { return holds(t, compare) })
	}
	var batch store.Batch
	applied := false
	err := db.bolt.Update(func(t *bbolt.Tx) (err error) {
		if err := holds(t, compare); err != nil {
			return err
		}
		batch, err = apply(t, db.revision+1, ops)
		applied = err == nil
		return err
	})
	if err != nil {
		return 0, db.failure(err, applied)
	}
	db.revision = batch.Revision
	db.history.Add(batch)
	return db.revision, nil
}

func holds(t *bbolt.Tx, compare []store.Cmp) error {
	for _, c := range compare {
		var modified uint64
		if v := t.Bucket(entryBucket).Get([]byte(c.Key)); v != nil {
			e, err := decode(c.Key, v)
			if err != nil {
				return err
			}
			modified = e.Modified
		}
		if modified != c.Modified {
			return fmt.Errorf("%q: %w", c.Key, store.ErrConflict)
		}
	}
	return nil
}

// apply performs the writes of one revision.
func apply(t *bbolt.Tx, revision uint64, ops []store.Op) (store.Batch, error) {
	batch := store.Batch{Revision: revision}
	b := t.Bucket(entryBucket)
	for _, op := range ops {
		k := []byte(op.Key)
		e := store.Entry{Key: op.Key, Created: revision, Modified: revision}
		old := b.Get(k)
		if old != nil {
			was, err := decode(op.Key, old)
			if err != nil {
				return batch, err
			}
			e.Created = was.Created
		}
		var err error
		switch {
		case !op.Delete:
			e.Value = slices.Clone(op.Value)
			err = b.Put(k, encode(e))
		case old != nil:
			err = b.Delete(k)
		default:
			continue
		}
		if err != nil {
			return batch, fmt.Errorf("write %q: %w", op.Key, err)
		}
		batch.Events = append(batch.Events, store.Event{Entry: e, Deleted: op.Delete})
	}
	return batch, setNumber(t, revisionKey, revision)
}

// failure classifies an error of a write. If the file still shows the previous revision, the transaction did not happen (the
// disk may be full) and the next one may succeed. Otherwise the meta page that names the valid revision was written but
// perhaps not synced, and what a reader sees may not be what a power cut would leave.
func (db *DB) failure(err error, applied bool) error {
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return store.ErrClosed
	}
	if !applied {
		return err
	}
	if r, rerr := readNumber(db.bolt, revisionKey); rerr == nil && r == db.revision {
		return fmt.Errorf("nothing was written: %w", err)
	}
	db.failed = fmt.Errorf("%w: %w", store.ErrFailed, err)
	return db.failed
}

func (db *DB) view(read func(*bbolt.Tx) error) error {
	err := db.bolt.View(read)
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return store.ErrClosed
	}
	return err
}

// Watch implements store.Store. History begins when the store is opened.
func (db *DB) Watch(ctx context.Context, prefix string, from uint64) iter.Seq2[store.Batch, error] {
	return db.history.Watch(ctx, prefix, from)
}

// Backup implements store.Store; Restore reads what it writes.
func (db *DB) Backup(ctx context.Context, w io.Writer) error {
	sum := sha256.New()
	err := db.view(func(t *bbolt.Tx) error {
		_, err := t.WriteTo(io.MultiWriter(&whileWriter{ctx, w}, sum))
		return err
	})
	if err == nil {
		_, err = w.Write(sum.Sum([]byte(mark)))
	}
	if ctx.Err() != nil {
		err = ctx.Err() // bbolt keeps only the text of an error
	}
	if err != nil {
		return fmt.Errorf("write a backup: %w", err)
	}
	return nil
}

// whileWriter writes until its context ends.
type whileWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w *whileWriter) Write(b []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(b)
}

// Close implements store.Store, and releases the directory.
func (db *DB) Close() error {
	db.closing.Do(func() {
		db.history.Close()
		db.err = errors.Join(db.bolt.Close(), db.lock.Release())
	})
	return db.err
}
