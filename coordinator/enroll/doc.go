// Package enroll decides, without I/O, whether a machine gets its first certificate and a node its next one. There is one
// Machine per stream; time, randomness and messages are arguments.
//
//	            Hello{enrol} | Renew                  Proof, within 60 s, once
//	┌──────┐ ──────────────────────► ┌────────────┐ ──────────────────────────► effect: Admit | Extend
//	│ idle │     effect: Challenge   │ challenged │
//	└──────┘ ◄────────────────────── └────────────┘ ──► anything invalid: refusal.Refusal
//	             a proof was judged
//
// A proof shows the following, all of it over the Binding (see proto/wire) of this exchange, which covers the challenge's
// nonce, the exporter of this TLS connection, both public keys, the posture and the hash of the request:
//
//	MAC with DH(node key, ephemeral key)   possession of the WireGuard key, not only knowledge of its public half
//	signature of the device key            possession of the device key; in a renewal, that it is the node's
//	signature of the join token            possession of the join code; only for enrolment
//	evidence                               what the machine is; see package attest
//
// Whether the token is valid and the keys are unused is decided by the directory, in the transaction that admits the node.
package enroll
