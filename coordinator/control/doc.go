// Package control is the coordinator's end of the control streams: it accepts connections, finds out who is there, and moves
// messages between nodes and the packages that decide.
//
//	accept ──► lobby ──► TLS 1.3 ──► GET /v1/control, Upgrade ──► hello ──► enrol:  challenge, proof, result, and gone,
//	            16384     32 at once    net/http, 8 KiB, no body      │        or it attaches as the node that it is now
//	            places    compute                                     │        (in the lobby so far; 64 KiB frames)
//	            └── 10 s for both; the oldest guest gives way ──┘     └──► attach: one goroutine reads, for as long as it lasts
//	                                                                                 a pool of writers sends what is due
//
// A connection without a node's certificate stays in the lobby, where everything has a deadline and places are few. A slot for
// computing a handshake is held only while computing: who says nothing holds none.
//
// A connected node costs one goroutine and no buffers while it is silent: frame buffers are pooled, and what has to be sent
// is taken from the node's session when a writer gets to it, so nothing queues up behind a node that does not read. Writers
// are a fixed number; one that waits for its node's socket is replaced, so that nobody else waits with it.
//
// There is one live stream a node; a newer one ends the one before. Every 25 s, in one of 25 beats, each stream is looked at: where
// nothing was said for half of that time the node is told something, and answers. Who hears nothing for 55 s closes.
package control
