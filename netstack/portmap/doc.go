// Package portmap asks the router for an external port that maps to one of ours, so that peers can reach us unsolicited,
// whatever kind of NAT the router is. It speaks PCP (RFC 6887), NAT-PMP (RFC 6886) and UPnP IGD, and uses the first that works,
// in that order.
//
//	PCP and NAT-PMP, UDP port 5351 of the gateway        UPnP
//	  ──► MAP, version 2                                   ──► M-SEARCH to 239.255.255.250:1900 and to the gateway
//	  ◄── mapping      or  ◄── version 0, "unsupported"    ◄── LOCATION
//	                       ──► NAT-PMP                     ──► GET description, SOAP AddPortMapping
//
// Machine makes the decisions and does no I/O; Client has the sockets:
//
//	Start, Stop ───────────┐                        ┌─► Send, Fetch
//	Received, Fetched ─────┼─► Step(now, event) ────┼─► Wake: request a Tick at that time
//	Tick ──────────────────┘                        └─► Changed: the new State
//
// A mapping is renewed after half its lifetime, deleted on Stop, and requested again at once when the router shows that it lost
// its state, by an epoch that went backwards (RFC 6887, section 8.5).
//
// Over IPv6 there is nothing to translate, and only PCP is used: it makes the router's firewall admit packets to our own
// address.
//
// Anyone on the LAN may answer. So only answers from the gateway's address count, PCP answers must also carry a random nonce,
// and UPnP uses only URLs at the gateway's own address and follows no redirects. Even so, what a router says is only a hint: a
// peer that tries the address finds out.
package portmap
