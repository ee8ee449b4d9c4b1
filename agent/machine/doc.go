// Package machine decides what a node does. It is pure: events and the time go in, effects come out, and its owner carries
// them out in order.
//
//	                Up CODE                 Enrolled                  netmap enforced
//	      ┌─────┐ ───────────► ┌──────────┐ ─────────► ┌──────────┐ ───────────► ┌─────────┐
//	─────►│down │              │enrolling │            │ starting │              │ running │
//	      └─────┘ ◄─────────── └──────────┘            └──────────┘ ◄─────────── └─────────┘
//	         ▲    Down, or refused                          ▲   own cert. expired   │ ▲
//	         │                                              │                       ▼ │ renewed
//	         │ Down (from any state)                        │                   ┌─────────┐
//	         │                                              └───────────────────│ expired │
//	    ┌─────────┐                                                             └─────────┘
//	    │ revoked │ ◄── the coordinator said so (from any state with an identity); kept on disk;
//	    └─────────┘     only Up with a new join code leads out
//
// # Peers
//
// What the netmap says of a peer is a claim. The certificate is verified here, when it arrives and again when its validity
// may have changed: chain, role, mesh, validity in mesh time, sequence number, that it names the peer that the netmap says
// it does, and that no one else has its addresses and keys. Peers that fail are left out of the engine and of the filter,
// and listed in the problems.
//
// # The order of effects
//
// No packet may pass while engine and filter disagree about who has an address. So a peer that goes, or moves to another
// address, leaves the filter first (its flows end, and resets can still leave through the engine), then the engine; a peer
// that comes is added to the engine first, where its packets meet a filter that does not know it. Then the change is saved
// to the disk, and only then acknowledged.
//
// # Contact
//
// While the node is in contact with its coordinator a certificate is good until it expires. When contact is lost, peers
// that were good at the last contact stay so for the netmap's grace, counted from then. When contact returns the grace ends
// after Settle: by then, nodes that came back as well have renewed, and the coordinator has told us.
package machine
