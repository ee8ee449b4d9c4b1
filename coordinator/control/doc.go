// Package control is the coordinator's end of the control streams: it accepts connections, authenticates them, and moves
// messages between nodes and the packages that make decisions.
//
//	accept ──► lobby ──► TLS 1.3 ──► GET /v1/control, Upgrade ──► hello ──► enrol:  challenge, proof, result, then closed,
//	           16384     32 at once    net/http, 8 KiB, no body      │        or the machine attaches as the new node
//	           places    compute                                     │        (up to here in the lobby; 64 KiB frames)
//	           └── 10 s for both; if full, the oldest guest goes ────┘     └──► attach: one goroutine reads until the end
//	                                                                                a pool of writers sends what is due
//
// A connection without a node's certificate stays in the lobby, where every step has a deadline and places are limited. A
// handshake slot is held only while computing: a silent guest holds none.
//
// A connected node costs one goroutine and no buffers while it is silent: frame buffers are pooled, and updates are taken from
// the node's session when a writer gets to it, so nothing queues up for a node that does not read. The number of writers is
// fixed; a writer blocked on a node's socket is replaced meanwhile, so that no other node waits with it.
//
// Each node has at most one live stream; a newer one ends the previous one. Every 25 s, spread over 25 beats, each stream is
// checked: if nothing was sent for half of that time, the node gets a keepalive, and answers it. A side that hears nothing for
// 55 s closes.
package control
