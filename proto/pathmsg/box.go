package pathmsg

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

const (
	headerSize = 24
	// Overhead is how much longer a message is than its body.
	Overhead = headerSize + chacha20poly1305.Overhead
	// FirstByte is the first byte of all messages.
	FirstByte = 0xd0

	// formBound marks messages of bound boxes.
	formBound = 1
)

// magic begins with a byte that WireGuard, STUN and relays do not use there.
var magic = [4]byte{FirstByte, 'r', 'p', '1'}

// Reasons why a message is not accepted.
var (
	ErrForeign = errors.New("no path message")
	ErrForged  = errors.New("not sealed by the peer, or changed on its way")
	ErrReplay  = errors.New("a path message that came before")
)

// KeyID identifies a path key in messages that are sealed with it.
type KeyID [8]byte

// IDOf returns the ID of a key.
func IDOf(p key.PathPublic) KeyID {
	h := sha256.Sum256(append([]byte("redoubt path key id v1\x00"), p.Bytes()...))
	return KeyID(h[:8])
}

// Sender returns the ID of the key that a message claims to be sealed with.
func Sender(msg []byte) (KeyID, error) {
	if len(msg) < Overhead || [4]byte(msg) != magic || msg[5] > formBound || msg[6] != 0 || msg[7] != 0 {
		return KeyID{}, ErrForeign
	}
	return KeyID(msg[8:16]), nil
}

// Bound reports whether a message with a Sender was sealed by a bound box.
func Bound(msg []byte) bool { return msg[5] == formBound }

// Ends are the nodes that a bound box is between. A device key may sign a path key that is not the node's, and the box between
// two keys is the same whoever announced them: only a bound box shows which node sealed a message, and for which node. Programs
// from before there were bound boxes cannot open their messages, so they are for keys that more than one node announced.
type Ends struct{ Own, Peer proto.NodeID }

// Box seals messages for a peer and opens those that the peer sealed. It is not safe for concurrent use.
type Box struct {
	in, out cipher.AEAD
	id      KeyID // our own
	form    byte
	counter uint64
	window  window
}

// NewBox makes the Box for a pair of keys, bound to the Ends unless they are zero. A pair may get another Box later, after this
// one was forgotten: since is how long the own key has existed, and keeps counters from repeating.
func NewBox(own key.PathPrivate, peer key.PathPublic, ends Ends, since time.Duration) (*Box, error) {
	shared, err := own.Shared(peer)
	if err != nil {
		return nil, err
	}
	b := &Box{id: IDOf(own.Public()), counter: uint64(max(since, 0))}
	out, in := "redoubt path messages v1", "redoubt path messages v1"
	if ends != (Ends{}) {
		b.form = formBound
		out, in = bound(ends.Own, ends.Peer), bound(ends.Peer, ends.Own)
	}
	if b.out, err = derive(shared, own.Public(), peer, out); err != nil {
		return nil, err
	}
	b.in, err = derive(shared, peer, own.Public(), in)
	return b, err
}

// bound returns what the key of one direction of a bound box is for.
func bound(from, to proto.NodeID) string {
	b := binary.BigEndian.AppendUint64([]byte("redoubt path messages v1, bound\x00"), uint64(from))
	return string(binary.BigEndian.AppendUint64(b, uint64(to)))
}

// derive derives the key of one direction.
func derive(shared []byte, from, to key.PathPublic, purpose string) (cipher.AEAD, error) {
	salt := append(from.Bytes(), to.Bytes()...)
	k, err := hkdf.Key(sha256.New, shared, salt, purpose, chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive a key for path messages: %w", err)
	}
	return chacha20poly1305.New(k)
}

func nonce(header []byte) []byte {
	n := make([]byte, chacha20poly1305.NonceSize)
	copy(n[4:], header[16:headerSize])
	return n
}

// Seal appends a message to b.
func (x *Box) Seal(b []byte, m Message) []byte {
	x.counter++
	at := len(b)
	b = append(b, magic[:]...)
	b = append(b, m.kind(), x.form, 0, 0)
	b = append(b, x.id[:]...)
	b = binary.BigEndian.AppendUint64(b, x.counter)
	header := b[at : at+headerSize]
	return x.out.Seal(b, nonce(header), m.appendBody(nil), header)
}

// Open opens a message that Sender found to be sealed with the peer's key.
func (x *Box) Open(msg []byte) (Message, error) {
	if _, err := Sender(msg); err != nil {
		return nil, err
	}
	header := msg[:headerSize]
	body, err := x.in.Open(nil, nonce(header), msg[headerSize:], header)
	if err != nil {
		return nil, ErrForged
	}
	if !x.window.take(binary.BigEndian.Uint64(header[16:])) {
		return nil, ErrReplay
	}
	return parse(header[4], body)
}

// windowSize is by how many messages a message may be overtaken.
const windowSize = 256

// window records which of the last counters were seen.
type window struct {
	top  uint64 // the greatest so far, if any is true
	seen [windowSize / 64]uint64
	any  bool
}

// take reports whether a counter is new, and records it.
func (w *window) take(n uint64) bool {
	switch {
	case !w.any:
		w.any, w.top = true, n
	case n > w.top && n-w.top >= windowSize:
		w.seen, w.top = [windowSize / 64]uint64{}, n
	case n > w.top:
		for w.top < n {
			w.top++
			w.set(w.top, false)
		}
	case w.top-n >= windowSize || w.seen[n/64%uint64(len(w.seen))]&(1<<(n%64)) != 0:
		return false
	}
	w.set(n, true)
	return true
}

func (w *window) set(n uint64, seen bool) {
	bit := uint64(1) << (n % 64)
	if word := &w.seen[n/64%uint64(len(w.seen))]; seen {
		*word |= bit
	} else {
		*word &^= bit
	}
}
