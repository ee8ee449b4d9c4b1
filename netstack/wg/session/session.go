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

// Limits are how many messages a session carries.
type Limits struct {
	Rekey  uint64 // a new session is made
	Reject uint64 // this one is not used any more
}

// DefaultLimits are WireGuard's.
var DefaultLimits = Limits{Rekey: 1 << 60, Reject: 1<<64 - 1<<13 - 1}

// Session is the keys that came out of one handshake.
type Session struct {
	Pair      *Pair
	Index     uint32 // by which the peer names it
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
	ended     bool    // the Peer forgot it
	crossed   *flight // ours that was under way when the peer's handshake came
	from      *flight // ours that this one is the outcome of
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

// Made is when the handshake ended.
func (s *Session) Made() time.Time { return s.made }

// Alive says whether a session may still be used.
func (s *Session) Alive(now time.Time) bool { return now.Sub(s.made) < RejectAfterTime }

// usable says whether messages may be sent by it.
func (s *Session) usable(now time.Time) bool {
	return s != nil && s.Alive(now) && s.counter.Load() < s.limit
}

// padding is what content is padded to.
const padding = 16

// Padded is how long n bytes of content become, which is never longer than the MTU made them.
func Padded(n, mtu int) int {
	p := (n + padding - 1) &^ (padding - 1)
	if p > mtu && n <= mtu {
		p = mtu
	}
	return p
}

// Seal makes a message in place of the n bytes of content at buf[noise.HeaderSize:], and says how long it is. There must
// be room for padding and tag. It refuses when the session has carried all that it may.
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

// SealTo makes a message at the start of buf, where there must be room for it, from content that lies elsewhere. Content must
// have capacity for its padding; what is there is the same afterwards.
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

// take takes the next counter, if there is one left.
func (s *Session) take() (uint64, bool) {
	counter := s.counter.Add(1) - 1
	if counter >= s.limit {
		s.counter.Store(s.limit) // it must never come round
		return 0, false
	}
	return counter, true
}

// seal seals content behind where the header is to stand in buf.
func (s *Session) seal(buf, content []byte, counter uint64) {
	// The nonce is four zero bytes and the counter. It stands where the header will, so that none has to be allocated.
	nonce := buf[4:noise.HeaderSize]
	clear(nonce[:4])
	binary.LittleEndian.PutUint64(nonce[4:], counter)
	s.send.Seal(buf[noise.HeaderSize:noise.HeaderSize], nonce, content, nil)
	binary.LittleEndian.PutUint32(buf, noise.TypeTransport)
	binary.LittleEndian.PutUint32(buf[4:], s.remote)
}

// Why a message is not taken.
var (
	ErrForged  = errors.New("not authentic")
	ErrReplay  = errors.New("came before, or too late")
	ErrStale   = errors.New("a handshake from before, or too soon after another")
	ErrUnknown = errors.New("no handshake waits for it")
)

// Open gives the content of a transport message, in place, if it is authentic and came the first time. The message's
// header is no use afterwards.
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
