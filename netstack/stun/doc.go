// Package stun finds out how others see this host, by asking servers (RFC 8489), and what kind of NAT is in between (RFC 4787,
// by the tests of RFC 5780). It does no I/O: the owner of a socket passes in what it receives and sends what the package
// returns.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|0 0|      type (Binding)       |    length of what follows     |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                   magic cookie, 0x2112A442                    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                   transaction ID (96 bits)                    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| attributes: type (16) | length (16) | value, padded to 32 bits |
//
// Message is the codec, Server answers requests, Prober sends them:
//
//	Begin: servers ────┐                        ┌─► Send
//	Received, Tick ────┼─► Step(now, event) ────┼─► Wake: request a Tick at that time
//	                   ┘                        └─► Found: what is known so far
//
// An answer counts only if it carries the 96 random bits of an outstanding request and comes from where that request was sent.
// Its contents are not trusted any further: a server, or anyone who can read the traffic to it, can lie about the address, and
// peers that try the address find out.
package stun
