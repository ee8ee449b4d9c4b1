// Package state is what a node keeps on its disk, in one directory of mode 0700 that one agent at a time holds.
//
//	lock         who holds the directory: process, since when
//	device.key   the device key; never leaves the machine. Where a TPM holds it: what that TPM alone can load
//	node.key     the WireGuard keys: the one in use, the one that takes over, and the one that a renewal asks for;
//	             wrapped where a TPM holds the device key
//	join         the coordinator's URLs and the root's fingerprint; the token's secret until it is spent
//	identity     the node certificate with its chain, the roots, the mesh, the ticket for the next renewal
//	netmap       the last snapshot of the netmap ...
//	netmap.log   ... and what changed since, one record a change; written anew when it outgrows the snapshot
//	floors       what must never go back: mesh time, last contact, the greatest sequence number seen of each peer
//	flows        the flow table, from a clean stop to the start after it
//	checked      which peers' certificates were found to be signed by their issuer, as of the last clean stop; see checked.go
//	wanted       up or down, and whether the node was revoked
//	port         the UDP port, so that peers find the node there again after a restart
//
// Every file but the log is replaced whole: written beside the old one, synced, renamed over it, the directory synced. Each
// begins with a line that says what it is and a checksum, so that a damaged file is told from a good one: it is refused,
// by name and with what to do, and nothing is started. A node that does not know what it may trust trusts nothing.
//
// A record of the log that a crash cut short was never acknowledged, and is dropped. Any other damage is an error: what a
// log loses may be a revocation.
package state
