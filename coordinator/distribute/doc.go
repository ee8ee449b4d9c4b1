// Package distribute decides what each node knows about the mesh and tracks what it has been sent.
//
// A node's netmap is a pure function, Netmap, of the directory's snapshot, the compiled policy and the node. The Hub
// recomputes it only for the nodes that a change can affect:
//
//	directory ──change──► Hub, coalesces changes within 20 ms
//	                       │  which nodes can it affect? (compile.Affected, a superset)
//	                       ▼
//	                   record, one per node:  wanted ── the netmap the node should have
//	                       │                  sent ──── netmaps it may have, newest last
//	                       │                  acked ─── what its data path enforces
//	                       ▼ wake
//	                    Session.Next ──► snapshot, or delta from the last sent to wanted, or nothing
//
// There is no queue: everything that happened while a node was slow to read is folded into its next delta. The hub keeps the
// record of a disconnected node for a while, so that the node gets only the changes when it returns; the number of such
// records is bounded.
//
// The renewal of a peer's certificate is not urgent: such changes are folded for up to a minute.
package distribute
