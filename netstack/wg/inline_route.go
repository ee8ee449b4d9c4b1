package wg

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// behind returns the peer to which packets for an address go, and the only one they may come from. A peer's own address stays
// its own, whatever routes cover it. The caller holds mu.
func (e *Inline) behind(a netip.Addr) *node {
	if n := e.byAddr[a]; n != nil || e.routes == nil {
		return n
	}
	return e.router(a)
}

// router returns the peer with the longest route for an address. An IPv4-mapped IPv6 address matches none: the filter treats it
// like the IPv4 address, which may be another node's own.
func (e *Inline) router(a netip.Addr) *node {
	if a.Is4In6() {
		return nil
	}
	n, _ := e.routes.Lookup(a)
	return n
}

// routeTable hides a *bart.Table behind an interface for the sake of compile time only: each package that sees the type
// compiles the whole table again.
type routeTable interface {
	Lookup(addr netip.Addr) (*node, bool)
	Get(of netip.Prefix) (*node, bool)
	Insert(of netip.Prefix, n *node)
	Delete(of netip.Prefix)
	Size() int
}

// setRoutes changes a peer's routes. It takes over those that another peer has. The caller holds mu for writing.
func (e *Inline) setRoutes(n *node, before, after []netip.Prefix) {
	if slices.Equal(before, after) {
		return
	}
	for _, p := range before {
		if e.owns(n, p) { // unless it was taken over
			e.routes.Delete(p)
		}
	}
	if e.routes == nil {
		e.routes = new(bart.Table[*node])
	}
	for _, p := range after {
		e.routes.Insert(p, n)
	}
	if e.routes.Size() == 0 {
		e.routes = nil
	}
}

// owns reports whether a route belongs to this peer. The caller holds mu.
func (e *Inline) owns(n *node, p netip.Prefix) bool {
	if e.routes == nil {
		return false
	}
	owner, _ := e.routes.Get(p)
	return owner == n
}

// checkRoutes rejects prefixes that are not in canonical form: their owner would depend on how they are written.
func checkRoutes(list []netip.Prefix) error {
	for _, p := range list {
		if !p.IsValid() || p.Addr().Is4In6() || p.Masked() != p {
			return fmt.Errorf("route %s is not a prefix", p)
		}
	}
	return nil
}
