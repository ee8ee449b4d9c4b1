// Package cert issues and verifies the certificates of a mesh.
//
//	mesh root            spiffe://MESH                    kept offline if the owner wishes; agents pin it
//	  └─ intermediate    spiffe://MESH                    one per coordinator
//	       ├─ node         spiffe://MESH/node/ID          subject key: the device key; valid for one hour
//	       ├─ relay        spiffe://MESH/relay/ID         like a node's, for a machine that forwards packets for nodes
//	       └─ coordinator  spiffe://MESH/coordinator/ID   what agents see in the TLS handshake
//
// A node certificate contains everything that a mesh knows about a node's identity: its id in the URI, its two overlay addresses
// and its DNS name as subject alternative names, and in a private extension (see extension.go for its layout) the WireGuard keys,
// the user or the tags, how the machine was attested, and a sequence number.
//
// An Authority signs. A Verifier holds the trusted roots (two while one replaces the other), learns intermediates from whoever
// sends them, and decides whether a certificate is valid: chain, role, mesh, profile, extension, and validity at a time that the
// caller passes, with a tolerance of 60 s. It uses neither the system's roots nor a clock.
//
// The TLS helpers apply both to connections: TLS 1.3 only, and peers are verified by a function of this package and nothing else.
package cert
