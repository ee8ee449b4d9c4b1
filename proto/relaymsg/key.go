package relaymsg

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Key is a session key, with which tags are made.
type Key struct{ secret [sha256.Size]byte }

// String hides the key from logs.
func (k *Key) String() string { return "relay session key" }

// domain separates what is signed and derived here from everything else.
const domain = "redoubt relay session v1"

// Transcript returns what a node signs to bind a session, and what the session key is derived from.
func Transcript(relay proto.NodeID, relayKey, ephemeral [KeySize]byte, session uint32, certificate []byte) [sha256.Size]byte {
	h := sha256.New()
	sum := sha256.Sum256(certificate)
	h.Write([]byte(domain))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(relay)))
	h.Write(relayKey[:])
	h.Write(ephemeral[:])
	h.Write(binary.BigEndian.AppendUint32(nil, session))
	h.Write(sum[:])
	return [sha256.Size]byte(h.Sum(nil))
}

// Secret is a private X25519 key: the relay's, or a node's ephemeral one.
type Secret struct{ key *ecdh.PrivateKey }

// NewSecret generates a secret.
func NewSecret(random io.Reader) (*Secret, error) {
	var b [KeySize]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return nil, fmt.Errorf("draw a relay key: %w", err)
	}
	k, err := ecdh.X25519().NewPrivateKey(b[:])
	if err != nil {
		return nil, fmt.Errorf("draw a relay key: %w", err)
	}
	return &Secret{k}, nil
}

// ParseSecret is the inverse of Expose.
func ParseSecret(b []byte) (*Secret, error) {
	k, err := ecdh.X25519().NewPrivateKey(b)
	if err != nil {
		return nil, fmt.Errorf("relay key of %d bytes: %w", len(b), err)
	}
	return &Secret{k}, nil
}

// Expose returns the secret itself, for storage.
func (s *Secret) Expose() []byte { return s.key.Bytes() }

// String hides the key from logs.
func (s *Secret) String() string { return "relay secret" }

// Public returns the public half.
func (s *Secret) Public() [KeySize]byte { return [KeySize]byte(s.key.PublicKey().Bytes()) }

// Agree derives the key of a session from this secret, the other side's public key and the transcript.
func (s *Secret) Agree(other [KeySize]byte, transcript [sha256.Size]byte) (*Key, error) {
	public, err := ecdh.X25519().NewPublicKey(other[:])
	if err != nil {
		return nil, fmt.Errorf("relay session: %w", err)
	}
	shared, err := s.key.ECDH(public)
	if err != nil {
		return nil, fmt.Errorf("relay session: %w", err)
	}
	b, err := hkdf.Key(sha256.New, shared, transcript[:], domain, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("relay session: %w", err)
	}
	return &Key{[sha256.Size]byte(b)}, nil
}

func (k *Key) tag(b []byte, fromRelay bool) []byte {
	h := hmac.New(sha256.New, k.secret[:])
	side := byte(0)
	if fromRelay {
		side = 1
	}
	h.Write([]byte{side})
	h.Write(b)
	return h.Sum(nil)[:TagSize]
}

// Verify reports whether the tag of a whole datagram, which Parse has accepted, was made with this key.
func (k *Key) Verify(b []byte, fromRelay bool) bool {
	if len(b) < HeaderSize+TagSize || !Kind(b[0]).tagged() {
		return false
	}
	n := len(b) - TagSize
	return hmac.Equal(k.tag(b[:n], fromRelay), b[n:])
}
