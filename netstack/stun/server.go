package stun

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// Server answers Binding requests. It does no I/O, and is for one goroutine: the reader of each socket has its own.
//
// What it sends is bounded. A request gets one answer, which is 12 bytes longer than the shortest request, 24 over IPv6.
// Answers are limited a second, for each source and for all together. Nothing but a request is answered, so that two
// servers do not keep each other busy.
type Server struct {
	seed    maphash.Seed
	all     bucket
	sources [sources]bucket
}

const (
	sources = 1 << 10 // buckets for sources; those with the same hash share one

	// Answers a second, and how many at once.
	sourceRate, sourceBurst = 10, 40
	allRate, allBurst       = 20_000, 20_000
)

// NewServer is a server that has answered nobody yet.
func NewServer() *Server { return &Server{seed: maphash.MakeSeed()} }

// Answer appends the answer to what came from an address. There is none to what is no request, and to too many.
func (s *Server) Answer(b, req []byte, now time.Time, from netip.AddrPort) ([]byte, bool) {
	m, err := Parse(req)
	if err != nil || m.Kind != Request || !s.admit(now, from.Addr().Unmap()) {
		return b, false
	}
	if m.Change != 0 { // there is nowhere else to answer from
		m.unknown = append(m.unknown, attrChange)
	}
	if len(m.unknown) > 0 {
		return appendUnknown(b, m, m.unknown), true
	}
	return AppendResponse(b, Message{ID: m.ID, Mapped: from, Fingerprint: m.Fingerprint}), true
}

// admit says whether a source may have one more answer.
func (s *Server) admit(now time.Time, from netip.Addr) bool {
	if from.Is6() { // whoever has one IPv6 address has a /64 of them
		from = netip.PrefixFrom(from, 64).Masked().Addr()
	}
	source := &s.sources[maphash.Comparable(s.seed, from)%sources]
	return source.take(now, sourceRate, sourceBurst) && s.all.take(now, allRate, allBurst)
}

// bucket holds what may still be spent. The zero value is full.
type bucket struct {
	spent float64
	at    time.Time
}

func (b *bucket) take(now time.Time, rate, burst float64) bool {
	b.spent = max(0, b.spent-now.Sub(b.at).Seconds()*rate)
	b.at = now
	if b.spent+1 > burst {
		return false
	}
	b.spent++
	return true
}
