// Package store is the coordinator's durable memory: a small versioned key-value interface, a bounded history that
// watchers read from, and Memory, the fake that tests use. The engine that is used in earnest is package store/bolt; the
// contract that every engine keeps is package store/storetest.
//
//	           Txn(compare, ops)                     revision 7: put a, delete b
//	writer ───────────────────────► Store ─────────► revision 8: put c          ──► Watch(from 7)
//	           revision 8           (on disk)        ...                             one Batch a revision
//
// Revisions count transactions: the whole store has one, and every entry knows the revision that made it and the one
// that changed it last. A transaction compares the latter and then writes, all or nothing; it returns once it is on disk.
// The history is bounded: a watcher that asks for a revision that is gone gets ErrCompacted and lists again.
package store
