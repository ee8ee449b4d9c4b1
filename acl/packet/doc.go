// Package packet reads IP packets where they lie, without copying or allocating, and writes the few that the data path
// answers with: TCP resets and "administratively prohibited".
//
//	IPv4 header ── options ────────────┐
//	                                   ├─► TCP · UDP · SCTP · ICMP · anything else ──► payload
//	IPv6 header ── up to 4 extensions ─┘                        │
//	                                                            └─ ICMP errors quote a packet: Quoted
//
// Parse either understands a packet to the end of its transport header or names the Fault; there is no half-read packet.
// Every length is checked against the bytes that are there. What hosts of a mesh have no use for and attackers have is a
// Fault too: source routes and routing headers, home addresses, transport headers cut by fragmentation.
//
// An address has one form, Addr: an IPv4 address is the same value whether somebody wrote it as such or mapped into an
// IPv6 one, so that no rule can be passed by through the other spelling. An IPv6 header with such an address is a Fault.
//
// Checksums are not verified, as the host's own stack does that on delivery; those that are written are right.
package packet
