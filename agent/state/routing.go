package state

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Routing is the user's settings for networks beyond the mesh. The zero value is for a node that routes only for itself.
type Routing struct {
	// Advertise are the networks that the node offers to route to, sorted; AdvertiseExit offers the Internet.
	Advertise     []netip.Prefix `json:",omitempty"`
	AdvertiseExit bool           `json:",omitempty"`
	// PlainSource turns off source NAT for what is forwarded there.
	PlainSource bool `json:",omitempty"`
	// Accept means that networks behind other nodes are used.
	Accept bool `json:",omitempty"`
	// Exit is the node through which to reach the Internet: name, ID or address; empty for none. ExitLAN exempts the
	// networks that this machine is in.
	Exit    string `json:",omitempty"`
	ExitLAN bool   `json:",omitempty"`
}

// Everything4 and Everything6 are the two routes of an exit node.
var (
	Everything4 = netip.MustParsePrefix("0.0.0.0/0")
	Everything6 = netip.MustParsePrefix("::/0")
)

// maxExit is how long the name of a node may be.
const maxExit = 253

// Offers returns the routes that the node offers in a mesh, sorted; the zero Mesh stands for one that is not known yet.
// Routes that overlap with the mesh's own addresses are refused.
func (r Routing) Offers(m proto.Mesh) (offers, refused []netip.Prefix) {
	for _, p := range r.Advertise {
		if m.V4.IsValid() && m.V4.Overlaps(p) || m.V6.IsValid() && m.V6.Overlaps(p) {
			refused = append(refused, p)
			continue
		}
		offers = append(offers, p)
	}
	if r.AdvertiseExit {
		offers = append(offers, Everything4, Everything6)
	}
	slices.SortFunc(offers, proto.ComparePrefix)
	return offers, refused
}

// Check normalizes the advertised networks, and rejects impossible settings. The zero Mesh stands for one that is not known yet.
func (r *Routing) Check(m proto.Mesh) error {
	for _, p := range r.Advertise {
		switch a := p.Addr(); {
		case !p.IsValid() || a.Is4In6():
			return fmt.Errorf("advertised route %v: want a network such as 10.33.0.0/16", p)
		case p.Bits() == 0:
			return fmt.Errorf("advertised route %v: to offer an exit node, use --advertise-exit-node", p)
		case p != p.Masked():
			return fmt.Errorf("advertised route %v has bits set beyond the prefix length: did you mean %v?", p, p.Masked())
		case a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
			return fmt.Errorf("advertised route %v: loopback, link-local and multicast networks cannot be routed", p)
		}
	}
	r.Advertise = slices.Clone(r.Advertise)
	slices.SortFunc(r.Advertise, proto.ComparePrefix)
	r.Advertise = slices.Compact(r.Advertise)
	if offers, refused := r.Offers(m); len(refused) > 0 {
		return fmt.Errorf("advertised route %v overlaps with the mesh's own addresses (%v, %v)", refused[0], m.V4, m.V6)
	} else if len(offers) > proto.MaxRoutes {
		return fmt.Errorf("%d advertised routes: at most %d", len(offers), proto.MaxRoutes)
	}
	if r.Exit != "" && !proto.ValidText(r.Exit, maxExit) {
		return errors.New("the exit node is not valid: want a node's name, id or address in the mesh")
	}
	if r.Exit != "" && r.AdvertiseExit {
		return errors.New("a node cannot be an exit node and use one: leave out --advertise-exit-node, or give --exit-node=")
	}
	if r.ExitLAN && r.Exit == "" {
		return errors.New("--exit-node-allow-lan needs an exit node: give one with --exit-node")
	}
	return nil
}

// Equal reports whether two are the same.
func (r Routing) Equal(o Routing) bool {
	return slices.Equal(r.Advertise, o.Advertise) && r.AdvertiseExit == o.AdvertiseExit && r.PlainSource == o.PlainSource &&
		r.Accept == o.Accept && r.Exit == o.Exit && r.ExitLAN == o.ExitLAN
}
