package pilot

import (
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// Offer is what peers are told of a node with these addresses and this UDP port, and of where the relays see it. A NAT that
// shows relays different ports gives each peer another one as well.
func Offer(local []netip.Addr, port uint16, states []relay.State) pathmsg.Offer {
	var o pathmsg.Offer
	add := func(a netip.AddrPort) bool {
		fresh := !slices.Contains(o.Candidates, a)
		if fresh && len(o.Candidates) < pathmsg.MaxCandidates {
			o.Candidates = append(o.Candidates, a)
		}
		return fresh
	}
	var seen []netip.AddrPort
	udp := false
	for _, s := range states {
		udp = udp || s.Transport == relay.UDP
		if s.Transport == relay.UDP && s.Seen.IsValid() {
			if a := netip.AddrPortFrom(s.Seen.Addr().Unmap(), s.Seen.Port()); !slices.Contains(seen, a) {
				seen = append(seen, a)
			}
		}
		if s.Transport != relay.None && s.RTT > 0 && len(o.Relays) < pathmsg.MaxRelays {
			o.Relays = append(o.Relays, pathmsg.RelayRTT{Relay: s.Relay.ID, RTT: s.RTT})
		}
	}
	slices.SortStableFunc(o.Relays, func(a, b pathmsg.RelayRTT) int { return int(a.RTT - b.RTT) })
	o.NAT = class(local, port, seen)
	if o.NAT == pathmsg.NATUnknown && !udp && len(o.Relays) > 0 {
		o.NAT = pathmsg.NATBlocked
	}
	for _, a := range seen {
		add(a)
	}
	for _, a := range local {
		add(netip.AddrPortFrom(a, port))
	}
	return o
}

// class is what the addresses that relays saw say of the NAT between. IPv6 is not translated.
func class(local []netip.Addr, port uint16, seen []netip.AddrPort) pathmsg.NATClass {
	var mapped []netip.AddrPort
	class := pathmsg.NATUnknown
	for _, a := range seen {
		switch {
		case slices.Contains(local, a.Addr()) && a.Port() == port:
			class = max(class, pathmsg.NATNone)
		case a.Addr().Is4():
			mapped = append(mapped, a)
		}
	}
	switch {
	case len(mapped) > 1:
		return pathmsg.NATHard
	case len(mapped) == 1:
		return pathmsg.NATEasy
	}
	return class
}
