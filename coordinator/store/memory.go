package store

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Memory is a Store that lasts as long as the process: the fake for tests of what is built on a store.
type Memory struct {
	// Before, if set, runs before each transaction is applied; if it fails, so does the transaction, and nothing is written.
	// Tests use it to count, delay and fail transactions.
	Before func(ops []Op) error

	mu       sync.Mutex
	entries  map[string]Entry
	revision uint64
	history  *History
	closed   bool
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{entries: make(map[string]Entry), history: NewHistory(0)}
}

// LoadMemory returns a store with what Memory.Backup wrote.
func LoadMemory(r io.Reader) (*Memory, error) {
	var all backup
	if err := json.NewDecoder(r).Decode(&all); err != nil {
		return nil, fmt.Errorf("read a backup of a store in memory: %w", err)
	}
	m := &Memory{entries: make(map[string]Entry), revision: all.Revision, history: NewHistory(all.Revision)}
	for _, e := range all.Entries {
		m.entries[e.Key] = e
	}
	return m, nil
}

type backup struct {
	Revision uint64
	Entries  []Entry
}

// Get implements Store.
func (m *Memory) Get(ctx context.Context, key string) (Entry, error) {
	if err := ctx.Err(); err != nil {
		return Entry{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Entry{}, ErrClosed
	}
	e, ok := m.entries[key]
	if !ok {
		return Entry{}, fmt.Errorf("%q: %w", key, ErrNotFound)
	}
	return e, nil
}

// List implements Store.
func (m *Memory) List(ctx context.Context, prefix string) ([]Entry, uint64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, 0, ErrClosed
	}
	var list []Entry
	for _, k := range slices.Sorted(maps.Keys(m.entries)) {
		if strings.HasPrefix(k, prefix) {
			list = append(list, m.entries[k])
		}
	}
	return list, m.revision, nil
}

// Last implements Store.
func (m *Memory) Last(ctx context.Context, prefix string) (Entry, error) {
	list, _, err := m.List(ctx, prefix)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("%q: %w", prefix, ErrNotFound)
	}
	if err != nil {
		return Entry{}, err
	}
	return list[len(list)-1], nil
}

// Txn implements Store.
func (m *Memory) Txn(ctx context.Context, compare []Cmp, ops []Op) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := Check(compare, ops); err != nil {
		return 0, err
	}
	if m.Before != nil {
		if err := m.Before(ops); err != nil {
			return 0, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, ErrClosed
	}
	for _, c := range compare {
		if m.entries[c.Key].Modified != c.Modified {
			return 0, fmt.Errorf("%q: %w", c.Key, ErrConflict)
		}
	}
	if len(ops) == 0 {
		return m.revision, nil
	}
	m.revision++
	batch := Batch{Revision: m.revision}
	for _, op := range ops {
		old, exists := m.entries[op.Key]
		e := Entry{Key: op.Key, Created: m.revision, Modified: m.revision}
		if exists {
			e.Created = old.Created
		}
		switch {
		case !op.Delete:
			e.Value = slices.Clone(op.Value)
			m.entries[op.Key] = e
		case exists:
			delete(m.entries, op.Key)
		default:
			continue
		}
		batch.Events = append(batch.Events, Event{Entry: e, Deleted: op.Delete})
	}
	m.history.Add(batch)
	return m.revision, nil
}

// Watch implements Store.
func (m *Memory) Watch(ctx context.Context, prefix string, from uint64) iter.Seq2[Batch, error] {
	return m.history.Watch(ctx, prefix, from)
}

// Backup implements Store; LoadMemory reads what it writes.
func (m *Memory) Backup(ctx context.Context, w io.Writer) error {
	list, revision, err := m.List(ctx, "")
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(backup{Revision: revision, Entries: list})
}

// Close implements Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.history.Close()
	return nil
}
