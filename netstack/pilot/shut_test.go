package pilot_test

import (
	"net/netip"
	"testing"

	"github.com/redoubt-mesh/redoubt/netstack/pilot"
	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/netstack/scout"
)

func TestShut(t *testing.T) {
	opened := scout.Report{Router: portmap.State{External: netip.MustParseAddrPort("203.0.113.1:7")}}
	home := []relay.State{{Transport: relay.TLS, Home: true}}
	for name, c := range map[string]struct {
		local  []string
		states []relay.State
		found  scout.Report
		want   bool
	}{
		"a NAT and no relay":      {[]string{"10.0.0.2", "2001:db8::1"}, nil, scout.Report{}, true},
		"the NAT of a carrier":    {[]string{"100.64.3.2"}, nil, scout.Report{}, true},
		"a relay that is no home": {[]string{"10.0.0.2"}, []relay.State{{Transport: relay.UDP}}, scout.Report{}, true},
		"a relay that is away":    {[]string{"10.0.0.2"}, []relay.State{{Home: true}}, scout.Report{}, true},
		"a relay":                 {[]string{"10.0.0.2"}, home, scout.Report{}, false},
		"the router opened":       {[]string{"10.0.0.2"}, nil, opened, false},
		"an address of its own":   {[]string{"10.0.0.2", "198.51.100.1"}, nil, scout.Report{}, false},
	} {
		var local []netip.Addr
		for _, a := range c.local {
			local = append(local, addr(a))
		}
		if got := pilot.Shut(local, c.states, c.found); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
