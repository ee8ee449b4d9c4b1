// Package relaymsg is what a relay and a node say to each other, by UDP and in streams. All numbers are big endian.
//
// # Datagrams
//
// Each begins with a header of 8 bytes:
//
//	 0      1                 4                          8
//	┌──────┬─────────────────┬──────────────────────────┐
//	│ kind │ number of a peer│ session                  │
//	└──────┴─────────────────┴──────────────────────────┘
//
// The node draws the session's number. Peers are numbered by whoever sends the datagram, for each direction alone. What a
// number stands for is said in the datagrams that use it (DataFor) until the other side has learned it, so that the first
// packet goes at once and later ones carry 8 bytes more than without a relay. It is said again every few seconds: packets have
// no tags, so that whoever is on the way may say that a number stands for somebody else.
//
//	Data       payload
//	DataFor    peer (8) | payload                    the number stands for this peer from now on
//	Learned    peer (8) | tag                        answers DataFor: Data will do, if that is who is meant
//	Unknown    tag                                   answers Data: say again what the number stands for
//	Unreached  peer (8) | reason | tag               from the relay: who is not reached, and why
//	Ping, Pong token (8) | tag
//	Drain      seconds (4) | tag                     from the relay: it stops then, use another
//	Bye        tag                                   from the node: it leaves
//
// A session is begun by the node, in two round trips of which the relay keeps no state of the first:
//
//	node  ── Hello     zeros, so that no answer is longer ───────────────────────────► relay
//	      ◄─ Challenge cookie (16), made of the node's address and session ───────────
//	      ── Bind      cookie | ephemeral key (32) | certificate | signature ────────►
//	      ◄─ Bound     seconds that it holds (4) | address that the relay sees (18) | tag
//
// The signature is the device key's over Transcript, and the session's key is made of that and of the Diffie-Hellman of
// ephemeral and relay's key: whoever replays a Bind learns nothing, and only the relay can answer. A Hello is also how
// the round-trip time to a relay is measured by who has no session with it.
//
// A session whose datagrams come from another address than the bound one gets a Challenge there, and moves by
//
//	Rebind     cookie | counter (8) | tag
//
// Refused (reason | seconds (4)) has no tag: who says it may not know the session. Nobody gives up a session for it; it is a
// reason to bind another one.
//
// Tags are 16 bytes of HMAC-SHA256 under the session's key over which side speaks and all that stands before.
//
// # Streams
//
// After the Upgrade both sides send frames, each with a head of 16 bytes:
//
//	┌──────┬───┬──────────┬────────────┬───────────────────────┐
//	│ kind │ 0 │ size (2) │ length (4) │ peer (8)              │ length bytes
//	└──────┴───┴──────────┴────────────┴───────────────────────┘
//
//	Data       packets of size bytes, of which the last may be shorter, to or from the peer
//	Ping, Pong token (8)
//	Unreached  reason
//	Drain      seconds (4)
//	Bound      seconds (4) | address that the relay sees (18); the first frame of a relay
//
// What a stream's TLS has authenticated needs no tags.
package relaymsg
