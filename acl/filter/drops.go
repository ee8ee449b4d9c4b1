package filter

import (
	"sync/atomic"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Drops holds the number of dropped packets by reason.
type Drops [reasons]uint64

// Each calls yield for every reason with a nonzero count.
func (d *Drops) Each(yield func(r Reason, packets uint64) bool) {
	for r, n := range d {
		if n > 0 && !yield(Reason(r), n) {
			return
		}
	}
}

// drops counts dropped packets by reason.
type drops [reasons]atomic.Uint64

func (d *drops) read() (out Drops) {
	for r := range d {
		out[r] = d[r].Load()
	}
	return out
}

// PeerDrops calls yield for every peer from or to which packets were dropped since it became one, as far as they can be
// attributed to a peer.
func (f *Filter) PeerDrops(yield func(id proto.NodeID, d *Drops) bool) {
	for _, p := range f.current.Load().peers {
		if own := p.dropped.Load(); own != nil {
			if d := own.read(); !yield(p.id, &d) {
				return
			}
		}
	}
}

// drop counts n dropped packets, also for p if it is not nil. Most peers never have any, so their counters are allocated
// with the first one.
func (f *Filter) drop(p *peer, r Reason, n int) {
	f.dropped[r].Add(uint64(n))
	if p == nil {
		return
	}
	own := p.dropped.Load()
	if own == nil {
		p.dropped.CompareAndSwap(nil, new(drops))
		own = p.dropped.Load()
	}
	own[r].Add(uint64(n))
}

// discard drops a packet about which too little is known to record it or to attribute it to a peer.
func (f *Filter) discard(r Reason) Verdict {
	f.drop(nil, r, 1)
	return Verdict{Reason: r}
}

// discardOf drops a packet from or to a peer without a record.
func (f *Filter) discardOf(d proto.Direction, p *packet.Packet, r Reason) Verdict {
	f.drop(f.other(d, p, r), r, 1)
	return Verdict{Reason: r}
}

// other returns the peer that a packet came from or goes to, nil if there is none. A spoofed packet is not attributed to the
// peer it claims to be from.
func (f *Filter) other(d proto.Direction, p *packet.Packet, r Reason) *peer {
	if r < Closed || r == Spoofed { // malformed or spoofed
		return nil
	}
	return f.current.Load().other(d, p)
}

// other returns the peer behind the address that a packet came from or goes to, nil if there is none.
func (e *enforced) other(d proto.Direction, p *packet.Packet) *peer {
	addr := p.Dst
	if d == proto.In {
		addr = p.Src
	}
	if node, ok := e.find(addr); ok {
		return e.peers[node]
	}
	return nil
}
