package netcheck

import (
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	"github.com/redoubt-mesh/redoubt/netstack/stun"
)

// Kind is what a network lets peers do, in one word.
type Kind string

// The kinds.
const (
	Open    Kind = "open"    // no NAT
	Easy    Kind = "easy"    // a NAT with one mapping for all destinations: peers find the way in
	Hard    Kind = "hard"    // a NAT with one mapping per destination: only peers with easy NATs find the way in
	Some    Kind = "nat"     // a NAT of unknown kind
	Blocked Kind = "blocked" // no UDP
	Unknown Kind = "unknown" // there was nothing to ask
)

// Relay is a relay that was asked.
type Relay struct {
	Name   string
	Region string
	UDP    time.Duration // round trip; 0: no answer
	TCP    time.Duration // the same, to its HTTPS port by TCP
	MTU    int           // the largest IP packet that got there; 0: unknown
	Asked  bool          // it has a UDP port to ask
}

// Path is the path to a peer, and how large packets inside the tunnel may be on it.
type Path struct {
	Peer      string
	Way       string // direct or relay
	Endpoint  string
	MTU       int
	Fragments bool // larger packets are sent in fragments
}

// Report is the result of a check. It is not modified after Run has returned it.
type Report struct {
	Kind   Kind
	STUN   stun.Report
	Router portmap.State
	// Router6 is the IPv6 router, which is a firewall.
	Router6 portmap.State
	Paths   []Path
	Relays  []Relay
	Local6  bool // this machine has a global IPv6 address
	Asked6  bool // there was a relay to ask over IPv6
	MTU     int  // the largest IP packet that got to the nearest relay; 0: unknown
}

// kind returns what STUN found out. IPv4 decides if it works, since IPv6 is seldom everywhere.
func kind(r stun.Report) Kind {
	asked := append(slices.Clone(r.V4.Answers), r.V6.Answers...)
	f := r.V4
	if len(f.Mapped()) == 0 {
		f = r.V6
	}
	switch {
	case len(asked) == 0:
		return Unknown
	case len(f.Mapped()) == 0:
		return Blocked
	}
	switch f.Mapping {
	case stun.Untranslated:
		return Open
	case stun.EndpointIndependent:
		return Easy
	case stun.Untold:
		return Some
	default:
		return Hard
	}
}

// Reaches reports whether peers can be reached, if only through a relay.
func (r Report) Reaches() bool {
	_, relay := r.nearest()
	return relay || len(r.STUN.Mapped()) > 0
}

// nearest returns the relay with the shortest round trip by UDP, or else by TCP.
func (r Report) nearest() (Relay, bool) {
	best, found := Relay{}, false
	for _, x := range r.Relays {
		switch {
		case x.UDP == 0 && x.TCP == 0:
		case !found, best.UDP == 0 && x.UDP > 0, x.UDP > 0 && x.UDP < best.UDP, best.UDP == 0 && x.UDP == 0 && x.TCP < best.TCP:
			best, found = x, true
		}
	}
	return best, found
}

// shared reports whether there is another NAT beyond the router: its external address is not the one that the Internet sees.
func (r Report) shared() bool {
	a := r.Router.External.Addr()
	if !a.IsValid() {
		return false
	}
	mapped := r.STUN.V4.Mapped()
	return a.IsPrivate() || carrier.Contains(a) ||
		len(mapped) > 0 && !slices.ContainsFunc(mapped, func(m netip.AddrPort) bool { return m.Addr() == a })
}

// carrier is the address range between a provider's NATs and its customers (RFC 6598).
var carrier = netip.MustParsePrefix("100.64.0.0/10")
