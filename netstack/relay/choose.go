package relay

import (
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

const (
	// betterBy and betterPart are how much shorter another relay's round trip must be, by both measures, for it to become home.
	betterBy   = 10 * time.Millisecond
	betterPart = 0.3
)

// candidate is a relay that may become home.
type candidate struct {
	id     proto.NodeID
	health health
	rtt    time.Duration // zero if unknown
}

// health is what is known about a relay's reachability.
type health uint8

const (
	dead    health = iota // neither over UDP nor over a stream, or about to stop
	unsure                // one of the two failed, the other has not been tried
	healthy               // there is a session, or it answered, or nothing has been tried
)

// choose returns the relay through which others reach this node. It stays with the current one while that answers, unless
// another one is clearly nearer. It returns zero if none answers.
func choose(home proto.NodeID, all []candidate) proto.NodeID {
	var best, now *candidate
	for i := range all {
		c := &all[i]
		if c.health == dead {
			continue
		}
		if c.id == home {
			now = c
		}
		if best == nil || nearer(c, best) {
			best = c
		}
	}
	switch {
	case best == nil:
		return 0
	case now == nil || now.health < best.health:
		return best.id
	case best.rtt == 0 || now.rtt == 0:
		return now.id
	}
	if gain := now.rtt - best.rtt; gain > betterBy && float64(gain) > betterPart*float64(now.rtt) {
		return best.id
	}
	return now.id
}

// nearer reports whether a is the better choice of two that answer: measured relays come before unmeasured ones.
func nearer(a, b *candidate) bool {
	switch {
	case a.health != b.health:
		return a.health > b.health
	case (a.rtt == 0) != (b.rtt == 0):
		return b.rtt == 0
	case a.rtt != b.rtt:
		return a.rtt < b.rtt
	}
	return a.id < b.id
}
