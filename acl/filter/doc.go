// Package filter decides whether each packet of a node may pass, by the identity behind it. It does no I/O.
//
//	Ruleset ──Compile──► Program ──Install──► Filter ◄── Out: packets from this host     ──► Verdict
//	(netmap)            (immutable)             │    ◄── In:  packets from authenticated peers
//	                                            ├── flow table: 16 shards, each with its own lock
//	                                            ├── Sweep ──► resets for flows that died
//	                                            └── Drain ──► records: who, what, which rule, which version
//
// Rules decide who may open a connection; later packets of a connection pass because it was allowed. So a packet is judged
// by its flow, and a flow by the rule that let it open, in its direction and between its two identities:
//
//	                   no flow, opens one             both sides sent          FIN both ways, RST
//	packet ─► judge by ────────────────► opening ─────────────────────► open ────────────────────► closing ─► gone
//	          the rules                     │ a program that does not permit it                      │
//	             │                          └─────────────────────────► dead ◄───────────────────────┘
//	             └─► drop; out: refused               (nothing passes until Sweep has reset both ends)
//
// Every flow remembers which installed program permitted it. Install swaps one pointer; after that, each flow is judged
// again before its next packet passes. A flow that was found dead stays dead, whatever is installed later. The default is
// to deny: without a program nothing passes.
//
// A clean stop can carry the flows over to the next process: AppendFlows saves them, RestoreFlows loads them under the
// next program.
//
// A flow is tied to the identity of its peer: it lives only while the address of its remote side belongs to the same node
// in every program. A peer may send from its own addresses only, and packets from nodes that are not in the program are
// dropped.
//
// Nothing here grows with what peers send: flows are bounded in total and per peer, records live in fixed rings that drop
// and count, fragmented packets are tracked for 30 s and in bounded number, refusals are rate-limited. Judging a packet
// neither allocates nor reads a clock: it uses the time that Sweep or Install last recorded.
package filter
