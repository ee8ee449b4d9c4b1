// Package relay brings sealed packets from one node to another where no direct way is known: as the server that forwards
// them, and as a node's end of all the relays that there are. What is forwarded is encrypted between the nodes; a relay can
// delay and drop it, and sees how much it is.
//
//	node A                      relay (Server)                      node B
//	Client ── UDP session ────► session ─┐             ┌─ session ── UDP session ──► Client
//	   │                                 ├─ pair, way ─┤
//	   └───── TLS stream ─────► stream ──┘             └─ stream ◄── TLS stream ─────── ┘
//	                                      may they meet? (Permit)
//
// The server forwards by UDP without looking into packets, and without copying them where it can: a run (see package bind)
// has its headers written over in place, and leaves by one system call. What goes to a stream waits in a queue of bounded
// bytes, fair over who sent it, of which the oldest goes where it is full. A session exists only once its node has proved
// its address and its certificate; until then nothing is kept of it. The UDP port also answers to STUN, whoever asks.
//
// The client has a link for each relay, whose decisions are pure (link.Step): Hello, Challenge, Bind, then pings that find
// out whether the session lives. A stream is opened where UDP has no answer within a moment, and ended when it has one. The
// nearest relay that answers is home: others reach this node through it, so it is kept warm. Packets for a relay without a
// session wait for that, and the oldest goes where too many do.
package relay
