package tun

import (
	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Hook judges packets; *filter.Filter is one. Its methods are called from several goroutines at once, and do not keep the
// packet.
type Hook interface {
	// Out judges a packet of the host that would go to a peer.
	Out(pkt []byte) filter.Verdict
	// In judges a packet of a peer that would go to the host.
	In(pkt []byte) filter.Verdict
}

// BatchHook is a Hook that judges several packets for little more than one.
type BatchHook interface {
	Hook
	// OutSegments judges a super-packet of the host, which n packets will be made of.
	OutSegments(pkt []byte, n int) filter.Verdict
	// InBatch judges packets of peers: packet i is bufs[i][offset:], and its verdict is written to verdicts[i]. From is the
	// peer, or 0 where whoever asks checked that the packets' sources are their peers' own.
	InBatch(from proto.NodeID, bufs [][]byte, offset int, verdicts []filter.Verdict)
}

var _ BatchHook = (*filter.Filter)(nil)

// oneByOne makes a BatchHook of any Hook.
type oneByOne struct{ Hook }

// OutSegments implements BatchHook: what decides is in the headers.
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
