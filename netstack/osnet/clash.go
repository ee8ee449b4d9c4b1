package osnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto"
)

// facts are the input to clashes.
type facts struct {
	ours    string // our device's name while up
	devices []string
	addrs   []address
	routes  []route
	servers []netip.Addr // DNS servers
	guards  []instance
}

// route is a route that is not ours, in any table.
type route struct {
	dst     netip.Prefix
	gateway netip.Addr
	device  string
	table   int
}

// instance is one agent's guard as nftables shows it: the only device that may carry these ranges.
type instance struct {
	device string
	v4, v6 netip.Prefix
}

func (i instance) ranges() []netip.Prefix { return []netip.Prefix{i.v4, i.v6} }

// overlaps reports whether two instances guard addresses in common.
func (i instance) overlaps(j instance) bool {
	for _, p := range i.ranges() {
		for _, q := range j.ranges() {
			if p.IsValid() && q.IsValid() && p.Overlaps(q) {
				return true
			}
		}
	}
	return false
}

// carrierNAT is the range that meshes, carriers and clouds share.
var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

// meshDevices identifies devices of other meshes by the prefix of their names.
var meshDevices = []struct{ prefix, product string }{
	{"tailscale", "Tailscale"},
	{"wt", "NetBird"},
	{"nebula", "Nebula"},
	{"zt", "ZeroTier"},
	{"CloudflareWARP", "Cloudflare WARP"},
	{"nm-", "Netmaker"},
	{"ham", "Hamachi"},
}

func productOf(device string) string {
	for _, d := range meshDevices {
		if rest, ok := strings.CutPrefix(device, d.prefix); ok && (rest == "" || d.prefix == "nm-" || d.prefix == "zt" || digits(rest)) {
			return d.product
		}
	}
	return ""
}

func digits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

// named returns a device's name with the product it belongs to, if known.
func named(device string) string {
	if p := productOf(device); p != "" {
		return device + " (" + p + ")"
	}
	return device
}

// clashes describes who else uses the mesh's ranges, and what that means. Each user is named once.
func clashes(mesh proto.Mesh, f facts) []string {
	var out []string
	say := func(format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		if len(out) < MaxClashes && !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	ranges := []netip.Prefix{mesh.V4, mesh.V6}
	for _, r := range ranges {
		if !r.IsValid() {
			continue
		}
		sayServers(say, r, f)
		said := sayAddresses(say, r, f)
		sayRoutes(say, r, f, said)
		for _, g := range f.guards {
			for _, p := range g.ranges() {
				if g.device != f.ours && p.IsValid() && p.Overlaps(r) {
					say("another agent of this host guards %v for %s, which overlaps with the mesh's %v", p, g.device, r)
				}
			}
		}
	}
	if mesh.V4.IsValid() && mesh.V4.Overlaps(carrierNAT) {
		for _, d := range f.devices {
			if productOf(d) == "Tailscale" {
				say("%s: Tailscale drops packets from %v that come by any other device, so the mesh's %v will not work beside "+
					"it: stop it, run `tailscale set --netfilter-mode=off`, or give the mesh another range", d, carrierNAT, mesh.V4)
			}
		}
	}
	return out
}

// sayServers reports what the host itself needs: its gateways and its DNS servers.
func sayServers(say func(string, ...any), mesh netip.Prefix, f facts) {
	for _, s := range f.servers {
		if mesh.Contains(s) {
			say("the DNS server %v lies in the mesh's range %v: names will not be found while the mesh is up", s, mesh)
		}
	}
	for _, r := range f.routes {
		if (!r.dst.IsValid() || r.dst.Bits() == 0) && mesh.Contains(r.gateway) {
			say("the default gateway %v on %s lies in the mesh's range %v: it can be passed through, not talked to, while "+
				"the mesh is up", r.gateway, named(r.device), mesh)
		}
	}
}

// sayAddresses reports devices with networks in the range, and returns those networks.
func sayAddresses(say func(string, ...any), mesh netip.Prefix, f facts) []netip.Prefix {
	var said []netip.Prefix
	for _, a := range f.addrs {
		if a.ours || a.device == f.ours {
			continue
		}
		if n := a.prefix.Masked(); mesh.Contains(a.prefix.Addr()) {
			say("%s has the address %v in the mesh's range %v: neither it nor its neighbours there can be reached while "+
				"the mesh is up", named(a.device), a.prefix, mesh)
			said = append(said, n, netip.PrefixFrom(a.prefix.Addr(), a.prefix.Addr().BitLen()))
		} else if n.Overlaps(mesh) {
			say("%s is in the network %v, which overlaps with the mesh's range %v: neighbours there cannot be reached while "+
				"the mesh is up", named(a.device), n, mesh)
			said = append(said, n)
		}
	}
	return said
}

// sayRoutes reports routes into the range. Default routes, and the half-default routes that VPNs set, cover everything and clash
// with nothing.
func sayRoutes(say func(string, ...any), mesh netip.Prefix, f facts, said []netip.Prefix) {
	for _, r := range f.routes {
		if !r.dst.IsValid() || r.dst.Bits() < 4 || !r.dst.Overlaps(mesh) || r.device == f.ours && r.device != "" ||
			slices.Contains(said, r.dst) {
			continue
		}
		via := ""
		if r.gateway.IsValid() {
			via = " by " + r.gateway.String()
		}
		if r.device != "" {
			via += " on " + named(r.device)
		}
		say("the route to %v%s (table %d) overlaps with the mesh's range %v: what lies behind it there cannot be reached while "+
			"the mesh is up", r.dst, via, r.table, mesh)
	}
}

// parseResolv returns the name servers of a resolv.conf, at most 8: resolvers themselves use only three.
func parseResolv(text string) []netip.Addr {
	var out []netip.Addr
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && len(out) < 8 {
			out = append(out, a.WithZone("").Unmap())
		}
	}
	return out
}
