package osnet

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
)

const (
	// MaxRoutes bounds the number of networks behind peers.
	MaxRoutes = 4096
	// MaxServed bounds the number of networks that a node serves.
	MaxServed = 1024
)

// Exit describes how the host reaches everything outside the mesh and the networks in Routes: through one peer. What the peer
// does not carry is unreachable, and stays so across crashes until Down: nothing takes another path.
type Exit struct {
	On     bool
	V4, V6 bool // what the peer carries
	LAN    bool // networks that the host is on stay reachable directly
}

// Serve describes what the host forwards between the mesh and other networks.
type Serve struct {
	// Routes are the networks served; none means no forwarding. They do not contain one another.
	Routes []netip.Prefix
	// SNAT translates the source of packets to them to the host's own address.
	SNAT bool
}

// leads reports whether anything beyond the mesh is routed to the device.
func (c Config) leads() bool { return c.Exit.On || len(c.Routes) > 0 }

// serves reports whether networks of a family are served.
func (s Serve) serves(v4 bool) bool {
	return slices.ContainsFunc(s.Routes, func(p netip.Prefix) bool { return p.Addr().Is4() == v4 })
}

// checkNetworks rejects networks that cannot be routed.
func checkNetworks(what string, list []netip.Prefix, limit, least int, m proto.Mesh) error {
	if len(list) > limit {
		return fmt.Errorf("%d %ss: at most %d", len(list), what, limit)
	}
	for _, p := range list {
		switch {
		case !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() || p.Bits() < least:
			return fmt.Errorf("%s %v: want a masked prefix of %d bits or more", what, p, least)
		case p.Bits() > 0 && (p.Overlaps(m.V4) || p.Overlaps(m.V6)):
			return fmt.Errorf("%s %v: overlaps with the mesh's ranges %v and %v", what, p, m.V4, m.V6)
		}
	}
	return nil
}

// outermost returns the prefixes that no other prefix contains, sorted.
func outermost(list []netip.Prefix) []netip.Prefix {
	sorted := slices.Clone(list)
	slices.SortFunc(sorted, proto.ComparePrefix)
	var out []netip.Prefix
	for _, p := range sorted {
		if !slices.ContainsFunc(out, func(q netip.Prefix) bool { return holds(q, p) }) {
			out = append(out, p)
		}
	}
	return out
}

// holds reports whether p contains all of q.
func holds(p, q netip.Prefix) bool { return p.Bits() <= q.Bits() && p.Contains(q.Addr()) }

var (
	everything4 = netip.MustParsePrefix("0.0.0.0/0")
	everything6 = netip.MustParsePrefix("::/0")
	linkLocal6  = netip.MustParsePrefix("fe80::/10")
)

// held returns the networks beyond the mesh that must not be reached by any path but the device.
func (c Config) held() []netip.Prefix {
	out := slices.Clone(c.Routes)
	if c.Exit.On {
		out = append(out, everything4, everything6)
	}
	return out
}

// led returns those of them that are routed to the device.
func (c Config) led() []netip.Prefix {
	out := slices.Clone(c.Routes)
	if c.Exit.On && c.Exit.V4 {
		out = append(out, everything4)
	}
	if c.Exit.On && c.Exit.V6 {
		out = append(out, everything6)
	}
	return out
}

// unreachable returns the servers that cannot be reached through the exit node, since their addresses belong to a local network
// that is cut off.
func (c Config) unreachable(servers []netip.Addr) (out []netip.Addr) {
	if !c.Exit.On || c.Exit.LAN {
		return nil
	}
	for _, s := range servers {
		led := c.Mesh.Contains(s) || slices.ContainsFunc(c.Routes, func(p netip.Prefix) bool { return p.Contains(s) })
		if !led && s.IsPrivate() {
			out = append(out, s)
		}
	}
	return out
}

// spared returns the networks that the host itself is on and continues to reach without the mesh: those within a network behind
// a peer, since the host is nearer to them; with an exit node all of them if it allows the LAN, and none otherwise. Shadowed are
// the routes that have nothing left to route.
func (c Config) spared(own []address) (spared, shadowed []netip.Prefix) {
	for _, a := range own {
		n := a.prefix.Masked()
		if !a.up || a.ours || a.device == c.Interface || a.prefix.IsSingleIP() || a.prefix.Addr().IsLoopback() ||
			n.Bits() == 0 || n.Overlaps(c.Mesh.V4) || n.Overlaps(c.Mesh.V6) || slices.Contains(spared, n) {
			continue
		}
		if c.Exit.On && !c.Exit.LAN {
			continue
		}
		if c.Exit.On || slices.ContainsFunc(c.Routes, func(p netip.Prefix) bool { return holds(p, n) }) {
			spared = append(spared, n)
		}
		if slices.Contains(c.Routes, n) {
			shadowed = append(shadowed, n)
		}
	}
	if c.Exit.On && !slices.Contains(spared, linkLocal6) {
		spared = append(spared, linkLocal6) // needed for IPv6 router and neighbour discovery
	}
	slices.SortFunc(spared, proto.ComparePrefix)
	return spared, shadowed
}
