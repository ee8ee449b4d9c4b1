package bolt

import (
	"context"
	"fmt"
	"os"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/redoubt-mesh/redoubt/coordinator/durable"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// migrate brings an older schema up to this program's: it makes a copy first, then runs each migration in a transaction that
// also raises the schema number, so that a crash leaves one schema or the next.
func migrate(b *bbolt.DB, o Options, copyAside func(schema uint64) error) error {
	schema, err := readNumber(b, schemaKey)
	if err != nil {
		return err
	}
	switch {
	case schema == 0 || schema > o.schema():
		return fmt.Errorf("it has schema %d and this program knows up to %d; use the newer program that wrote it", schema, o.schema())
	case schema == o.schema():
		return nil
	}
	if err := copyAside(schema); err != nil {
		return fmt.Errorf("keep a copy from before schema %d: %w", schema+1, err)
	}
	for ; schema < o.schema(); schema++ {
		if err := edit(b, schema+1, o.Migrations[schema-1]); err != nil {
			return fmt.Errorf("change schema %d to %d: %w; nothing of that was kept", schema, schema+1, err)
		}
	}
	return nil
}

func create(b *bbolt.DB, schema uint64) error {
	return b.Update(func(t *bbolt.Tx) error {
		for _, name := range [][]byte{metaBucket, entryBucket} {
			if _, err := t.CreateBucket(name); err != nil {
				return err
			}
		}
		if err := setNumber(t, schemaKey, schema); err != nil {
			return err
		}
		return setNumber(t, revisionKey, 0)
	})
}

// edit runs one Edit as one revision.
func edit(b *bbolt.DB, schema uint64, change store.Edit) error {
	return b.Update(func(t *bbolt.Tx) error {
		revision, err := number(t, revisionKey)
		if err != nil {
			return err
		}
		if err := change(&tx{tx: t, revision: revision + 1}); err != nil {
			return err
		}
		if err := setNumber(t, schemaKey, schema); err != nil {
			return err
		}
		return setNumber(t, revisionKey, revision+1)
	})
}

// tx presents a bbolt transaction to Edits.
type tx struct {
	tx       *bbolt.Tx
	revision uint64
}

// Get implements store.Tx.
func (t *tx) Get(key string) ([]byte, bool) {
	v := t.tx.Bucket(entryBucket).Get([]byte(key))
	if len(v) < header {
		return nil, false
	}
	return slices.Clone(v[header:]), true
}

// List implements store.Tx.
func (t *tx) List(prefix string) ([]store.Entry, error) {
	return entries(context.Background(), t.tx, prefix)
}

// Put implements store.Tx.
func (t *tx) Put(key string, value []byte) error { return t.apply(store.Put(key, value)) }

// Delete implements store.Tx.
func (t *tx) Delete(key string) error { return t.apply(store.Delete(key)) }

func (t *tx) apply(op store.Op) error {
	if err := store.Check(nil, []store.Op{op}); err != nil {
		return err
	}
	_, err := apply(t.tx, t.revision, []store.Op{op})
	return err
}

// copyAside keeps a copy of the file beside it. A copy that a crash left incomplete never gets that name.
func (db *DB) copyAside(path string, schema uint64) error {
	to := fmt.Sprintf("%s.schema-%d", path, schema)
	return durable.Write(to, func(f *os.File) error {
		return db.bolt.View(func(t *bbolt.Tx) error {
			_, err := t.WriteTo(f)
			return err
		})
	})
}
