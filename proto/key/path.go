package key

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"fmt"
	"io"
)

// PathSize is the length of both halves of a path key.
const PathSize = 32

// PathPrivate is the private half of the X25519 key that messages about paths to a node are sealed for. A node generates it
// when it starts, and never writes it anywhere.
type PathPrivate struct {
	sealed
	open func() *ecdh.PrivateKey
}

// NewPath generates a key from r, which must be cryptographically random.
func NewPath(r io.Reader) (PathPrivate, error) {
	var b [PathSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return PathPrivate{}, fmt.Errorf("draw a path key: %w", err)
	}
	k, err := ecdh.X25519().NewPrivateKey(b[:])
	if err != nil {
		return PathPrivate{}, fmt.Errorf("draw a path key: %w", err)
	}
	return PathPrivate{open: func() *ecdh.PrivateKey { return k }}, nil
}

// IsZero reports whether there is no key.
func (k PathPrivate) IsZero() bool { return k.open == nil }

// Public returns the public half, which is zero for the zero key.
func (k PathPrivate) Public() PathPublic {
	if k.open == nil {
		return PathPublic{}
	}
	return PathPublic{[PathSize]byte(k.open().PublicKey().Bytes())}
}

// Shared returns the X25519 shared secret of this key and the other side's.
func (k PathPrivate) Shared(p PathPublic) ([]byte, error) {
	if k.open == nil {
		return nil, errors.New("no private path key")
	}
	q, err := ecdh.X25519().NewPublicKey(p.b[:])
	if err != nil {
		return nil, fmt.Errorf("path key: %w", err)
	}
	s, err := k.open().ECDH(q)
	if err != nil {
		return nil, fmt.Errorf("path key: %w", ErrLowOrder)
	}
	return s, nil
}

// PathPublic is the public half of a path key. The zero value is no key.
type PathPublic struct{ b [PathSize]byte }

// ParsePathPublic parses 32 bytes, and refuses what ParseNodePublic refuses.
func ParsePathPublic(b []byte) (PathPublic, error) {
	if len(b) != PathSize {
		return PathPublic{}, fmt.Errorf("path key: %d bytes, want %d", len(b), PathSize)
	}
	p := PathPublic{[PathSize]byte(b)}
	if err := checkPoint(p.b); err != nil {
		return PathPublic{}, fmt.Errorf("path key: %w", err)
	}
	return p, nil
}

// Bytes returns the key's 32 bytes.
func (p PathPublic) Bytes() []byte { return bytes.Clone(p.b[:]) }

// Array returns the key as it is transmitted.
func (p PathPublic) Array() [PathSize]byte { return p.b }

// IsZero reports whether there is no key.
func (p PathPublic) IsZero() bool { return p == PathPublic{} }
