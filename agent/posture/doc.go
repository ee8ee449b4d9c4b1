// Package posture collects the facts about this machine's health that the coordinator's policy may ask for.
//
//	files, programs, nftables ──► Collector.Read ──► Readings ──► Schedule ──► what changed ──► the coordinator
//	time, events of the firewall ────────────────────────────────────┘  └──► Watch.Facts ──► `redoubt posture`
//
// A collector reads through a Host and judges with functions that do no I/O. The Schedule says when each one runs: cheap ones
// every minute and when an event says that what they read has changed, expensive ones every hour and one at a time. A fact
// that was not read again for three times as long is no longer known.
//
// Everything here is what the machine says of itself. Whoever controls the machine can make it lie; what it can prove is
// device:attestation.
package posture
