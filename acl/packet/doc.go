// Package packet parses IP packets in place, without copying or allocating, and builds the few that the data path answers
// with: TCP resets and ICMP errors.
//
//	IPv4 header ── options ────────────┐
//	                                   ├─► TCP · UDP · SCTP · ICMP · anything else ──► payload
//	IPv6 header ── up to 4 extensions ─┘                        │
//	                                                            └─ ICMP errors quote a packet: Quoted
//
// Parse either understands a packet to the end of its transport header or returns a Fault; it never accepts half a packet.
// Every length is checked against the available bytes. What hosts of a mesh do not need and attackers use is a Fault too:
// source routes and routing headers, home addresses, transport headers split by fragmentation.
//
// An address has one form, Addr: an IPv4 address and its IPv4-mapped IPv6 form are the same value, so that the other
// spelling cannot bypass a rule. An IPv6 header with such an address is a Fault.
//
// Checksums are not verified, since the host's own stack does that on delivery; those of built packets are correct.
package packet
