package wg

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// behind finds the peer to which packets for an address go, and from which alone they may come. A peer's own address stays
// its own whatever routes cover it. The caller holds the lock.
func (e *Inline) behind(a netip.Addr) *node {
	if n := e.byAddr[a]; n != nil || e.routes == nil {
		return n
	}
	return e.router(a)
}

// router finds the peer with the longest route for an address. An IPv4 address in an IPv6 header is in none: the filter
// takes it for the same as in an IPv4 header, and that may be another node's own.
func (e *Inline) router(a netip.Addr) *node {
	if a.Is4In6() {
		return nil
	}
	n, _ := e.routes.Lookup(a)
	return n
}

// routeTable is a *bart.Table behind an interface for the sake of the compiler alone: each package that sees the type compiles
// the whole table anew.
type routeTable interface {
	Lookup(addr netip.Addr) (*node, bool)
	Get(of netip.Prefix) (*node, bool)
	Insert(of netip.Prefix, n *node)
	Delete(of netip.Prefix)
	Size() int
}

// setRoutes gives a peer other routes than before. One that another peer has is taken over. The caller holds the lock for
// writing.
func (e *Inline) setRoutes(n *node, before, after []netip.Prefix) {
	if slices.Equal(before, after) {
		return
	}
	for _, p := range before {
		if e.owns(n, p) { // and it was not taken over
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

// owns says whether a route is this peer's. The caller holds the lock.
func (e *Inline) owns(n *node, p netip.Prefix) bool {
	if e.routes == nil {
		return false
	}
	owner, _ := e.routes.Get(p)
	return owner == n
}

// checkRoutes refuses prefixes that have a second way to be written: whose they are would depend on it.
func checkRoutes(list []netip.Prefix) error {
	for _, p := range list {
		if !p.IsValid() || p.Addr().Is4In6() || p.Masked() != p {
			return fmt.Errorf("route %s is not a prefix", p)
		}
	}
	return nil
}
