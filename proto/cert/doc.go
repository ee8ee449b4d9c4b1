// Package cert issues and verifies the certificates of a mesh.
//
//	mesh root            spiffe://MESH                    kept offline where the owner wants it; agents pin it
//	  └─ intermediate    spiffe://MESH                    one for each coordinator
//	       ├─ node         spiffe://MESH/node/ID          subject key: the device key; one hour
//	       ├─ relay        spiffe://MESH/relay/ID         as a node's, of a machine that carries packets for nodes
//	       └─ coordinator  spiffe://MESH/coordinator/ID   what agents see in the TLS handshake
//
// A node certificate says all that a mesh knows of a node's identity: its id in the URI, its two overlay addresses and
// its DNS name as subject alternative names, and in an extension of ours (see extension.go for its layout) the WireGuard
// keys, the user or the tags, how the machine was attested, and a sequence number.
//
// An Authority signs. A Verifier holds the roots that are trusted (two while one replaces the other), takes intermediates
// from whoever delivers them, once, and says of a certificate whether it holds: chain, role, mesh, profile, extension, and
// validity at a time that the caller names, with 60 s of skew. It never looks at the system's roots nor at a clock.
//
// The TLS helpers bind both to connections: TLS 1.3 only, peers judged by a function of this package and by nothing else.
package cert
