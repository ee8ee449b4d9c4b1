package key

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
)

// NodeSize is the length of both halves of a node key.
const NodeSize = 32

// Reasons why a text or bytes are not a node key.
var (
	ErrLowOrder     = errors.New("a point of low order: whoever sends it knows every shared secret made with it")
	ErrNotCanonical = errors.New("not the canonical encoding of its point")
)

// NodePrivate is the private half of a node's WireGuard key.
type NodePrivate struct {
	sealed
	open func() *ecdh.PrivateKey
}

// NewNode generates a key from r, which must be cryptographically random.
func NewNode(r io.Reader) (NodePrivate, error) {
	var b [NodeSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return NodePrivate{}, fmt.Errorf("draw a node key: %w", err)
	}
	return ParseNodePrivate(b[:])
}

// ParseNodePrivate accepts the 32 bytes that Expose returned, or any others: they are clamped as X25519 requires.
func ParseNodePrivate(b []byte) (NodePrivate, error) {
	if len(b) != NodeSize {
		return NodePrivate{}, fmt.Errorf("private node key: %d bytes, want %d", len(b), NodeSize)
	}
	c := bytes.Clone(b)
	c[0] &= 248
	c[31] = c[31]&127 | 64
	k, err := ecdh.X25519().NewPrivateKey(c)
	if err != nil {
		return NodePrivate{}, fmt.Errorf("private node key: %w", err)
	}
	return NodePrivate{open: func() *ecdh.PrivateKey { return k }}, nil
}

// IsZero reports whether there is no key.
func (k NodePrivate) IsZero() bool { return k.open == nil }

// Public returns the public half, which is zero for the zero key.
func (k NodePrivate) Public() NodePublic {
	if k.open == nil {
		return NodePublic{}
	}
	return NodePublic{[NodeSize]byte(k.open().PublicKey().Bytes())}
}

// Shared returns the X25519 shared secret of this key and the other side's.
func (k NodePrivate) Shared(p NodePublic) ([32]byte, error) {
	if k.open == nil {
		return [32]byte{}, errors.New("no private node key")
	}
	if err := checkPoint(p.b); err != nil {
		return [32]byte{}, fmt.Errorf("node key %s: %w", p, err)
	}
	q, err := ecdh.X25519().NewPublicKey(p.b[:])
	if err != nil {
		return [32]byte{}, fmt.Errorf("node key %s: %w", p, err)
	}
	s, err := k.open().ECDH(q)
	if err != nil {
		return [32]byte{}, fmt.Errorf("node key %s: %w", p, ErrLowOrder)
	}
	return [32]byte(s), nil
}

// Expose returns the clamped private bytes for a WireGuard engine or a file of mode 0600. It must not be used for anything else.
func (k NodePrivate) Expose() [NodeSize]byte {
	if k.open == nil {
		return [NodeSize]byte{}
	}
	return [NodeSize]byte(k.open().Bytes())
}

// Derive derives a key for one purpose. It reveals nothing about this key, or about the key for another purpose.
func (k NodePrivate) Derive(purpose string) ([32]byte, error) {
	if k.open == nil {
		return [32]byte{}, errors.New("no private node key")
	}
	b, err := hkdf.Key(sha256.New, k.open().Bytes(), nil, "redoubt "+purpose, 32)
	if err != nil {
		return [32]byte{}, fmt.Errorf("derive a key for %s: %w", purpose, err)
	}
	return [32]byte(b), nil
}

// NodePublic is the public half of a node's WireGuard key. The zero value is no key.
type NodePublic struct{ b [NodeSize]byte }

// ParseNodePublic parses 32 bytes. It refuses points of low order, and any encoding of a point except the canonical one, so
// that a key has one value.
func ParseNodePublic(b []byte) (NodePublic, error) {
	if len(b) != NodeSize {
		return NodePublic{}, fmt.Errorf("node key: %d bytes, want %d", len(b), NodeSize)
	}
	p := NodePublic{[NodeSize]byte(b)}
	if err := checkPoint(p.b); err != nil {
		return NodePublic{}, fmt.Errorf("node key %s: %w", p, err)
	}
	return p, nil
}

// ParseNodePublicText parses what String returns and wg prints.
func ParseNodePublicText(s string) (NodePublic, error) {
	var b [NodeSize + 3]byte
	if len(s) != base64.StdEncoding.EncodedLen(NodeSize) {
		return NodePublic{}, fmt.Errorf("node key: %d characters, want the 44 that wg prints", len(s))
	}
	n, err := base64.StdEncoding.Strict().Decode(b[:], []byte(s))
	if err != nil {
		return NodePublic{}, fmt.Errorf("node key: %w", err)
	}
	return ParseNodePublic(b[:n])
}

// Bytes returns the key's 32 bytes.
func (p NodePublic) Bytes() []byte { return bytes.Clone(p.b[:]) }

// Array returns the key in the form that WireGuard engines use.
func (p NodePublic) Array() [NodeSize]byte { return p.b }

// String returns the key in base64, as wg prints it.
func (p NodePublic) String() string { return base64.StdEncoding.EncodeToString(p.b[:]) }

// IsZero reports whether there is no key.
func (p NodePublic) IsZero() bool { return p == NodePublic{} }

// MarshalText implements encoding.TextMarshaler; the zero key becomes the empty text.
func (p NodePublic) MarshalText() ([]byte, error) {
	if p.IsZero() {
		return nil, nil
	}
	return []byte(p.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *NodePublic) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*p = NodePublic{}
		return nil
	}
	q, err := ParseNodePublicText(string(b))
	if err == nil {
		*p = q
	}
	return err
}

// lowOrder are the u-coordinates of order 1, 2, 4 and 8 on the curve and its twist, little endian, with zero and one repeated
// in their encodings with the field's prime added.
var lowOrder = [...][NodeSize]byte{
	{},
	{1},
	{
		0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
		0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
	},
	{
		0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b,
		0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
	},
	{
		0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
	},
	{
		0xed, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
	},
	{
		0xee, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
	},
}

func checkPoint(b [NodeSize]byte) error {
	masked := b
	masked[31] &= 0x7f
	for _, l := range lowOrder {
		if masked == l {
			return ErrLowOrder
		}
	}
	if b[31]&0x80 != 0 || !belowPrime(b) {
		return ErrNotCanonical
	}
	return nil
}

// belowPrime reports whether a 255-bit little-endian number is below 2^255-19.
func belowPrime(b [NodeSize]byte) bool {
	if b[31] != 0x7f || b[0] < 0xed {
		return true
	}
	for _, x := range b[1:31] {
		if x != 0xff {
			return true
		}
	}
	return false
}
