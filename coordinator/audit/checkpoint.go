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

// Where checkpoints are in the store.
const (
	SealPrefix = "seal/"
	LastSeal   = SealPrefix + "last"
)

// SealEvery is how many records are between two checkpoints that are kept.
const SealEvery = 256

// domain keeps what this key signs apart from all else.
const domain = "redoubt audit checkpoint 1\n"

// Checkpoint says which hash a record has, and with it all that came before.
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

// NewSigner makes a signer.
func NewSigner(mesh string, key ed25519.PrivateKey) *Signer { return &Signer{mesh: mesh, key: key} }

// String says whose signer it is, and nothing of the key's private half.
func (s *Signer) String() string { return "audit key " + Fingerprint(s.Public()) }

// Public is the public half of the key.
func (s *Signer) Public() ed25519.PublicKey { return s.key.Public().(ed25519.PublicKey) }

// Fingerprint names a key for people.
func Fingerprint(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:8])
}

// Seal signs that a record has a hash.
func (s *Signer) Seal(number uint64, hash string, at time.Time) (Checkpoint, error) {
	c := Checkpoint{V: 1, Mesh: s.mesh, Number: number, Hash: hash, At: at.UTC().Truncate(time.Second), Key: s.Public()}
	b, err := c.signed()
	if err != nil {
		return Checkpoint{}, err
	}
	c.Signature = ed25519.Sign(s.key, b)
	return c, nil
}

// signed is what the signature is over.
func (c Checkpoint) signed() ([]byte, error) {
	c.Signature = nil
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode the checkpoint of record %d: %w", c.Number, err)
	}
	return append([]byte(domain), b...), nil
}

// Line is the checkpoint as it is kept: one line of JSON.
func (c Checkpoint) Line() ([]byte, error) { return json.Marshal(c) }

// SealKey is where a checkpoint is kept in the store, if it is.
func SealKey(number uint64) string { return fmt.Sprintf("%s%016x", SealPrefix, number) }

// ParseCheckpoint reads a checkpoint and checks its signature, by the key that stands in it. Whether that is the right key
// is for the caller to ask.
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

// Seals are the writes that go with the records up to one, of which mark says the hashes at the numbers that are kept.
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
