// Package enroll decides, without I/O, whether a machine gets its first certificate, and a node its next one. There is one
// Machine a stream; time, randomness and messages are arguments.
//
//	            Hello{enrol} | Renew                  Proof, within 60 s, once
//	┌──────┐ ──────────────────────► ┌────────────┐ ──────────────────────────► effect: Admit | Extend
//	│ idle │     effect: Challenge   │ challenged │
//	└──────┘ ◄────────────────────── └────────────┘ ──► anything that does not hold: refusal.Refusal
//	             a proof was judged
//
// What a proof shows, all of it over the Binding (see proto/wire) of this one exchange, which has the challenge's nonce, the
// exporter of this TLS connection, both public keys, the posture and the hash of the message that asked:
//
//	MAC with DH(node key, ephemeral key)   the WireGuard key is held, not only known
//	signature of the device key            the device key is held; of a renewal, that it is the node's
//	signature of the join token            the join code is held; only for enrolment
//	evidence                               what the machine is; see package attest
//
// Whether the token is good and the keys are new is decided by the directory, in the transaction that admits the node.
package enroll
