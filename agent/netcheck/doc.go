// Package netcheck examines the network that a machine is in, and reports what in it lets peers reach the machine directly
// and what does not. It opens sockets of its own, so it works with and without a running agent.
//
//	relays ──► STUN to two of them: mapped addresses, kind of NAT    ─┐
//	       ──► STUN to all: round trips by UDP                       ├─► Report ─► Words, JSON
//	       ──► TCP to all: round trips where UDP is blocked          │
//	       ──► STUN of many sizes to each that answers: MTU          │
//	router ──► PCP, NAT-PMP, UPnP                                   ─┘
package netcheck
