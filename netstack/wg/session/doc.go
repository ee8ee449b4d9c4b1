// Package session implements WireGuard between two nodes, without I/O: when to do a handshake, which session to send over, when to
// send keepalives, and when to forget keys.
//
//	Want, Sent, Received, Initiation, Response, Tick...        Message, Keepalive, Ready, Install, Release...
//	                    │                                                  ▲
//	                    └──────────► Peer.Step(now, event) ────────────────┘
//
//	Peer ── pairs: the valid keys of both nodes, the preferred pair first ── noise.Pair
//	  ├──── sessions, newest first; all of them can receive; each ends 180 s after it began
//	  ├──── current: the session to send over
//	  └──── flight: our handshake that waits for its response
//
// With one key on each side, a Peer does what section 6 of the WireGuard paper describes. It differs where multiple keys
// require it, and in two more points: the handshake it waits for and those it answers are kept apart, so that two handshakes
// that cross both succeed (both ends then use the one begun by the node with the higher id); and sessions are kept for as long
// as they are valid, not only the last two, so that several key changes in a row lose no packet.
//
// Packets are sent over the session that was confirmed last. If it is not of the first pair it is used all the same, but the node
// then begins a handshake for the first pair: at once if its id is the higher one, otherwise a moment later. A peer that has
// not learned that a key of ours was replaced continues with the old one. Before that key ends, Leave begins a handshake with
// the peer for the first pair, since the peer sends over the session confirmed last.
//
// Sealing and opening may be done by any goroutine; Step by one at a time.
package session
