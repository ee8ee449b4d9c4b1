// Package pilot steers packets to peers: one goroutine for all peers runs the decisions of package path, and applies them to
// the courses that the engine sends on.
//
//	path messages ──► Bind ──► open with the pair's key ┐
//	first packet, other source ◄── Course ◄── engine    ├─► path.Finder ─┬─► seal ──► Bind, or a relay
//	counters of awake courses, every 50 ms ─────────────┘                ├─► Course.SetRoute
//	                                                                     └─► sockets for a punch, in a goroutine of their own
//
// An idle peer costs nothing. A message that cannot be opened gets no answer. All queues are bounded, and drop the newest
// entry: whatever is lost is sent again.
package pilot
