package wg

import "sync/atomic"

// Drop is why an engine did not carry something any further.
type Drop int

// The reasons. Those up to DropStale are of messages that came from the network, the others of packets of the host.
const (
	DropMalformed Drop = iota
	DropNoSession
	DropForged
	DropReplay
	DropSource
	DropWrongKey
	DropStranger
	DropNoCookie
	DropLimit
	DropStale
	DropNoPeer
	DropNoAnswer
	DropUnsent
	DropTooBig
	numDrops
)

var dropTexts = [numDrops]string{
	DropMalformed: "malformed",  // no message of WireGuard, or none with an IP packet in it
	DropNoSession: "no session", // it names a session or a handshake that there is not, or is not any more
	DropForged:    "forged",     // not authentic
	DropReplay:    "replay",     // it came before, or so late that this cannot be told
	DropSource:    "bad source", // a packet from an address that is not its sender's
	DropWrongKey:  "wrong key",  // a handshake for another key than ours
	DropStranger:  "stranger",   // a handshake by a key that no peer has
	DropNoCookie:  "no cookie",  // a handshake under load, whose sender has yet to prove where it is
	DropLimit:     "too many",   // a handshake under load, beyond what is answered
	DropStale:     "stale",      // a handshake that was answered before, or just after another
	DropNoPeer:    "no peer",    // no peer has the address
	DropNoAnswer:  "no answer",  // it waited for a session in vain
	DropUnsent:    "not sent",   // the network did not take it
	DropTooBig:    "too big",    // larger than what gets through to the peer, and not to be cut; its sender was told
}

func (d Drop) String() string { return dropTexts[d] }

// Drops says how much was dropped for each reason.
type Drops [numDrops]uint64

// Sum is how much was dropped for any reason.
func (d Drops) Sum() (n uint64) {
	for _, v := range d {
		n += v
	}
	return n
}

// Map has the reasons that occurred, by their texts.
func (d Drops) Map() map[string]uint64 {
	m := map[string]uint64{}
	for i, v := range d {
		if v > 0 {
			m[Drop(i).String()] = v
		}
	}
	return m
}

// drops counts them.
type drops [numDrops]atomic.Uint64

func (d *drops) read() (out Drops) {
	for i := range d {
		out[i] = d[i].Load()
	}
	return out
}

// lose counts what is dropped, of a peer if it is known which. Most peers never lose anything: their counters are made
// with the first.
func (e *Inline) lose(n *node, why Drop, count int) {
	e.drops[why].Add(uint64(count))
	if n == nil {
		return
	}
	own := n.drops.Load()
	if own == nil {
		n.drops.CompareAndSwap(nil, new(drops))
		own = n.drops.Load()
	}
	own[why].Add(uint64(count))
}
