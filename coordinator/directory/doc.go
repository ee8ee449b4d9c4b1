// Package directory is what the coordinator knows: nodes, join tokens, policy, addresses at rest, and every key that a
// node ever held. One goroutine, the writer, changes it; everybody else reads immutable snapshots, which cost nothing to
// take and never change.
//
//	CreateToken Enroll Renew ReleaseNode    ┌────────┐  one transaction   ┌───────┐
//	RevokeNode DeleteNode SetPolicy   ─────►│ writer │ ─────────────────► │ store │  on disk
//	Report SetFact SetRoles                 │        │                    └───────┘
//	SetReach (memory only)                  └───┬────┘
//	                                            │ then
//	                                            ▼
//	          Snapshot() ◄──── immutable snapshot, Version{Epoch, N}  ────► Subscription: what changed since you looked
//	                                            │ then
//	                                            ▼
//	                                  the operations return
//
// Operations that arrive while a transaction is on its way to the disk wait and share the next one. Each is decided
// against the state that the ones before it left; one that fails leaves nothing. An operation that returned without an
// error is on disk and in Snapshot.
//
// Whoever opens the directory writes its head record first, and every later transaction demands that the head is as
// this writer left it. So if the same store is opened again, the earlier writer cannot write any more (ErrFenced).
//
// N grows with every snapshot that can change a netmap. It is reserved in blocks in the head record: after a crash
// numbers are left out, none is given twice. A restored backup begins a new epoch, which is later than all that were
// before it (see Restored).
//
// In the store:
//
//	mesh              id, domain, ranges; written once
//	keys              which roots and which intermediate the book has told of
//	head              epoch, reserved N, number of the last audit record
//	node/ID           a node with its last certificate
//	key/device/HEX    who held a device key first; never removed
//	key/node/HEX      the same of a node key; one that was given up is removed once no certificate is good that names it
//	token/ID          public half of a join token, and what became of it
//	candidate/HEX     a machine that waits for an administrator's approval, by device key
//	policy/NUMBER     every policy that was ever in force; the last one is
//	freed/ADDRESS     until when the address rests
//	traits/ID         facts of a node, the routes that it offers and those that were approved
//	lock/ID           who is not trusted for now
//	role/HEX          what a user, by login name, is in the mesh
//	audit/NUMBER      see package audit
//
// Time is a writer too: every snapshot is about a moment, and what that moment changes is part of the change that leads to it.
// Facts expire, and ages pass what the policy allows (Ages); the writer has one timer, for the first of those moments, and
// names exactly the nodes that it is about. Where the clock is set back by more than a little, everybody is looked at again.
//
// What nodes say of themselves is on disk, though it changes no decision about who they are: a coordinator that starts again
// must not part those whose connections hang on it.
//
// Liveness (Live) is memory only and no part of snapshots: no netmap depends on it.
package directory
