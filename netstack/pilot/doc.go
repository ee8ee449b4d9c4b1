// Package pilot steers packets to peers: it runs the decisions of package path, one goroutine for all peers, and carries out
// what they ask for on the courses that the engine sends by.
//
//	path messages ──► Bind ──► open, by the pair's key ─┐
//	first packet, other source ◄── Course ◄── engine    ├─► path.Finder ─┬─► seal ──► Bind, or a relay
//	counters of awake courses, every 50 ms ─────────────┘                ├─► Course.SetRoute
//	                                                                     └─► sockets for a punch, by a goroutine of their own
//
// A peer at rest costs nothing. What cannot be opened gets no answer. Whatever waits is bounded, and the newest is dropped:
// all of it is said again.
package pilot
