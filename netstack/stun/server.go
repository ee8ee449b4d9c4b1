package stun

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// Server answers Binding requests. It does no I/O and is not safe for concurrent use: the reader of each socket has its own.
//
// What it sends is bounded. A request gets one answer, which is 12 bytes longer than the shortest request, 24 over IPv6. Answers
// per second are limited for each source and in total. Only requests are answered, so that two servers cannot keep each other
// busy.
type Server struct {
	seed    maphash.Seed
	all     bucket
	sources [sources]bucket
}

const (
	sources = 1 << 10 // buckets for sources; sources with the same hash share one

	// Answers per second, and burst sizes.
	sourceRate, sourceBurst = 10, 40
	allRate, allBurst       = 20_000, 20_000
)

// NewServer returns a Server with full rate limits.
func NewServer() *Server { return &Server{seed: maphash.MakeSeed()} }

// Answer appends the answer to a message received from an address. It reports false for non-requests and above the rate limits.
func (s *Server) Answer(b, req []byte, now time.Time, from netip.AddrPort) ([]byte, bool) {
	m, err := Parse(req)
	if err != nil || m.Kind != Request || !s.admit(now, from.Addr().Unmap()) {
		return b, false
	}
	if m.Change != 0 { // there is no other address to answer from
		m.unknown = append(m.unknown, attrChange)
	}
	if len(m.unknown) > 0 {
		return appendUnknown(b, m, m.unknown), true
	}
	return AppendResponse(b, Message{ID: m.ID, Mapped: from, Fingerprint: m.Fingerprint}), true
}

// admit reports whether a source may get one more answer.
func (s *Server) admit(now time.Time, from netip.Addr) bool {
	if from.Is6() { // a host with one IPv6 address usually has a whole /64
		from = netip.PrefixFrom(from, 64).Masked().Addr()
	}
	source := &s.sources[maphash.Comparable(s.seed, from)%sources]
	return source.take(now, sourceRate, sourceBurst) && s.all.take(now, allRate, allBurst)
}

// bucket is a token bucket. The zero value is full.
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
