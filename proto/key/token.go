package key

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io"
)

// TokenSize is the length of both halves of a join token's key.
const TokenSize = 32

// TokenSecret is the seed that a join code carries.
type TokenSecret struct {
	sealed
	open func() ed25519.PrivateKey
}

// NewToken generates a secret from r, which must be cryptographically random.
func NewToken(r io.Reader) (TokenSecret, error) {
	var b [TokenSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return TokenSecret{}, fmt.Errorf("draw a token secret: %w", err)
	}
	return ParseTokenSecret(b[:])
}

// ParseTokenSecret parses the 32 bytes that Expose returned.
func ParseTokenSecret(b []byte) (TokenSecret, error) {
	if len(b) != TokenSize {
		return TokenSecret{}, fmt.Errorf("token secret: %d bytes, want %d", len(b), TokenSize)
	}
	k := ed25519.NewKeyFromSeed(b)
	return TokenSecret{open: func() ed25519.PrivateKey { return k }}, nil
}

// IsZero reports whether there is no secret.
func (t TokenSecret) IsZero() bool { return t.open == nil }

// Public returns what the coordinator keeps.
func (t TokenSecret) Public() TokenPublic {
	if t.open == nil {
		return TokenPublic{}
	}
	return TokenPublic{[TokenSize]byte(t.open()[TokenSize:])}
}

// Sign signs msg; the zero secret signs nothing.
func (t TokenSecret) Sign(msg []byte) []byte {
	if t.open == nil {
		return nil
	}
	return ed25519.Sign(t.open(), msg)
}

// Expose returns the seed for a join code. It must not be used for anything else.
func (t TokenSecret) Expose() [TokenSize]byte {
	if t.open == nil {
		return [TokenSize]byte{}
	}
	return [TokenSize]byte(t.open().Seed())
}

// TokenPublic is the public half of a join token. The zero value is no token.
type TokenPublic struct{ b [TokenSize]byte }

// ParseTokenPublic parses 32 bytes.
func ParseTokenPublic(b []byte) (TokenPublic, error) {
	if len(b) != TokenSize {
		return TokenPublic{}, fmt.Errorf("token: %d bytes, want %d", len(b), TokenSize)
	}
	p := TokenPublic{[TokenSize]byte(b)}
	if p.IsZero() {
		return TokenPublic{}, fmt.Errorf("token: all zero")
	}
	return p, nil
}

// Verify checks a signature that Sign made.
func (p TokenPublic) Verify(msg, sig []byte) bool {
	return !p.IsZero() && ed25519.Verify(p.b[:], msg, sig)
}

// Bytes returns the key's 32 bytes.
func (p TokenPublic) Bytes() []byte { return bytes.Clone(p.b[:]) }

// String returns hex.
func (p TokenPublic) String() string { return hex.EncodeToString(p.b[:]) }

// IsZero reports whether there is no token.
func (p TokenPublic) IsZero() bool { return p == TokenPublic{} }
