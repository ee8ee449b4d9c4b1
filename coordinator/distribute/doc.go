// Package distribute decides what each node knows of the mesh, and keeps track of what it has been told.
//
// What a node knows is a pure function, Netmap, of the directory's snapshot, the compiled policy and the node. The Hub makes
// it again for the nodes that a change can touch, and for no others:
//
//	directory ──change──► Hub, folds what comes within 20 ms
//	                       │  which nodes can it touch? (compile.Affected, a superset)
//	                       ▼
//	                   record, one a node:  wanted ── the netmap that it should have
//	                       │                sent ──── those that it may have now, newest last
//	                       │                acked ─── what its data path enforces
//	                       ▼ wake
//	                    Session.Next ──► snapshot or delta from what was sent last to wanted, or nothing
//
// There is no queue: a node that reads slowly finds all that happened meanwhile folded into the next delta. A node that went
// away keeps its record for a while, so that it gets only what changed when it is back; there are a fixed number of those.
//
// A renewed certificate of a peer is nothing that hurries: such changes are folded for up to a minute.
package distribute
