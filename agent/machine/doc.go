// Package machine decides what a node does. It is pure: events and the time go in, effects come out, and whoever owns it
// carries them out in their order.
//
//	                Up CODE                 Enrolled                  netmap enforced
//	      ┌─────┐ ───────────► ┌──────────┐ ─────────► ┌──────────┐ ───────────► ┌─────────┐
//	─────►│down │              │enrolling │            │ starting │              │ running │
//	      └─────┘ ◄─────────── └──────────┘            └──────────┘ ◄─────────── └─────────┘
//	         ▲    Down, or refused                          ▲    own certificate out│ ▲
//	         │                                              │                       ▼ │ renewed
//	         │ Down (from anywhere)                         │                   ┌─────────┐
//	         │                                              └───────────────────│ expired │
//	    ┌─────────┐                                                             └─────────┘
//	    │ revoked │ ◄── the coordinator said so (from anywhere with an identity); kept on disk;
//	    └─────────┘     only Up with a new join code leads out
//
// # Peers
//
// What the netmap says of a peer is a claim. The certificate is checked here, once when it comes and again when its time is
// over: chain, role, mesh, validity in mesh time, sequence number, that it names the peer that the netmap says it is, and
// that its addresses and keys are nobody else's. Peers that fail are left out of the engine and of the filter, and named in
// the problems.
//
// # The order of effects
//
// No packet may pass while engine and filter disagree about who has an address. So a peer that goes, or moves to
// another address, leaves the filter first (its flows die, and resets still find the engine's way out), then the engine;
// a peer that comes, comes to the engine first, where packets of it meet a filter that does not know it. Then the change is
// made to last on the disk, and only then acknowledged.
//
// # Contact
//
// While the node is in contact with its coordinator a certificate is good until it runs out. When contact is lost,
// peers that were good at the last contact stay so for the netmap's grace, counted from then. When contact returns the
// grace ends after Settle: by then those who came back as well have renewed, and the coordinator has told us.
package machine
