package bind

import (
	"hash/maphash"
	"slices"
	"sync"
)

// once lets only the first copy of each handshake initiation pass. A peer that sprays sends the same bytes to all of our
// addresses, and the copies may arrive in the same instant at both sockets. They are replays of each other; but an
// engine that handles them on two processors at once can take both for new, answer both, and forget the session that
// its peer took up.
type once struct {
	seed maphash.Seed
	mu   sync.Mutex
	ring [64]uint64
	next int
}

func newOnce() *once { return &once{seed: maphash.MakeSeed()} }

// first says whether msg is not among the initiations seen lately. All of it counts, so that a copy that somebody
// spoilt does not shut out the good one.
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
