// Package session is WireGuard between two nodes, without I/O: when to shake hands, which session to send by, when to say
// something, and when to forget keys.
//
//	Want, Sent, Received, Initiation, Response, Tick...        Message, Keepalive, Ready, Install, Release...
//	                    │                                                  ▲
//	                    └──────────► Peer.Step(now, event) ────────────────┘
//
//	Peer ── pairs: the keys of both nodes that are good now, the pair to use first ── noise.Pair
//	  ├──── sessions, newest first; all of them may be received from; each ends 180 s after it began
//	  ├──── current: the one to send by
//	  └──── flight: the handshake that we began and that waits for its answer
//
// With one key on each side a Peer is what the WireGuard paper describes in section 6. It differs where several keys make
// it differ, and in two points more: what it waits for and what it answers are apart, so that two handshakes that cross
// on their way both succeed (the one that the node with the higher id began is then used by both ends); and sessions
// are kept for as long as they are valid, not only the last two, so that changes of keys in a row lose no packet.
//
// Which session is sent by: the one that was confirmed last. One that is not of the first pair is used all the same, but
// the node then begins a handshake for the first pair: at once if its id is the higher one, else a moment later.
// A peer that has not heard that a key of ours was replaced goes on by the old one; before that ends, Leave calls it by the
// first pair, and what it is called by last it speaks by.
//
// Sealing and opening are for any goroutine; Step is for one at a time.
package session
