package wire

import "crypto/sha256"

// Kinds of evidence that machines can give, beside a join token.
const (
	EvidenceX509 = "x509pop"
	EvidenceTPM  = "tpm"
)

// QuotedPCRs are those that a TPM quotes: what the firmware is, what it started besides, the boot loader, and what was
// allowed to start.
func QuotedPCRs() []uint32 { return []uint32{0, 2, 4, 7} }

// MaxEventLog is how much of a log of measured boot fits evidence.
const MaxEventLog = 40 << 10

// PossessionDigest is what the key of a company's certificate signs. It is another text than any that the same key may sign
// for other purposes.
func PossessionDigest(binding [32]byte) [32]byte {
	return sha256.Sum256(append([]byte("redoubt x509pop v1\x00"), binding[:]...))
}
