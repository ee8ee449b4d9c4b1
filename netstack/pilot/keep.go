package pilot

import (
	"net/netip"

	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/netstack/scout"
)

// carrierNAT is the address space of carrier-grade NATs (RFC 6598).
var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

// Shut reports whether peers reach this node only from addresses that it has sent to: no relay delivers to it, its router opened
// no port, and it has no public address of its own. IPv6 does not count here, since most routers admit only solicited packets.
func Shut(local []netip.Addr, states []relay.State, found scout.Report) bool {
	if found.Router.External.IsValid() {
		return false
	}
	for _, s := range states {
		if s.Home && s.Transport != relay.None {
			return false
		}
	}
	for _, a := range local {
		if a.Is4() && a.IsGlobalUnicast() && !a.IsPrivate() && !carrierNAT.Contains(a) {
			return false
		}
	}
	return true
}
