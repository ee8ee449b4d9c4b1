// Package posture finds out what the coordinator's policy may ask of this machine's health.
//
//	files, programs, nftables ──► Collector.Read ──► Readings ──► Schedule ──► what changed ──► the coordinator
//	time, events of the firewall ────────────────────────────────────┘  └──► Watch.Facts ──► `redoubt posture`
//
// A collector reads through a Host and judges with functions that do no I/O. The Schedule says when which runs: cheap ones
// every minute and when something tells that what they read has changed, dear ones every hour and one at a time. What was not
// read again for three times as long is not known any more.
//
// Everything here is what the machine says of itself. Whoever rules the machine can make it lie; what it can prove is
// device:attestation.
package posture
