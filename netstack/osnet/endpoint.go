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
	prefix netip.Prefix // the address and its network's prefix length
	up     bool         // the device is up and has a carrier
	// deprecated addresses work but will soon be removed; tentative ones are not assigned yet.
	deprecated, tentative bool
	// ours means that the address is on the device given to Up.
	ours bool
	// way means that a default route uses the device.
	way bool
}

// usable returns the addresses at which peers may reach this host. Those with a default route come first, since the others can
// only serve neighbours; deprecated ones come last.
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
			// IPv4 and IPv6 are equally likely; the order only has to be stable.
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

// rank is lower for addresses that are likelier to be reachable.
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

// inner reports whether a device most likely leads to containers or virtual machines of this host: every host has those at the
// same addresses.
func inner(device string) bool {
	for _, prefix := range []string{"docker", "br-", "virbr", "cni", "flannel", "veth", "lxc", "lxdbr", "podman", "cali", "cilium"} {
		if strings.HasPrefix(device, prefix) {
			return true
		}
	}
	return false
}
