package pilot

import (
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/netstack/scout"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// Offer returns what peers are told about a node with these addresses and this UDP port: where the relays see it, and what else
// was found out about it. A NAT that shows relays different ports shows each peer another one as well.
func Offer(local []netip.Addr, port uint16, states []relay.State, found scout.Report) pathmsg.Offer {
	var o pathmsg.Offer
	add := func(a netip.AddrPort) {
		if !slices.Contains(o.Candidates, a) && len(o.Candidates) < pathmsg.MaxCandidates {
			o.Candidates = append(o.Candidates, a)
		}
	}
	udp := false
	for _, s := range states {
		udp = udp || s.Transport == relay.UDP
		if s.Transport != relay.None && s.RTT > 0 && len(o.Relays) < pathmsg.MaxRelays {
			o.Relays = append(o.Relays, pathmsg.RelayRTT{Relay: s.Relay.ID, RTT: s.RTT})
		}
	}
	slices.SortStableFunc(o.Relays, func(a, b pathmsg.RelayRTT) int { return int(a.RTT - b.RTT) })
	o.NAT = class(local, port, seenBy(states, found), len(witnessesOf(states, found)))
	if o.NAT == pathmsg.NATUnknown && !udp && len(o.Relays) > 0 {
		o.NAT = pathmsg.NATBlocked
	}
	for _, a := range Outside(states, found) {
		add(a)
	}
	for _, a := range local {
		add(netip.AddrPortFrom(a, port))
	}
	return o
}

// Outside returns the addresses at which peers may reach this node from outside, most reliable first: what its router opened,
// then what relays and servers see. If a NAT shows them different ports, only those seen by relays count, if there are any: a
// NAT soon forgets the others.
func Outside(states []relay.State, found scout.Report) []netip.AddrPort {
	all := found.Opened()
	_, seen := Servers(states)
	byRelay := slices.ContainsFunc(seen, is4)
	every := seenBy(states, found)
	first := slices.IndexFunc(every, is4)
	several := first >= 0 && slices.ContainsFunc(every[first+1:], is4)
	for _, a := range every {
		forgotten := several && byRelay && is4(a) && !slices.Contains(seen, a)
		if !forgotten && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

func is4(a netip.AddrPort) bool { return a.Addr().Is4() }

// seenBy returns the addresses at which relays see this node, then those at which STUN servers do.
func seenBy(states []relay.State, found scout.Report) []netip.AddrPort {
	_, seen := Servers(states)
	for _, a := range found.STUN.Mapped() {
		if !slices.Contains(seen, a) {
			seen = append(seen, a)
		}
	}
	return seen
}

// witnessesOf returns an entry for each witness of this node's IPv4 mapping: the STUN servers that answered, and the relays
// that are not among them. Two ports of one relay count as two only if both answered.
func witnessesOf(states []relay.State, found scout.Report) (out []netip.AddrPort) {
	for _, a := range found.STUN.V4.Answers {
		if a.Mapped.IsValid() {
			out = append(out, a.Server)
		}
	}
	for _, s := range states {
		known := slices.ContainsFunc(out, func(a netip.AddrPort) bool {
			return slices.ContainsFunc(s.Addrs, func(b netip.AddrPort) bool { return a.Addr() == b.Addr() })
		})
		if s.Transport == relay.UDP && s.Seen.Addr().Unmap().Is4() && !known {
			out = append(out, s.Seen)
		}
	}
	return out
}

// Servers returns addresses to query by STUN, and the addresses at which the relays see this node. It takes two witnesses to
// tell what kind of NAT is in between: a single relay is queried at both of its ports.
func Servers(states []relay.State) (servers, seen []netip.AddrPort) {
	for _, s := range states {
		for _, six := range []bool{false, true} {
			i := slices.IndexFunc(s.Addrs, func(a netip.AddrPort) bool { return a.Addr().Is6() == six })
			if i >= 0 && !slices.Contains(servers, s.Addrs[i]) {
				servers = append(servers, s.Addrs[i])
			}
		}
		a := netip.AddrPortFrom(s.Seen.Addr().Unmap(), s.Seen.Port())
		if s.Transport == relay.UDP && a.IsValid() && !slices.Contains(seen, a) {
			seen = append(seen, a)
		}
	}
	if i := slices.IndexFunc(servers, func(a netip.AddrPort) bool { return a.Addr().Is4() }); i >= 0 && len(states) == 1 {
		servers = append(servers, netip.AddrPortFrom(servers[i].Addr(), relay.NextPort(servers[i].Port())))
	}
	return servers, seen
}

// class returns what kind of NAT the addresses seen by others point to. IPv6 is not translated. A single witness cannot tell
// whether another would see the same.
func class(local []netip.Addr, port uint16, seen []netip.AddrPort, witnesses int) pathmsg.NATClass {
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
	case len(mapped) == 1 && witnesses < 2:
		return pathmsg.NATUnknown
	case len(mapped) == 1:
		return pathmsg.NATEasy
	}
	return class
}
