package pilot

import (
	"net/netip"

	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/netstack/scout"
)

// carrierNAT is where providers take addresses from that they translate (RFC 6598).
var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

// Shut says that peers reach this node only where it sends to them: no relay brings it anything, its router opened no port, and no
// address of its own is one of the Internet's. IPv6 counts for nothing here, since routers mostly let in only what was asked for.
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
