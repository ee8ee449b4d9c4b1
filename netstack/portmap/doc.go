// Package portmap asks the router for an outside port that leads to ours: then peers can reach us unasked, whatever kind of NAT
// the router is. It speaks PCP (RFC 6887), NAT-PMP (RFC 6886) and UPnP IGD, and takes what it gets first, in that order.
//
//	PCP and NAT-PMP, UDP port 5351 of the gateway        UPnP
//	  ──► MAP, version 2                                   ──► M-SEARCH to 239.255.255.250:1900 and to the gateway
//	  ◄── mapping      or  ◄── version 0, "unsupported"    ◄── LOCATION
//	                       ──► NAT-PMP                     ──► GET description, SOAP AddPortMapping
//
// Machine decides and is pure; Client has the sockets:
//
//	Start, Stop ───────────┐                        ┌─► Send, Fetch
//	Received, Fetched ─────┼─► Step(now, event) ────┼─► Wake: give it a Tick then
//	Tick ──────────────────┘                        └─► Changed: the State now
//
// A mapping is renewed at half of its life, deleted on Stop, and asked for anew at once when the router says that it lost its
// state: its clock went back (RFC 6887, section 8.5).
//
// Over IPv6 there is nothing to translate, and PCP alone: it has the router's firewall let in what comes to our own address.
//
// Whoever is on the LAN may answer. So nothing counts that does not come from the gateway's address; PCP answers carry a
// random nonce besides; and UPnP is spoken to URLs with the gateway's own address only, without following where they lead.
// Still, what a router says is a hint: a peer that tries the address finds out.
package portmap
