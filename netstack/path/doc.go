// Package path decides where packets to a peer are sent: which addresses are candidates, in which order, and when to try them
// all again. It does no I/O: the agent feeds it events and applies its effects to the engine.
//
//	endpoints from the netmap ─┐                        ┌─► Point: the peer's candidates
//	counters of the engine ────┼─► Step(now, event) ────┤
//	addresses of this host ────┘                        └─► Point, Now: and send the peer something at once
//
// The engine finds the path by itself as long as packets arrive: every authenticated packet from a peer moves the peer's
// endpoint to the packet's source. So there are four occasions to act:
//
//	a peer is new                    its candidates are set; the first packet sprays the handshake over all of them
//	its endpoints changed            if the endpoint in use is not among them, all are tried at once
//	packets go out, none come back   once that lasts longer than WireGuard is ever silent: all again, at growing intervals
//	this host's addresses changed    every peer heard recently is sent something, which shows it where we are
//
// State does this for peers without path messages. For the others, a Finder finds a path by probing, and maintains it:
//
//	idle ──packet──► search: the relay carries traffic, all candidates are pinged at 0, 50, 150, 350, 750 ms, then every 5 s
//	                   │ a Pong to our own Ping
//	                   ▼
//	                 direct ──live traffic unanswered──► in doubt: both paths in use ──five pings lost──► search
//	                   ▲                                    │
//	                   └───────────────a Pong───────────────┘
//
// A Ping or packet from another address makes that address a candidate, and is answered with a Ping of our own.
package path
