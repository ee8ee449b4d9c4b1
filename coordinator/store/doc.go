// Package store is the coordinator's durable storage: a small versioned key-value interface, a bounded history that watchers
// read from, and Memory, the fake for tests. The production engine is package store/bolt; the contract of every engine is
// package store/storetest.
//
//	           Txn(compare, ops)                     revision 7: put a, delete b
//	writer ───────────────────────► Store ─────────► revision 8: put c          ──► Watch(from 7)
//	           revision 8           (on disk)        ...                             one Batch per revision
//
// Revisions count transactions: the whole store has one, and every entry has the revisions that created it and that last
// changed it. A transaction compares the latter and then writes, all or nothing; it returns once it is on disk. The history
// is bounded: a watcher that asks for a revision no longer in it gets ErrCompacted and must list again.
package store
