// Package state is a node's persistent state, in one directory of mode 0700 that one agent at a time holds.
//
//	lock         who holds the directory: process, since when
//	device.key   the device key; never leaves the machine. If a TPM holds it: a blob that only that TPM can load
//	node.key     the WireGuard keys: the one in use, the one that takes over, and the one that a renewal asks for;
//	             wrapped if a TPM holds the device key
//	join         the coordinator's URLs and the root's fingerprint; the token's secret until it is spent
//	identity     the node certificate with its chain, the roots, the mesh, the ticket for the next renewal
//	netmap       the last snapshot of the netmap ...
//	netmap.log   ... and what changed since, one record per change; replaced by a snapshot when it outgrows the last one
//	floors       what must never go back: mesh time, last contact, the netmap's version, peers' greatest sequence numbers
//	flows        the flow table, from a clean stop to the start after it
//	checked      which peers' certificates were found to be signed by their issuer, as of the last clean stop; see checked.go
//	wanted       up or down, routing, and whether the node was revoked or locked
//	port         the UDP port, so that peers find the node there again after a restart
//	relay.key    of a relay: the key by which nodes know it
//
// Every file but the log is replaced as a whole: the replacement is written beside it, synced, renamed over it, and the
// directory is synced. Each begins with a line that says what it is, with a checksum. A damaged file is rejected by name,
// with what to do about it, and nothing is started. A node that does not know what it may trust trusts nothing.
//
// A record of the log that a crash cut short was never acknowledged, and is dropped. Any other damage is an error: what the
// log loses may be a revocation.
package state
