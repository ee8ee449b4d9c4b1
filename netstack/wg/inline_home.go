package wg

import (
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

// homes are the addresses from which peers were last heard. Under load the gate reserves capacity for them, since a peer heard
// from an address was really there. A sleeping peer keeps its home.
type homes struct {
	mu  sync.RWMutex
	all map[netip.Addr]int // how many peers are there
}

// move moves a peer from one address to another; the zero address means none.
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

// has reports whether a peer was last heard from an address.
func (h *homes) has(a netip.Addr) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.all[a.Unmap()] > 0
}

// cameFrom records where an authentic packet came from. The caller holds the node's lock.
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
