// Package netcheck looks at the network that a machine is in, and says what of it lets peers reach the machine directly and what
// does not. It takes sockets of its own, so that it works with and without a running agent.
//
//	relays ──► STUN to two of them: mapped addresses, kind of NAT    ─┐
//	       ──► STUN to all: round trips by UDP                       ├─► Report ─► Words, JSON
//	       ──► TCP to all: round trips where UDP is blocked          │
//	       ──► STUN of many sizes to the nearest: MTU                │
//	router ──► PCP, NAT-PMP, UPnP                                   ─┘
package netcheck
