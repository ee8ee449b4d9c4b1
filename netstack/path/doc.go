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
package path
