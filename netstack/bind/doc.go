// Package bind is the WireGuard engine's way to the network: one UDP port for all peers, and sockets for each address
// family, so many as cores shall receive. It is a conn.Bind around another one that does the moving: the system's (System) or a
// simulated one.
//
//	    engine                               Endpoint: one address, or
//	 Send │   ▲ receive                      several candidates of which
//	┌─────▼───┴─────┐                        nobody knows which one works
//	│     Bind      │  several candidates: handshake initiations and
//	└─────┬───▲─────┘  keepalives go to all, the rest to the first
//	      ▼   │
//	   inner Bind       received: interned, one Endpoint per address
//
// A new peer, or one that was lost, gets an Endpoint with all of its candidates. As soon as a packet of the peer proves
// itself, the engine replaces that by the Endpoint that the packet came from: a single address.
//
// On Linux, System is our own, and moves runs: messages of one size that lie one after the other, which the kernel splits
// when they are sent (UDP_SEGMENT) and joins when they are received (UDP_GRO). Bind moves them as well, where its inner Bind
// does; so does nobody have to copy messages, or make an endpoint for each.
//
// Not all that comes is WireGuard's. Messages are told apart by how they begin (Serve says who gets the rest):
//
//	1 to 4, and three zeros      WireGuard                 ─► engine
//	0xD0                         about paths               ─► Handler
//	0 or 1, cookie of RFC 8489   STUN                      ─► Handler
//	0xE0 to 0xEF                 relayed: Carrier takes the header off, and what is left is told apart again
//
// Where a peer takes path messages, its endpoint in the engine is a Course: packets go where the path decisions say, which
// change while the engine sends, and the peer's own packets do not move it.
//
// A peer behind a relay has an Endpoint of its own, with an address that nothing is sent to (RelayEndpoint). Runs stay runs
// on the way through a relay.
//
// A way through a NAT may need a socket of its own (package path says when). Those are open beside the others, send and are
// received from as they do, and what a peer's packets leave by is part of its Endpoint.
//
// Candidates are bounded by path.Bounds, and so is what is received: a packet from an overlay address would be one that
// came around through the tunnel.
package bind
