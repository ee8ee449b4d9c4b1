// Package relaymsg defines the messages between relays and nodes, over UDP and in streams. All numbers are big-endian.
//
// # Datagrams
//
// Each datagram begins with a header of 8 bytes:
//
//	 0      1                 4                          8
//	┌──────┬─────────────────┬──────────────────────────┐
//	│ kind │ number of a peer│ session                  │
//	└──────┴─────────────────┴──────────────────────────┘
//
// The node draws the session number at random. Peers are numbered by the sender of the datagram, separately for each direction.
// The datagrams that use a number carry its meaning (DataFor) until the other side has learned it, so that the first packet is
// sent at once and later ones carry 8 bytes more than without a relay. The meaning is repeated every few seconds: packets have
// no tags, so an attacker on the path may claim that a number stands for another peer.
//
//	Data       payload
//	DataFor    peer (8) | payload                    the number stands for this peer from here on
//	Learned    peer (8) | tag                        answers DataFor: Data is enough, if this peer is meant
//	Unknown    tag                                   answers Data: repeat what the number stands for
//	Unreached  peer (8) | reason | tag               from the relay: the peer is not reached, and why
//	Ping, Pong token (8) | tag
//	Drain      seconds (4) | tag                     from the relay: it stops after that time, use another
//	Bye        tag                                   from the node: it leaves
//
// The node begins a session, in two round trips, and the relay keeps no state for the first:
//
//	node  ── Hello     zeros, so that no answer is longer ───────────────────────────► relay
//	      ◄─ Challenge cookie (16), made of the node's address and session ───────────
//	      ── Bind      cookie | relay key (32) | ephemeral key (32) | certificate | signature ─►
//	      ◄─ Bound     seconds that it lasts (4) | address that the relay sees (18) | tag
//
// The signature is made over Transcript with the device key. The session key is derived from the transcript and the
// Diffie-Hellman secret of the ephemeral key and the relay's key: replaying a Bind yields nothing, and only the relay can
// answer. A Hello also serves to measure the round trip to a relay without a session.
//
// If datagrams of a session come from an address other than the bound one, that address gets a Challenge, and the session moves
// with
//
//	Rebind     cookie | counter (8) | tag
//
// Refused (reason | seconds (4)) has no tag: its sender may not know the session. It does not end a session; it is only a
// reason to bind another one.
//
// Tags are 16 bytes of HMAC-SHA256 under the session key, over which side sends and everything before the tag.
//
// # Streams
//
// After the Upgrade both sides send frames, each with a header of 16 bytes:
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
// Streams need no tags, since TLS authenticates them.
package relaymsg
