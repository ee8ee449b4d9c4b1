package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// Store keys of checkpoints.
const (
	SealPrefix = "seal/"
	LastSeal   = SealPrefix + "last"
)

// SealEvery is the number of records between two checkpoints that are kept.
const SealEvery = 256

// domain separates what this key signs from everything else.
const domain = "redoubt audit checkpoint 1\n"

// Checkpoint states the hash of a record, and thereby of all records before it.
type Checkpoint struct {
	V         int       `json:"v"`
	Mesh      string    `json:"mesh"`
	Number    uint64    `json:"number"`
	Hash      string    `json:"hash"`
	At        time.Time `json:"at"`
	Key       []byte    `json:"key"` // Ed25519, public half
	Signature []byte    `json:"signature,omitempty"`
}

// Signer signs checkpoints of one mesh.
type Signer struct {
	mesh string
	key  ed25519.PrivateKey
}

// NewSigner returns a signer for a mesh.
func NewSigner(mesh string, key ed25519.PrivateKey) *Signer { return &Signer{mesh: mesh, key: key} }

// String identifies the signer without revealing the private key.
func (s *Signer) String() string { return "audit key " + Fingerprint(s.Public()) }

// Public returns the public half of the key.
func (s *Signer) Public() ed25519.PublicKey { return s.key.Public().(ed25519.PublicKey) }

// Fingerprint returns a short name of a key, for people.
func Fingerprint(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:8])
}

// Seal returns a signed checkpoint of a record and its hash.
func (s *Signer) Seal(number uint64, hash string, at time.Time) (Checkpoint, error) {
	c := Checkpoint{V: 1, Mesh: s.mesh, Number: number, Hash: hash, At: at.UTC().Truncate(time.Second), Key: s.Public()}
	b, err := c.signed()
	if err != nil {
		return Checkpoint{}, err
	}
	c.Signature = ed25519.Sign(s.key, b)
	return c, nil
}

// signed returns the bytes that the signature covers.
func (c Checkpoint) signed() ([]byte, error) {
	c.Signature = nil
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode the checkpoint of record %d: %w", c.Number, err)
	}
	return append([]byte(domain), b...), nil
}

// Line returns the checkpoint as it is stored: one line of JSON.
func (c Checkpoint) Line() ([]byte, error) { return json.Marshal(c) }

// SealKey returns the store key of a checkpoint that is kept.
func SealKey(number uint64) string { return fmt.Sprintf("%s%016x", SealPrefix, number) }

// ParseCheckpoint parses a checkpoint and verifies its signature with the key it contains. The caller must check that this is
// the right key.
func ParseCheckpoint(b []byte) (Checkpoint, error) {
	var c Checkpoint
	if err := strictly(b, &c); err != nil {
		return Checkpoint{}, broken("a checkpoint cannot be read: %v", err)
	}
	signed, err := c.signed()
	if again, _ := c.Line(); !bytes.Equal(b, again) {
		return Checkpoint{}, broken("the checkpoint of record %d was changed: its form is not that of a checkpoint", c.Number)
	}
	switch {
	case err != nil:
		return Checkpoint{}, err
	case c.V != 1 || len(c.Key) != ed25519.PublicKeySize || c.Number == 0:
		return Checkpoint{}, broken("a checkpoint of version %d with a key of %d bytes", c.V, len(c.Key))
	case !ed25519.Verify(c.Key, signed, c.Signature):
		return Checkpoint{}, broken("the signature of the checkpoint of record %d does not hold: it was changed", c.Number)
	}
	return c, nil
}

// Seals returns the writes of checkpoints up to record number: those in kept, by number, and the last one.
func (s *Signer) Seals(number uint64, hash string, kept map[uint64]string, at time.Time) ([]store.Op, error) {
	var ops []store.Op
	add := func(key string, number uint64, hash string) error {
		c, err := s.Seal(number, hash, at)
		if err != nil {
			return err
		}
		b, err := c.Line()
		if err != nil {
			return err
		}
		ops = append(ops, store.Put(key, b))
		return nil
	}
	for n, h := range kept {
		if err := add(SealKey(n), n, h); err != nil {
			return nil, err
		}
	}
	return ops, add(LastSeal, number, hash)
}
