// Package filter decides about every packet of a node, by who is behind it: identity in, verdict out, no I/O.
//
//	Ruleset ──Compile──► Program ──Install──► Filter ◄── Out: packets from this host     ──► Verdict
//	(netmap)            (immutable)             │    ◄── In:  packets from authenticated peers
//	                                            ├── flow table: 16 shards, each under its lock
//	                                            ├── Sweep ──► resets for flows that died
//	                                            └── Drain ──► records: who, what, which rule, which version
//
// Rules say who may open a connection; what belongs to a connection passes because of it. So a packet is judged by its
// flow, and a flow by the rule that let it open, in its direction, by its identities:
//
//	                   no flow, opens one              both sides spoke        FIN both ways, RST
//	packet ─► judge by ────────────────► opening ─────────────────────► open ────────────────────► closing ─► gone
//	          the rules                     │ a program that does not permit it                      │
//	             │                          └─────────────────────────► dead ◄───────────────────────┘
//	             └─► drop; out: refused               (nothing passes, until Sweep has reset both ends)
//
// Every flow remembers by which installed program it was permitted. Install swaps one pointer, and from then on each flow
// is judged again before its next packet passes. A flow that is found dead stays dead, whatever is installed later. The
// zero state of everything is no: without a program nothing passes.
//
// A clean stop can take the flows with it: AppendFlows, and RestoreFlows under the next program.
//
// A flow's identity is part of it: it lives only while the address of its other side belongs to the same node in every
// program. A peer may use its own addresses only, and packets of peers that are not in the program are no one's.
//
// Nothing here grows with what peers send: flows are bounded in all and per peer, records live in fixed rings that drop
// and count, pieces of packets are followed for 30 s and in bounded number, refusals are so many a second. The path of
// a packet neither allocates nor reads a clock; time is what Sweep and Install saw last.
package filter
