package proto

import (
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// textEncoding preserves the order of the bytes that it encodes, and survives being read aloud: no padding, one case.
var textEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// NodeID identifies a node for as long as the mesh exists. IDs are random and never reused; zero is no node.
type NodeID uint64

// NewNodeID draws an ID from r, which must be cryptographically random.
func NewNodeID(r io.Reader) (NodeID, error) {
	var b [8]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return 0, fmt.Errorf("draw a node id: %w", err)
		}
		if id := NodeID(binary.BigEndian.Uint64(b[:])); id != 0 {
			return id, nil
		}
	}
}

// String returns "n" and 13 characters of base32hex, which sort as the number does.
func (id NodeID) String() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(id))
	return "n" + textEncoding.EncodeToString(b[:])
}

// MarshalText implements encoding.TextMarshaler.
func (id NodeID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *NodeID) UnmarshalText(b []byte) error {
	v, err := ParseNodeID(string(b))
	if err == nil {
		*id = v
	}
	return err
}

// ParseNodeID parses what String returns, and nothing else: each ID has a single text form.
func ParseNodeID(s string) (NodeID, error) {
	if len(s) != 14 || s[0] != 'n' {
		return 0, fmt.Errorf("node id %q: want n and 13 characters of 0-9a-v", shorten(s))
	}
	b, err := textEncoding.DecodeString(s[1:])
	if err != nil || len(b) != 8 {
		return 0, fmt.Errorf("node id %q: want n and 13 characters of 0-9a-v", shorten(s))
	}
	id := NodeID(binary.BigEndian.Uint64(b))
	if id == 0 || id.String() != s {
		return 0, fmt.Errorf("node id %q: not an id that a coordinator gives", s)
	}
	return id, nil
}

// MeshID identifies a mesh, and is the SPIFFE trust domain of its certificates.
type MeshID string

// NewMeshID draws a mesh ID of 128 random bits from r.
func NewMeshID(r io.Reader) (MeshID, error) {
	var b [16]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return "", fmt.Errorf("draw a mesh id: %w", err)
	}
	return MeshID("m" + textEncoding.EncodeToString(b[:])), nil
}

// ErrMeshID means that a text is not a mesh ID.
var ErrMeshID = errors.New("not a mesh id (want m and 26 characters of 0-9a-v)")

// Validate checks that the ID has the form that NewMeshID gives it.
func (m MeshID) Validate() error {
	if len(m) != 27 || m[0] != 'm' {
		return fmt.Errorf("%q: %w", shorten(string(m)), ErrMeshID)
	}
	b, err := textEncoding.DecodeString(string(m[1:]))
	if err != nil || textEncoding.EncodeToString(b) != string(m[1:]) {
		return fmt.Errorf("%q: %w", m, ErrMeshID)
	}
	return nil
}

// shorten keeps hostile input from filling a log line.
func shorten(s string) string {
	const limit = 64
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
