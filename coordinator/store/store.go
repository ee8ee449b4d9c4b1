package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// Limits on a transaction.
const (
	MaxKey   = 512
	MaxValue = 8 << 20
	MaxOps   = 8192
)

// Errors that callers distinguish.
var (
	// ErrNotFound means that there is no entry with the key.
	ErrNotFound = errors.New("not found in the store")
	// ErrConflict means that a comparison of a transaction failed; nothing was written.
	ErrConflict = errors.New("changed in the meantime")
	// ErrCompacted means that a revision is no longer in the history. List, and watch from the revision that List returns.
	ErrCompacted = errors.New("revision is too old to be watched from")
	// ErrFailed means that after a write error it is unknown what is on disk. The store accepts no more writes; open it
	// again.
	ErrFailed = errors.New("store has failed; start again")
	// ErrClosed means that the store was closed.
	ErrClosed = errors.New("store is closed")
)

// Entry is a key with its value and the revisions of its first and last write.
type Entry struct {
	Key      string
	Value    []byte
	Created  uint64
	Modified uint64
}

// Cmp requires that the entry was last modified by the given revision; 0 requires that there is no entry.
type Cmp struct {
	Key      string
	Modified uint64
}

// Op writes or deletes one key.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
}

// Put returns the Op that writes value to key.
func Put(key string, value []byte) Op { return Op{Key: key, Value: value} }

// Delete returns the Op that removes key; it is no error if there is none.
func Delete(key string) Op { return Op{Key: key, Delete: true} }

// Event is what a transaction did to one key. A deleted entry has no value.
type Event struct {
	Entry
	Deleted bool
}

// Batch is everything that one transaction did under a watched prefix.
type Batch struct {
	Revision uint64
	Events   []Event
}

// Store is a versioned key-value store. All methods may be called concurrently. Neither side modifies values after passing
// them to the other.
type Store interface {
	// Get returns the entry of a key, or ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)
	// List returns all entries whose key begins with prefix, sorted by key, and the revision that they reflect.
	List(ctx context.Context, prefix string) ([]Entry, uint64, error)
	// Last returns the entry whose key sorts last among those that begin with prefix, or ErrNotFound.
	Last(ctx context.Context, prefix string) (Entry, error)
	// Txn applies all ops if all comparisons hold; otherwise it applies none and returns ErrConflict. It returns the revision
	// of the transaction, after that is on disk. No key may be written twice in one transaction.
	Txn(ctx context.Context, compare []Cmp, ops []Op) (uint64, error)
	// Watch yields what happened under prefix from revision `from` on, in order and without gaps, until ctx ends or the loop
	// is left. The last element is an error: ErrCompacted, ErrClosed or ctx's. Nothing is buffered per watcher.
	Watch(ctx context.Context, prefix string, from uint64) iter.Seq2[Batch, error]
	// Backup writes a consistent copy of the whole store, which stays in use meanwhile.
	Backup(ctx context.Context, w io.Writer) error
	// Close ends watches and waits for transactions in flight. It may be called more than once.
	Close() error
}

// Check refuses a transaction that no engine accepts: invalid keys, values too large, a key written twice.
func Check(compare []Cmp, ops []Op) error {
	if len(ops) > MaxOps || len(compare) > MaxOps {
		return fmt.Errorf("transaction of %d comparisons and %d writes: at most %d each", len(compare), len(ops), MaxOps)
	}
	for _, c := range compare {
		if err := checkKey(c.Key); err != nil {
			return err
		}
	}
	seen := make(map[string]bool, len(ops))
	for _, op := range ops {
		if err := checkKey(op.Key); err != nil {
			return err
		}
		if len(op.Value) > MaxValue {
			return fmt.Errorf("value of key %q has %d bytes: at most %d", op.Key, len(op.Value), MaxValue)
		}
		if seen[op.Key] {
			return fmt.Errorf("key %q is written twice in one transaction", op.Key)
		}
		seen[op.Key] = true
	}
	return nil
}

func checkKey(key string) error {
	if key == "" || len(key) > MaxKey || strings.ContainsRune(key, 0) {
		return fmt.Errorf("key %.64q: want 1 to %d bytes and no NUL", key, MaxKey)
	}
	return nil
}
