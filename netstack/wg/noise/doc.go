// Package noise implements WireGuard's handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, its messages, and the cookies that
// make floods of them cheap to withstand. It has no clock, randomness or sockets: all three are arguments.
//
//	initiator                                   responder
//	Pair.Initiate ──── initiation (148) ──────► Local.Open ► Pair.Verify
//	Initiator.Consume ◄─── response (92) ────── Pair.Respond
//	Keys                                        Keys
//	Jar.Take ◄──────── cookie reply (64) ────── Gate.Admit, under load
//
// The messages, with all numbers little-endian:
//
//	initiation    type 1 ×4 | sender ×4 | ephemeral ×32 | static ×48 | timestamp ×28 | mac1 ×16 | mac2 ×16
//	response      type 2 ×4 | sender ×4 | receiver ×4 | ephemeral ×32 | empty ×16 | mac1 ×16 | mac2 ×16
//	cookie reply  type 3 ×4 | receiver ×4 | nonce ×24 | cookie ×32
//	transport     type 4 ×4 | receiver ×4 | counter ×8 | content and tag
//
// A pair is a static key of ours and one of a peer; their shared secret is computed once.
package noise
