// Package control is a node's end of the control stream: it finds a coordinator, authenticates it against the mesh's roots,
// and keeps one stream open until it is closed.
//
//	Client.run     dial, TLS, Upgrade, hello ─► read frames ─► Emit(event)        one goroutine, and one stream, at a time
//	                    ▲                           │
//	                    └── backoff ◄── stream ends ┘
//	stream.write   outbox ─► frames                                               one goroutine a stream
//
//	Ack, Report, Renew ─► outbox: the newest of each kind, so that it cannot grow
//
// Emit is a direct, ordered call: while the node is busy with one netmap nothing more is read, and the coordinator merges
// what it has for us. Enrolment reaches a coordinator in the same way, but trusts the root that the join code named; if the
// coordinator offers it, the stream is held for the client to attach on.
package control
