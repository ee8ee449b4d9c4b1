// Package bind is the WireGuard engine's way to the network: one UDP port, and a socket per address family, for all
// peers. It is a conn.Bind around another one that does the moving, with its batches and its segmentation offload: the
// system's (conn.NewDefaultBind) or a simulated one.
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
// Candidates are bounded by path.Bounds, and so is what is received: a packet from an overlay address would be one that
// came around through the tunnel.
package bind
