// Package control is a node's end of the control stream: it finds a coordinator, knows it by the mesh's roots, and keeps
// one stream open for as long as it is told to.
//
//	Client.run     dial, TLS, Upgrade, hello ─► read frames ─► Emit(event)        one goroutine, and one stream, at a time
//	                    ▲                           │
//	                    └── backoff ◄── stream ends ┘
//	stream.write   outbox ─► frames                                               one goroutine a stream
//
//	Ack, Report, Renew ─► outbox: the newest of each kind, so that it cannot grow
//
// Emit is a direct, ordered call: while the node is busy with one netmap nothing more is read, and the coordinator folds
// what it has for us. Enrolment uses the same way to a coordinator, but trusts the root that the join code named; where the
// coordinator offers that, its stream is held for the client to attach on.
package control
