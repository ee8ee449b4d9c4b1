package filter

import (
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Route is a prefix outside the mesh that lies behind a peer. The longest matching prefix wins.
type Route struct {
	Prefix netip.Prefix
	// Node is the router; if it is not a peer, the addresses are nobody's.
	Node proto.NodeID
}

// routeTable finds the place of an address that is no node's own. A place is a prefix behind one router within which rules
// treat all addresses alike: each route is a place, and so is each prefix of a rule that lies within a route.
type routeTable struct {
	table  lookup // nil without routes
	places []place
}

// lookup hides *bart.Table behind an interface only to save build time: each package that sees the type compiles the whole
// table anew.
type lookup interface {
	Lookup(addr netip.Addr) (int, bool)
}

type place struct {
	prefix netip.Prefix
	node   int // number of the router, -1 for nobody
}

// routes fills the table. c.numbers must be filled.
func (c *compiler) routes(r Ruleset) error {
	if len(r.Routes) == 0 {
		return nil
	}
	var t routeTable
	table := new(bart.Table[int])
	add := func(p netip.Prefix, node int) {
		table.Insert(p, len(t.places))
		t.places = append(t.places, place{p, node})
	}
	for _, route := range r.Routes {
		if p := route.Prefix; !p.IsValid() || p.Addr().Is4In6() || p.Masked() != p {
			return fmt.Errorf("route %v is not a prefix", p)
		}
		if _, twice := table.Get(route.Prefix); twice {
			return fmt.Errorf("route %v stands there twice", route.Prefix)
		}
		node, known := c.numbers[route.Node]
		if !known {
			node = -1
		}
		add(route.Prefix, node)
	}
	for _, rule := range r.Rules {
		for _, p := range rule.Peers.Prefixes {
			if !p.IsValid() || within(p, r.Mesh) {
				continue
			}
			if _, known := table.Get(p); known {
				continue
			}
			if n, ok := table.LookupPrefix(p); ok {
				add(p, t.places[n].node)
			}
		}
	}
	t.table = table
	c.routed = t
	return nil
}

// Behind returns the node to which packets for addr go, and from which alone they may come.
func (p *Program) Behind(addr netip.Addr) (proto.NodeID, bool) {
	if p == nil {
		return 0, false
	}
	node, _, ok := p.who(packet.AddrOf(addr))
	if !ok {
		return 0, false
	}
	return p.peers[node].ID, true
}

// who returns the node behind an address: its owner, or the router of the longest route that holds it. Row is where the
// rules about the address are: rules about a router do not apply to what is behind it.
func (p *Program) who(addr packet.Addr) (node, row int, ok bool) {
	if node, ok = p.nodes.find(addr); ok || p.routed.table == nil {
		return node, node, ok
	}
	a := addr.Netip()
	if p.local.mesh.Contains(a) || addr.IsGroup() {
		return 0, 0, false
	}
	n, ok := p.routed.table.Lookup(a)
	if !ok || p.routed.places[n].node < 0 {
		return 0, 0, false
	}
	return p.routed.places[n].node, len(p.peers) + n, true
}
