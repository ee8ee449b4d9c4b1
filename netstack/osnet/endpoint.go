package osnet

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto"
)

// address is an address of one of the host's devices.
type address struct {
	device string
	prefix netip.Prefix // the address with the length of its network
	up     bool         // the device is up and has a carrier
	// deprecated addresses work and go soon; tentative ones are not the host's yet.
	deprecated, tentative bool
	// ours is an address of the device that Up was told of.
	ours bool
	// way says that a default route leads over the device.
	way bool
}

// usable picks the addresses at which peers may reach this host. First come those that have a way out, since the others
// serve neighbours at most; deprecated ones come last.
func usable(all []address, mesh proto.Mesh) []netip.Addr {
	var ok []address
	for _, a := range all {
		ip := a.prefix.Addr()
		if a.up && !a.ours && !a.tentative && !mesh.Contains(ip) && ip.IsGlobalUnicast() && !ip.Is4In6() {
			ok = append(ok, a)
		}
	}
	slices.SortStableFunc(ok, func(a, b address) int {
		return cmp.Or(
			cmp.Compare(rank(a), rank(b)),
			// IPv4 and IPv6 are equally likely; the order only has to be the same each time.
			a.prefix.Addr().Compare(b.prefix.Addr()))
	})
	out := make([]netip.Addr, 0, min(len(ok), MaxEndpoints))
	for _, a := range ok {
		if ip := a.prefix.Addr(); len(out) < MaxEndpoints && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out
}

// rank is lower for what is likelier to be reached.
func rank(a address) int {
	switch {
	case a.deprecated:
		return 3
	case inner(a.device):
		return 2
	case !a.way:
		return 1
	}
	return 0
}

// inner says whether a device most likely leads to containers or virtual machines of this host: every host has those at
// the same addresses.
func inner(device string) bool {
	for _, prefix := range []string{"docker", "br-", "virbr", "cni", "flannel", "veth", "lxc", "lxdbr", "podman", "cali", "cilium"} {
		if strings.HasPrefix(device, prefix) {
			return true
		}
	}
	return false
}
