package wg

import "sync/atomic"

// Drop is the reason why an engine dropped something.
type Drop int

// The reasons. Those up to DropStale are for messages from the network, the others for packets from the host.
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
	DropMalformed: "malformed",  // not a WireGuard message, or without an IP packet in it
	DropNoSession: "no session", // for an unknown or expired session or handshake
	DropForged:    "forged",     // not authentic
	DropReplay:    "replay",     // seen before, or too late to know
	DropSource:    "bad source", // the packet's source address is not its sender's
	DropWrongKey:  "wrong key",  // a handshake for a key other than ours
	DropStranger:  "stranger",   // a handshake by a key that no peer has
	DropNoCookie:  "no cookie",  // a handshake under load whose sender has yet to prove its address
	DropLimit:     "too many",   // a handshake under load, over the limit
	DropStale:     "stale",      // a handshake answered before, or too soon after another
	DropNoPeer:    "no peer",    // no peer has the address
	DropNoAnswer:  "no answer",  // it waited for a session in vain
	DropUnsent:    "not sent",   // the network did not accept it
	DropTooBig:    "too big",    // larger than the path MTU, and not to be fragmented; its sender was told
}

func (d Drop) String() string { return dropTexts[d] }

// Drops counts what was dropped, by reason.
type Drops [numDrops]uint64

// Sum returns the total over all reasons.
func (d Drops) Sum() (n uint64) {
	for _, v := range d {
		n += v
	}
	return n
}

// Map returns the reasons that occurred, keyed by their texts.
func (d Drops) Map() map[string]uint64 {
	m := map[string]uint64{}
	for i, v := range d {
		if v > 0 {
			m[Drop(i).String()] = v
		}
	}
	return m
}

// drops is the atomic form of Drops.
type drops [numDrops]atomic.Uint64

func (d *drops) read() (out Drops) {
	for i := range d {
		out[i] = d[i].Load()
	}
	return out
}

// lose counts drops, also for a peer if it is known. Most peers never lose anything, so a peer's counters are allocated with
// its first drop.
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
