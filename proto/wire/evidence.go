package wire

import "crypto/sha256"

// Kinds of evidence that machines can present, besides a join token.
const (
	EvidenceX509 = "x509pop"
	EvidenceTPM  = "tpm"
)

// QuotedPCRs returns the PCRs that a TPM quotes: the firmware (0), other code that it started (2), the boot loader (4), and what
// was allowed to start (7).
func QuotedPCRs() []uint32 { return []uint32{0, 2, 4, 7} }

// MaxEventLog limits the part of the measured-boot log that fits into evidence, in bytes.
const MaxEventLog = 40 << 10

// PossessionDigest returns what the key of a company certificate signs. The prefix separates it from anything that the same key
// may sign for other purposes.
func PossessionDigest(binding [32]byte) [32]byte {
	return sha256.Sum256(append([]byte("redoubt x509pop v1\x00"), binding[:]...))
}
