package wg

import (
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

// homes are the addresses from which peers were heard last. Under load the gate keeps something for them, since nobody can
// be heard from an address who is not there. A peer that sleeps keeps its home.
type homes struct {
	mu  sync.RWMutex
	all map[netip.Addr]int // how many peers are there
}

// move takes a peer from one address to another; the zero one is none.
func (h *homes) move(from *netip.Addr, to netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all[*from]--; h.all[*from] <= 0 {
		delete(h.all, *from)
	}
	if *from = to; to.IsValid() {
		h.all[to]++
	}
}

// has says whether a peer is at an address.
func (h *homes) has(a netip.Addr) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.all[a.Unmap()] > 0
}

// cameFrom notes where an authentic packet came from. The caller holds the node's lock.
func (e *Inline) cameFrom(n *node, from conn.Endpoint) {
	if ip := from.DstIP().Unmap(); ip != n.home {
		e.homes.move(&n.home, ip)
	}
	if c := n.cfg.Course; c != nil {
		c.Heard(from)
		return
	}
	n.endpoint, n.known = from, true
}
