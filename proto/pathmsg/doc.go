// Package pathmsg defines the messages between two nodes about the paths between them: probes, and where else to look. Messages
// share the UDP port with WireGuard, and are distinguished from it by their first byte.
//
//	 0        4       5          8                16               24
//	┌────────┬───────┬──────────┬─────────────────┬────────────────┬──────────────┬──────────┐
//	│ magic  │ type  │ form 0 0 │ sender's key id │ counter        │ sealed body  │ tag (16) │
//	└────────┴───────┴──────────┴─────────────────┴────────────────┴──────────────┴──────────┘
//	 d0 72 70 31                  8 bytes           8, big endian
//
//	Ping (1)   txid 12 | node 8 | padding, zeros          at least as long as a Pong
//	Pong (2)   txid 12 | observed source 18
//	Offer (3)  NAT class 1 | count 1 | relays 1 | count times address 18 | relays times (relay 8, RTT 2, milliseconds)
//	Punch (4)  address 18, of the receiver; answered with the same
//
// An address is 16 bytes, IPv4 mapped, and a port. Bodies are sealed with ChaCha20-Poly1305 under keys derived with X25519 from
// the two nodes' path keys, one for each direction. The 24 bytes before the body are authenticated too. A path key is generated
// when a node starts and forgotten when it stops; it is signed by the node's device key together with the node and the boot
// number, and delivered with the netmap.
//
// The form is 0, or 1 if the keys are derived from the numbers of the two nodes as well (see Ends). That is for path keys that
// several nodes announced: only messages of this form show who sealed them, and for whom.
//
// An outsider can do nothing: a message that was not sealed by a peer gets no answer. A message is accepted once: counters grow,
// and a window of 256 accepts messages that were overtaken. The windows live as long as the path key, see Boxes. A Pong is never
// longer than its Ping, so that it cannot be used for amplification. A peer cannot claim to be where it is not, since a Pong
// repeats 96 random bits of the Ping that was sent there.
package pathmsg
