package relay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// cookieLife is how long a cookie is valid, at least; at most it is twice that.
const cookieLife = 15 * time.Second

// jar makes cookies, which prove that their sender receives packets at an address. It stores none of them.
type jar struct{ secret [32]byte }

func (j *jar) cookie(from netip.AddrPort, session uint32, period int64) (out [relaymsg.CookieSize]byte) {
	h := hmac.New(sha256.New, j.secret[:])
	ip := from.Addr().As16()
	h.Write(ip[:])
	var b [14]byte
	binary.BigEndian.PutUint16(b[:], from.Port())
	binary.BigEndian.PutUint32(b[2:], session)
	binary.BigEndian.PutUint64(b[6:], uint64(period))
	h.Write(b[:])
	copy(out[:], h.Sum(nil))
	return out
}

// give returns a cookie for an address and a session.
func (j *jar) give(now time.Time, from netip.AddrPort, session uint32) [relaymsg.CookieSize]byte {
	return j.cookie(from, session, now.Unix()/int64(cookieLife/time.Second))
}

// take reports whether a cookie is for this address and session, and still valid.
func (j *jar) take(now time.Time, from netip.AddrPort, session uint32, cookie [relaymsg.CookieSize]byte) bool {
	period := now.Unix() / int64(cookieLife/time.Second)
	for _, p := range []int64{period, period - 1} {
		if want := j.cookie(from, session, p); hmac.Equal(want[:], cookie[:]) {
			return true
		}
	}
	return false
}

// pace is a rate limiter per key: token buckets in a table of fixed size, where keys with the same hash share a bucket.
type pace struct {
	rate, burst float64
	buckets     [1024]bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

// take reports whether there is a token for a hash, and takes it.
func (p *pace) take(now time.Time, hash uint64) bool {
	return p.buckets[hash%uint64(len(p.buckets))].take(now, p.rate, p.burst, 1)
}

// take takes n tokens from a bucket that is filled at rate per second, up to burst.
func (b *bucket) take(now time.Time, rate, burst, n float64) bool {
	if b.at.IsZero() {
		b.tokens = burst
	} else if passed := now.Sub(b.at); passed > 0 {
		b.tokens = min(burst, b.tokens+rate*passed.Seconds())
	}
	b.at = now
	if b.tokens < n {
		return false
	}
	b.tokens -= n
	return true
}
