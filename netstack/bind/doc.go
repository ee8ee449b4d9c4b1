// Package bind connects the WireGuard engine to the network: one UDP port for all peers, with one socket per address family and
// receiving core. It is a conn.Bind around another one that moves the datagrams: the system's (System) or a simulated one.
//
//	    engine                               Endpoint: one address, or
//	 Send │   ▲ receive                      several candidates, when it
//	┌─────▼───┴─────┐                        is unknown which one works
//	│     Bind      │  several candidates: handshake initiations and
//	└─────┬───▲─────┘  keepalives go to all, the rest to the first
//	      ▼   │
//	   inner Bind       received: interned, one Endpoint per address
//
// A new peer, or one that was lost, gets an Endpoint with all of its candidates. As soon as a packet from the peer proves
// authentic, the engine replaces it with the Endpoint that the packet came from: a single address.
//
// On Linux, System is our own implementation, and moves runs: back-to-back messages of one size, which the kernel splits on
// sending (UDP_SEGMENT) and joins on receiving (UDP_GRO). Bind moves them too if its inner Bind does, so that messages need not
// be copied and need no endpoint each.
//
// Not everything received is WireGuard's. Messages are classified by how they begin (Serve sets who handles the others):
//
//	1 to 4, and three zeros      WireGuard                 ─► engine
//	0xD0                         path message              ─► Handler
//	0 or 1, cookie of RFC 8489   STUN                      ─► Handler
//	0xE0 to 0xEF                 relayed: Carrier strips the header, and the rest is classified again
//
// If a peer understands path messages, its endpoint in the engine is a Course: packets go where its Route says, which may
// change while the engine sends, and the peer's own packets do not move it.
//
// A peer behind a relay has an Endpoint of its own, with an address that nothing is sent to (RelayEndpoint). Runs stay runs on
// the way through a relay.
//
// A path through a NAT may need its own socket (package path decides when). Such extra sockets are open beside the others and
// send and receive as they do. The socket that reaches a peer is part of its Endpoint.
//
// Candidates are bounded by path.Bounds, and so are received packets: one from an overlay address would have come back through
// the tunnel.
package bind
