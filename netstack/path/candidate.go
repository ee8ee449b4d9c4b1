package path

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
)

// MaxCandidates is the most addresses that are tried per peer.
const MaxCandidates = 16

// Bounds limits which addresses may be candidates.
type Bounds struct {
	// Overlay holds the mesh's own ranges: a packet to one of them would enter the tunnel that it is meant to carry.
	Overlay []netip.Prefix
	// Loopback allows loopback addresses, for meshes on a single machine.
	Loopback bool
}

// ErrCandidate means that an address cannot be anyone's endpoint.
var ErrCandidate = errors.New("not usable as an endpoint")

// Check returns why a cannot be a candidate, or nil if it can be one.
func (b Bounds) Check(a netip.AddrPort) error {
	ip := a.Addr()
	var reason string
	switch {
	case !a.IsValid() || a.Port() == 0:
		reason = "no address and port"
	case ip.Is4In6():
		reason = "IPv4 written as IPv6"
	case ip.IsUnspecified():
		reason = "unspecified"
	case ip.IsMulticast():
		reason = "multicast"
	case ip.IsLinkLocalUnicast():
		reason = "link-local"
	case ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		reason = "broadcast"
	case ip.IsLoopback() && !b.Loopback:
		reason = "loopback"
	case slices.ContainsFunc(b.Overlay, func(p netip.Prefix) bool { return p.Contains(ip) }):
		reason = "in the mesh itself"
	default:
		return nil
	}
	return fmt.Errorf("%s: %w: %s", a, ErrCandidate, reason)
}

// Candidates returns a peer's endpoints, best first, as seen from a host with the given interface prefixes: without duplicates
// or addresses that the bounds refuse, at most MaxCandidates.
func (b Bounds) Candidates(local []netip.Prefix, endpoints []proto.Endpoint) []netip.AddrPort {
	type ranked struct {
		addr netip.AddrPort
		rank int
	}
	all := make([]ranked, 0, len(endpoints))
	for _, e := range endpoints {
		a := netip.AddrPortFrom(e.Addr.Addr().Unmap(), e.Addr.Port())
		if b.Check(a) == nil {
			all = append(all, ranked{a, rank(local, a.Addr(), e.Kind)})
		}
	}
	slices.SortFunc(all, func(x, y ranked) int {
		return cmp.Or(cmp.Compare(x.rank, y.rank), x.addr.Compare(y.addr))
	})
	var out []netip.AddrPort
	for _, r := range all {
		if !slices.Contains(out, r.addr) && len(out) < MaxCandidates {
			out = append(out, r.addr)
		}
	}
	return out
}

// rank returns a low number for an address that probably works, and works well.
func rank(local []netip.Prefix, a netip.Addr, kind proto.EndpointKind) int {
	for _, p := range local {
		if p.Contains(a) {
			return 0 // same network: no router in between
		}
	}
	switch {
	case a.IsPrivate():
		return 4 // another private network: rarely reachable, but routed ones exist
	case kind == proto.EndpointInterface && a.Is4():
		return 1
	case kind == proto.EndpointInterface:
		return 2
	}
	return 3 // seen by the coordinator: may be a translated address
}
