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

// PathPrivate is the private half of the X25519 key that messages about paths to a node are sealed for. A node draws it when
// it starts, and it is never written anywhere.
type PathPrivate struct {
	sealed
	open func() *ecdh.PrivateKey
}

// NewPath draws a key from r, which must be cryptographically random.
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

// IsZero says that there is no key.
func (k PathPrivate) IsZero() bool { return k.open == nil }

// Public is the public half; the zero key has the zero one.
func (k PathPrivate) Public() PathPublic {
	if k.open == nil {
		return PathPublic{}
	}
	return PathPublic{[PathSize]byte(k.open().PublicKey().Bytes())}
}

// Shared is the X25519 function of this key and the other side's.
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

// ParsePathPublic takes 32 bytes, and refuses what NodePublic refuses.
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

// Bytes are the key's 32 bytes.
func (p PathPublic) Bytes() []byte { return bytes.Clone(p.b[:]) }

// Array is the key as it travels.
func (p PathPublic) Array() [PathSize]byte { return p.b }

// IsZero says that there is no key.
func (p PathPublic) IsZero() bool { return p == PathPublic{} }
