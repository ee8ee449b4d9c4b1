package bind

import (
	"hash/maphash"
	"slices"
	"sync"
)

// once lets only the first copy of each handshake initiation pass. A peer that sprays sends the same bytes to all of our
// addresses, and the copies may arrive at both sockets at the same instant. They are replays of each other; but an engine that
// handles them on two processors at once may take both for new, answer both, and forget the session that its peer has adopted.
type once struct {
	seed maphash.Seed
	mu   sync.Mutex
	ring [64]uint64
	next int
}

func newOnce() *once { return &once{seed: maphash.MakeSeed()} }

// first reports whether msg is not among the recently seen initiations. It hashes the whole message, so that a corrupted copy
// does not shut out the good one.
func (o *once) first(msg []byte) bool {
	h := maphash.Bytes(o.seed, msg)
	o.mu.Lock()
	defer o.mu.Unlock()
	if slices.Contains(o.ring[:], h) {
		return false
	}
	o.ring[o.next] = h
	o.next = (o.next + 1) % len(o.ring)
	return true
}
