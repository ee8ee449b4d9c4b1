// Package stun finds out how others see this host, by asking servers (RFC 8489), and what kind of NAT is in between (RFC
// 4787, by the tests of RFC 5780). It is pure: whoever owns a socket gives it what comes in and sends what it says.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|0 0|      type (Binding)       |    length of what follows     |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                   magic cookie, 0x2112A442                    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                   transaction id (96 bits)                    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| attributes: type (16) | length (16) | value, padded to 32 bits |
//
// Message is the codec, Server answers, Prober asks:
//
//	Begin: servers ────┐                        ┌─► Send
//	Received, Tick ────┼─► Step(now, event) ────┼─► Wake: give it a Tick then
//	                   ┘                        └─► Found: what is known now
//
// An answer counts only if it carries the 96 random bits of a request that waits for it, and comes from where that was
// sent to. Nothing in it is trusted further: a server, or who can read on the way to it, can lie about the address, and
// peers that try it find out.
package stun
