// Package path decides where packets to a peer go: which addresses are candidates, in which order, and when to try them
// all again. It is pure: the agent feeds it events and carries out its effects on the engine.
//
//	endpoints from the netmap ─┐                        ┌─► Point: here are the peer's candidates
//	counters of the engine ────┼─► Step(now, event) ────┤
//	addresses of this host ────┘                        └─► Point, Now: and send it something at once
//
// The engine finds the way by itself as long as packets arrive: whatever authenticated packet comes from a peer moves
// the peer's endpoint to its source. So there are four occasions to do something:
//
//	a peer is new                    its candidates are set; the first packet sprays the handshake over all of them
//	its endpoints changed            if the endpoint in use is not among them, they are all tried at once
//	packets go out, none come back   after silence that WireGuard itself never keeps: all again, then ever more seldom
//	this host's addresses changed    every peer that was heard lately is told where we are now
//
// That is State, for peers that take no path messages. To those that do, a Finder finds the way by probes, and keeps it:
//
//	at rest ──packet──► search: the relay carries, all candidates are pinged at 0, 50, 150, 350, 750 ms, then every 5 s
//	                      │ a Pong to our own Ping
//	                      ▼
//	                    direct ──no answer to live traffic──► in doubt: both ways ──five pings lost──► search
//	                      ▲                                      │
//	                      └──────────────a Pong──────────────────┘
//
// A Ping or a packet that comes from another address makes that a candidate, and is answered by a Ping of our own.
package path
