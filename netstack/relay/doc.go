// Package relay carries sealed packets between nodes that have no direct path: as the server that forwards them, and as a
// node's client of all relays. What is forwarded is encrypted between the nodes; a relay can delay and drop it, and sees how
// much there is.
//
//	node A                      relay (Server)                      node B
//	Client ── UDP session ────► session ─┐             ┌─ session ── UDP session ──► Client
//	   │                                 ├─ pair, way ─┤
//	   └───── TLS stream ─────► stream ──┘             └─ stream ◄── TLS stream ─────── ┘
//	                                      may they meet? (Permit)
//
// The server forwards UDP without looking into packets, and without copying them if possible: the headers of a run (see package
// bind) are overwritten in place, and it leaves with one system call. Packets for a stream wait in a queue bounded in bytes and
// fair by sender, which drops the oldest when full. A session exists only once its node has proved its address and its
// certificate; until then no state is kept for it. The UDP port also answers STUN requests from anyone.
//
// The client has a link for each relay, whose decisions are pure (link.Step): Hello, Challenge, Bind, then pings that check
// that the session is alive. A stream is opened if UDP gets no answer within a moment, and closed once it does. The nearest
// relay that answers is home: others reach this node through it, so its session is kept warm. Packets for a relay without a
// session wait for one, and the oldest are dropped if there are too many.
package relay
