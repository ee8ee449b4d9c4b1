// Package directory holds the coordinator's state: nodes, join tokens, the policy, released addresses, and every key that a
// node has ever held. A single goroutine, the writer, changes it. Everyone else reads immutable snapshots, which are free to
// obtain and never change.
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
// Operations that arrive while a transaction is being written to disk wait and share the next one. Each is decided against the
// state left by those before it; one that fails leaves no trace. When an operation returns without an error, its effect is on
// disk and visible in Snapshot.
//
// Opening a directory writes the head record first, and every later transaction requires the head to be as this writer left it.
// So once the same store is opened again, the earlier writer can no longer write (ErrFenced).
//
// N grows with every snapshot that can change a netmap. Numbers are reserved in blocks in the head record: a crash skips some,
// but none is ever used twice. A restored backup begins a new epoch, later than all epochs before it (see Restored).
//
// In the store:
//
//	mesh              id, domain, ranges; written once
//	keys              the roots and the intermediate last recorded in the audit log
//	head              epoch, reserved N, number of the last audit record
//	node/ID           a node with its last certificate
//	key/device/HEX    the node that first held a device key; never removed
//	key/node/HEX      likewise for a node key; a retired key is removed once no valid certificate can name it
//	token/ID          public half of a join token, and its use
//	candidate/HEX     a machine waiting for an administrator's approval, by device key
//	policy/NUMBER     every policy version; the last one is in force
//	freed/ADDRESS     until when an address is held back from reuse
//	traits/ID         facts of a node, and its advertised and approved routes
//	lock/ID           a suspension of trust
//	role/HEX          a user's roles in the mesh, by login name
//	audit/NUMBER      see package audit
//
// Time changes things too: every snapshot describes a moment, and a Change includes whatever the passing of time changed. Facts
// expire, and ages exceed what the policy allows (Ages). The writer has one timer, set to the earliest such moment, and marks
// exactly the affected nodes as changed. If the clock is set back by more than a little, every node is re-evaluated.
//
// What nodes report about themselves is on disk even though it does not affect their identity: a coordinator that restarts must
// not cut connections that depend on it.
//
// Liveness (Live) is kept in memory only and is not part of snapshots: no netmap depends on it.
package directory
