package osnet

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
)

const (
	// MaxRoutes bounds the networks behind peers that are led to the device.
	MaxRoutes = 4096
	// MaxServed bounds the networks that a node leads to.
	MaxServed = 1024
)

// Exit is how the host reaches what is neither in the mesh nor in a network of Routes: all of it through one peer. What the
// peer does not carry is unreachable, and stays so through crashes until Down: nothing takes another way.
type Exit struct {
	On     bool
	V4, V6 bool // what the peer carries
	LAN    bool // the networks that the host is in are reached as ever
}

// Serve is what the host forwards between the mesh and others.
type Serve struct {
	// Routes are the networks; none forwards nothing. They do not hold one another.
	Routes []netip.Prefix
	// SNAT gives what goes there the host's own address.
	SNAT bool
}

// leads says whether anything beyond the mesh is led to the device.
func (c Config) leads() bool { return c.Exit.On || len(c.Routes) > 0 }

// serves says whether networks of a family are served.
func (s Serve) serves(v4 bool) bool {
	return slices.ContainsFunc(s.Routes, func(p netip.Prefix) bool { return p.Addr().Is4() == v4 })
}

// checkNetworks refuses what cannot be led anywhere.
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

// outermost leaves out prefixes that others hold. What is left is sorted.
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

// holds says whether p holds all of q.
func holds(p, q netip.Prefix) bool { return p.Bits() <= q.Bits() && p.Contains(q.Addr()) }

var (
	everything4 = netip.MustParsePrefix("0.0.0.0/0")
	everything6 = netip.MustParsePrefix("::/0")
	linkLocal6  = netip.MustParsePrefix("fe80::/10")
)

// held are the networks beyond the mesh that must not be reached by any other way than the device.
func (c Config) held() []netip.Prefix {
	out := slices.Clone(c.Routes)
	if c.Exit.On {
		out = append(out, everything4, everything6)
	}
	return out
}

// led are those of them that lead to the device now.
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

// unreachable are those of the servers that no exit node leads to, as they have addresses of a local network that is cut off.
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

// spared are the networks that the host is in itself and goes on to reach without the mesh: those within a network behind a
// peer, since the host is nearer to them; all of them where an exit node is asked to leave the LAN alone, and none where it
// is not. Shadowed are the routes for which nothing is left.
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
		spared = append(spared, linkLocal6) // how IPv6 finds its routers and neighbours
	}
	slices.SortFunc(spared, proto.ComparePrefix)
	return spared, shadowed
}
