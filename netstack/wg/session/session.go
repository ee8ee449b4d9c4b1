package session

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/replay"

	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
)

// Limits are the message limits of a session.
type Limits struct {
	Rekey  uint64 // after this many a new session is made
	Reject uint64 // after this many the session is unusable
}

// DefaultLimits are the limits of WireGuard.
var DefaultLimits = Limits{Rekey: 1 << 60, Reject: 1<<64 - 1<<13 - 1}

// Session holds the keys that resulted from one handshake.
type Session struct {
	Pair      *Pair
	Index     uint32 // by which the peer names the session
	Initiator bool   // this node began the handshake

	remote uint32 // by which we name it
	made   time.Time
	limit  uint64

	send    cipher.AEAD
	receive cipher.AEAD
	counter atomic.Uint64 // of the next message

	mu     sync.Mutex
	window replay.Filter

	// These belong to the Peer.
	confirmed bool    // the peer has shown that it has the keys
	ended     bool    // the Peer has forgotten it
	crossed   *flight // our handshake in flight when the peer's arrived
	from      *flight // our handshake that produced it
}

func newSession(p *Pair, k *noise.Keys, index, remote uint32, made time.Time, l Limits) (*Session, error) {
	defer k.Clear()
	s := &Session{Pair: p, Index: index, remote: remote, made: made, limit: l.Reject}
	var err error
	if s.send, err = chacha20poly1305.New(k.Send[:]); err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	if s.receive, err = chacha20poly1305.New(k.Receive[:]); err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	return s, nil
}

// Made returns when the handshake completed.
func (s *Session) Made() time.Time { return s.made }

// Alive reports whether the session is young enough to be used.
func (s *Session) Alive(now time.Time) bool { return now.Sub(s.made) < RejectAfterTime }

// usable reports whether messages may be sent over the session.
func (s *Session) usable(now time.Time) bool {
	return s != nil && s.Alive(now) && s.counter.Load() < s.limit
}

// padding is the block size that content is padded to.
const padding = 16

// Padded returns the padded length of n bytes of content. Padding never takes content beyond the MTU.
func Padded(n, mtu int) int {
	p := (n + padding - 1) &^ (padding - 1)
	if p > mtu && n <= mtu {
		p = mtu
	}
	return p
}

// Seal seals the n bytes of content at buf[noise.HeaderSize:] in place, and returns the size of the message. There must be room
// for padding and tag. ok is false if the session has reached its message limit.
func (s *Session) Seal(buf []byte, n, mtu int) (size int, ok bool) {
	counter, ok := s.take()
	if !ok {
		return 0, false
	}
	padded := Padded(n, mtu)
	content := buf[noise.HeaderSize : noise.HeaderSize+padded]
	clear(content[n:])
	s.seal(buf, content, counter)
	return padded + noise.Overhead, true
}

// SealTo seals content that lies elsewhere into a message at the start of buf, which must have room for it. Content must have
// capacity for its padding; those bytes are restored afterwards.
func (s *Session) SealTo(buf, content []byte, mtu int) (size int, ok bool) {
	counter, ok := s.take()
	if !ok {
		return 0, false
	}
	n := len(content)
	padded := Padded(n, mtu)
	content = content[:padded]
	if n == padded {
		s.seal(buf, content, counter)
		return padded + noise.Overhead, true
	}
	var kept [padding]byte
	copy(kept[:], content[n:])
	clear(content[n:])
	s.seal(buf, content, counter)
	copy(content[n:], kept[:])
	return padded + noise.Overhead, true
}

// take returns the next counter, if there is one left.
func (s *Session) take() (uint64, bool) {
	counter := s.counter.Add(1) - 1
	if counter >= s.limit {
		s.counter.Store(s.limit) // it must never wrap around
		return 0, false
	}
	return counter, true
}

// seal writes a message with the given content and counter to buf.
func (s *Session) seal(buf, content []byte, counter uint64) {
	// The nonce is four zero bytes and the counter. It is built where the header goes, so that none has to be allocated.
	nonce := buf[4:noise.HeaderSize]
	clear(nonce[:4])
	binary.LittleEndian.PutUint64(nonce[4:], counter)
	s.send.Seal(buf[noise.HeaderSize:noise.HeaderSize], nonce, content, nil)
	binary.LittleEndian.PutUint32(buf, noise.TypeTransport)
	binary.LittleEndian.PutUint32(buf[4:], s.remote)
}

// Why a message was not accepted.
var (
	ErrForged  = errors.New("not authentic")
	ErrReplay  = errors.New("came before, or too late")
	ErrStale   = errors.New("a handshake from before, or too soon after another")
	ErrUnknown = errors.New("no handshake waits for it")
)

// Open decrypts a transport message in place and returns its content, if it is authentic and not a replay. It overwrites the
// message's header.
func (s *Session) Open(msg []byte) (content []byte, err error) {
	if len(msg) < noise.Overhead {
		return nil, ErrForged
	}
	nonce := msg[4:noise.HeaderSize]
	clear(nonce[:4])
	counter := binary.LittleEndian.Uint64(nonce[4:])
	if counter >= s.limit {
		return nil, ErrForged
	}
	content, err = s.receive.Open(msg[noise.HeaderSize:noise.HeaderSize], nonce, msg[noise.HeaderSize:], nil)
	if err != nil {
		return nil, ErrForged
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.window.ValidateCounter(counter, s.limit) {
		return nil, ErrReplay
	}
	return content, nil
}
