package tun

import (
	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Hook judges packets; *filter.Filter implements it. Its methods are called concurrently and must not retain the packet.
type Hook interface {
	// Out judges a packet from the host to a peer.
	Out(pkt []byte) filter.Verdict
	// In judges a packet from a peer to the host.
	In(pkt []byte) filter.Verdict
}

// BatchHook is a Hook that can judge several packets at little more than the cost of one.
type BatchHook interface {
	Hook
	// OutSegments judges a super-packet from the host that will be split into n packets.
	OutSegments(pkt []byte, n int) filter.Verdict
	// InBatch judges packets from peers: packet i is bufs[i][offset:], and its verdict goes to verdicts[i]. From is the peer, or
	// 0 if the caller has checked that each packet's source belongs to its peer.
	InBatch(from proto.NodeID, bufs [][]byte, offset int, verdicts []filter.Verdict)
}

var _ BatchHook = (*filter.Filter)(nil)

// oneByOne turns any Hook into a BatchHook.
type oneByOne struct{ Hook }

// OutSegments implements BatchHook. The headers decide, so one verdict holds for all segments.
func (h oneByOne) OutSegments(pkt []byte, _ int) filter.Verdict { return h.Out(pkt) }

// InBatch implements BatchHook.
func (h oneByOne) InBatch(_ proto.NodeID, bufs [][]byte, offset int, verdicts []filter.Verdict) {
	for i, b := range bufs {
		verdicts[i] = h.In(b[offset:])
	}
}

func batching(h Hook) BatchHook {
	if b, ok := h.(BatchHook); ok {
		return b
	}
	return oneByOne{h}
}
