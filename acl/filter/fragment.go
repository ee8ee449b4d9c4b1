package filter

import (
	"sync"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

const (
	fragmentLife  = 30 * second
	maxDatagrams  = 1024 // fragmented packets tracked at once
	peerDatagrams = 128  // of these, between this node and one other with all that is behind it
	maxGaps       = 4    // between the received fragments of one datagram
)

// fragments tracks fragmented packets. Only a first fragment is judged like a whole packet; later ones must belong to a first
// fragment that passed, and are judged by the current state of its flow.
type fragments struct {
	mu    sync.Mutex
	known map[fragmentKey]*datagram
	count map[*peer]int
	spare []*datagram
}

// fragmentKey is what all fragments of a packet share.
type fragmentKey struct {
	src, dst packet.Addr
	id       uint32
	proto    uint8 // IPv4 only: in IPv6 only the first fragment has the protocol
}

// datagram is what has been received of one packet: sorted, disjoint ranges of its bytes.
type datagram struct {
	flow    key
	peer    *peer // nil: unknown, and it will not pass
	expires tick
	spoiled bool // fragments overlap or do not fit: no more of it passes
	end     int  // length of the payload, -1 until the last fragment came
	ranges  int
	have    [maxGaps + 1]struct{ first, end int }
}

// fragment judges a fragment of a packet.
func (f *Filter) fragment(d proto.Direction, from proto.NodeID, p *packet.Packet) Verdict {
	k := fragmentKey{p.Src, p.Dst, p.FragID, 0}
	if p.Version == 4 {
		k.proto = p.Proto
	}
	if isICMP(p.Proto) && !p.Later() && !p.IsEchoRequest() && !p.IsEchoReply() {
		return f.discardOf(d, p, ICMPType) // messages that may pass without a flow are never large enough to be fragmented
	}
	by := f.current.Load()
	if from != 0 && !by.owns(from, p.Src) {
		return f.discard(Spoofed) // before it can take up room or spoil what the true owner sends
	}
	var who *peer
	if !p.Later() {
		who = by.other(d, p)
	}
	now := tick(f.clock.Load())
	flow, reason := f.fragments.accept(d, k, p, who, now)
	if reason != Permitted {
		return f.discardOf(d, p, reason)
	}
	if p.Later() {
		return f.follow(d, from, &flow, p, true)
	}
	var r run
	v := f.flow(&r, d, from, p, weigh(p, 1))
	r.release()
	if !v.Pass {
		f.fragments.forget(k)
	}
	return v
}

// accept records a fragment and returns the flow of its packet, or the reason why the fragment does not fit. Who is the other
// node; it need not be known for later fragments.
func (f *fragments) accept(d proto.Direction, k fragmentKey, p *packet.Packet, who *peer, now tick) (key, Reason) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.known[k]
	if g != nil && now >= g.expires {
		f.drop(k, g)
		g = nil
	}
	switch {
	case g == nil && p.Later():
		return key{}, FragmentUnknown
	case g == nil:
		if len(f.known) >= maxDatagrams || f.count[who] >= peerDatagrams {
			return key{}, FragmentLimit
		}
		g = f.make(k, who)
		g.flow.of(d, p)
		g.expires = now + fragmentLife
	}
	first := int(p.FragOffset)
	if g.spoiled = g.spoiled || !g.add(first, first+int(p.FragLength), p.More); g.spoiled {
		return key{}, FragmentOverlap
	}
	flow := g.flow
	if g.ranges == 1 && g.have[0].first == 0 && g.have[0].end == g.end {
		f.drop(k, g) // complete
	}
	return flow, Permitted
}

func (f *fragments) make(k fragmentKey, who *peer) *datagram {
	var g *datagram
	if n := len(f.spare); n > 0 {
		g, f.spare = f.spare[n-1], f.spare[:n-1]
	} else {
		g = new(datagram)
	}
	*g = datagram{peer: who, end: -1}
	if f.known == nil {
		f.known, f.count = make(map[fragmentKey]*datagram), make(map[*peer]int)
	}
	f.known[k] = g
	f.count[who]++
	return g
}

func (f *fragments) drop(k fragmentKey, g *datagram) {
	delete(f.known, k)
	if f.count[g.peer]--; f.count[g.peer] == 0 {
		delete(f.count, g.peer)
	}
	f.spare = append(f.spare, g)
}

// forget removes a first fragment that did not pass.
func (f *fragments) forget(k fragmentKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if g := f.known[k]; g != nil {
		f.drop(k, g)
	}
}

func (f *fragments) expire(now tick) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, g := range f.known {
		if now >= g.expires {
			f.drop(k, g)
		}
	}
}

// add records the range [first, end). It returns false if the range overlaps another, if it contradicts where the packet
// ends, or if there are too many gaps.
func (g *datagram) add(first, end int, more bool) bool {
	if !more {
		if g.end >= 0 {
			return false
		}
		g.end = end
	}
	i := g.ranges
	for i > 0 && g.have[i-1].first > first {
		i--
	}
	before := i > 0 && g.have[i-1].end >= first
	after := i < g.ranges && g.have[i].first <= end
	switch {
	case before && g.have[i-1].end > first, after && g.have[i].first < end:
		return false
	case before && after:
		g.have[i-1].end = g.have[i].end
		g.ranges--
		copy(g.have[i:], g.have[i+1:g.ranges+1])
	case before:
		g.have[i-1].end = end
	case after:
		g.have[i].first = first
	case g.ranges == len(g.have):
		return false
	default:
		copy(g.have[i+1:], g.have[i:g.ranges])
		g.have[i].first, g.have[i].end = first, end
		g.ranges++
	}
	return g.end < 0 || g.have[g.ranges-1].end <= g.end
}
