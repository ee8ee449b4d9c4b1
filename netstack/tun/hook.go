package tun

import "github.com/redoubt-mesh/redoubt/acl/filter"

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
	// OutJoined judges a super-packet of the host: count packets of one flow, which share their first header bytes.
	OutJoined(pkt []byte, count, header int) filter.Verdict
	// InBatch judges packets of peers: packet i is bufs[i][offset:], and its verdict is written to verdicts[i].
	InBatch(bufs [][]byte, offset int, verdicts []filter.Verdict)
}

var _ BatchHook = (*filter.Filter)(nil)

// oneByOne makes a BatchHook of any Hook.
type oneByOne struct{ Hook }

// OutJoined implements BatchHook: what decides is in the headers.
func (h oneByOne) OutJoined(pkt []byte, _, _ int) filter.Verdict { return h.Out(pkt) }

// InBatch implements BatchHook.
func (h oneByOne) InBatch(bufs [][]byte, offset int, verdicts []filter.Verdict) {
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
