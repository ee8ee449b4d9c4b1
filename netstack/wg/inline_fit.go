package wg

import (
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg/session"
)

// tellEvery limits how often the host is told that packets to one peer are too large. The host remembers it for minutes.
const tellEvery = time.Millisecond

// mtuTo returns the maximum size of packets to a peer, and the limit of the path; 0 means that only the device has one. The
// caller holds the engine's lock or the node's.
func (e *Inline) mtuTo(n *node) (mtu, limit int) {
	mtu = int(e.mtu.Load())
	if c := n.cfg.Course; c != nil {
		if limit = c.Limit(); limit > 0 {
			mtu = min(mtu, limit)
		}
	}
	return mtu, limit
}

// fit fragments a packet, or all of a super-packet, that is too large for the path to a peer, or tells the host to send smaller
// ones. It returns false if nothing is left to send.
func (e *Inline) fit(n *node, pkt *tun.Super, limit int, now time.Time) bool {
	count, quote := pkt.Count(), pkt.Packet()
	how := pkt.Fit(limit)
	if how == tun.FitsNot {
		e.lose(n, DropTooBig, count)
	}
	last, at := n.told.Load(), now.UnixNano()
	if how != tun.FitsFragments && at-last >= int64(tellEvery) && n.told.CompareAndSwap(last, at) {
		if err := tun.TooBig(e.tun, quote, limit); err != nil && !e.halted() {
			e.log.Debug("the host does not hear that its packets are too large", "node", n.id, "err", err)
		}
	}
	return how != tun.FitsNot
}

// oversize is fit for a packet of a batch; it also sends what is left.
func (e *Inline) oversize(s *sender, n *node, pkt []byte, limit int) {
	if s.super == nil {
		s.super = tun.NewSuper()
	}
	s.super.Set(pkt)
	now := e.now()
	if !e.fit(n, s.super, limit, now) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	e.wake(n, now)
	for piece := s.super.Next(); piece != nil; piece = s.super.Next() {
		e.stage(n, piece)
	}
	if n.peer.Current(now) != nil {
		e.flush(n, now)
	} else {
		e.step(n, now, session.Want{})
	}
	e.settle(n)
}
