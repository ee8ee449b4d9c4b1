package netcheck

import (
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	"github.com/redoubt-mesh/redoubt/netstack/stun"
)

// Kind is what a network lets peers do, in a word.
type Kind string

// The kinds.
const (
	Open    Kind = "open"    // no NAT
	Easy    Kind = "easy"    // a NAT with one mapping for all: peers find the way in
	Hard    Kind = "hard"    // a NAT with a mapping for each peer: only easy ones find it
	Some    Kind = "nat"     // a NAT, nobody could tell of which kind
	Blocked Kind = "blocked" // no UDP
	Unknown Kind = "unknown" // there was nobody to ask
)

// Relay is one that was asked.
type Relay struct {
	Name   string
	Region string
	UDP    time.Duration // round trip; 0: no answer
	TCP    time.Duration // the same, to its HTTPS port
	MTU    int           // the largest IP packet that got there; 0: nobody could tell
	Asked  bool          // it has a UDP port to ask
}

// Path is the way to a peer, and how large packets inside the tunnel may be that go there.
type Path struct {
	Peer      string
	Way       string // direct or relay
	Endpoint  string
	MTU       int
	Fragments bool // what is larger than the way carries goes in fragments
}

// Report is what was found. It is a value; nothing in it changes any more.
type Report struct {
	Kind   Kind
	STUN   stun.Report
	Router portmap.State
	// Router6 is IPv6's, where routers are firewalls.
	Router6 portmap.State
	Paths   []Path
	Relays  []Relay
	Local6  bool // this machine has a global IPv6 address
	Asked6  bool // there was a relay to ask over IPv6
	MTU     int  // the largest IP packet that got to the nearest relay; 0: nobody could tell
}

// kind is what STUN found out. What IPv4 is like counts, since IPv6 is seldom everywhere.
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

// Reaches says whether peers can be reached, if only through a relay.
func (r Report) Reaches() bool {
	_, relay := r.nearest()
	return relay || len(r.STUN.Mapped()) > 0
}

// nearest is the relay with the shortest round trip by UDP, or else by TCP.
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

// shared says whether there is one more NAT before the router: what it says of its outside is not what the Internet sees.
func (r Report) shared() bool {
	a := r.Router.External.Addr()
	if !a.IsValid() {
		return false
	}
	mapped := r.STUN.V4.Mapped()
	return a.IsPrivate() || carrier.Contains(a) ||
		len(mapped) > 0 && !slices.ContainsFunc(mapped, func(m netip.AddrPort) bool { return m.Addr() == a })
}

// carrier is what is between a provider's NATs and its customers (RFC 6598).
var carrier = netip.MustParsePrefix("100.64.0.0/10")
