package netcheck

import (
	"fmt"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/stun"
)

// Line is one finding: what it is about, and the text.
type Line struct{ About, Text string }

// Words describes the findings.
func (r Report) Words() []Line {
	lines := []Line{{"UDP", r.udp()}, {"IPv4", family(r.STUN.V4, "")}, {"IPv6", r.v6()}, {"Port mapping", r.mapping()}}
	if text := r.mapping6(); text != "" {
		lines = append(lines, Line{"", text})
	}
	lines = append(lines, Line{"MTU", r.mtu()})
	for i, p := range r.Paths {
		about := ""
		if i == 0 {
			about = "Peers"
		}
		lines = append(lines, Line{about, p.words()})
	}
	for i, x := range r.Relays {
		about := ""
		if i == 0 {
			about = "Relays"
		}
		lines = append(lines, Line{about, x.words()})
	}
	return lines
}

func (r Report) udp() string {
	switch r.Kind {
	case Blocked:
		return "blocked: no relay answers"
	case Unknown:
		return "unknown: there is no relay or STUN server to ask"
	}
	return "gets out"
}

// family describes how a family is seen from outside.
func family(f stun.Family, none string) string {
	if none != "" {
		return none
	}
	mapped := f.Mapped()
	if len(f.Answers) == 0 {
		return "nobody to ask"
	}
	if len(mapped) == 0 {
		return "no answer"
	}
	var all []string
	for _, a := range mapped {
		all = append(all, a.String())
	}
	text := strings.Join(all, ", ")
	switch f.Mapping {
	case stun.Untranslated:
		text += ", no NAT"
	case stun.EndpointIndependent:
		text += ", behind an easy NAT: same external port for all peers"
	case stun.Untold:
		text += ", behind a NAT of unknown kind: it takes two relays to tell"
	default:
		text += ", behind a hard NAT: different external port for each peer"
	}
	switch f.Filtering {
	case stun.EndpointIndependent:
		text += "; it admits packets from anyone"
	case stun.AddressDependent:
		text += "; it admits packets from addresses that were sent to"
	case stun.AddressAndPortDependent:
		text += "; it admits packets only from ports that were sent to"
	}
	if f.Hairpin == stun.Yes {
		text += "; hairpinning works"
	}
	return text
}

func (r Report) v6() string {
	switch {
	case !r.Local6:
		return "this machine has no global address"
	case !r.Asked6:
		return "this machine has an address; no relay to ask"
	}
	return family(r.STUN.V6, "")
}

func (r Report) mapping() string {
	s := r.Router
	if !s.External.IsValid() {
		if s.Problem == "" {
			return "not looked at"
		}
		return "none: " + s.Problem
	}
	text := fmt.Sprintf("%s by %s", s.External, s.Protocol)
	if r.shared() {
		text += "; but there is another NAT in front of this router"
	}
	return text
}

// mapping6 describes port mapping over IPv6; empty if no router was asked or this machine has no global IPv6 address.
func (r Report) mapping6() string {
	switch s := r.Router6; {
	case s.External.IsValid():
		return fmt.Sprintf("over IPv6 %s by %s", s.External, s.Protocol)
	case s.Problem != "" && r.Local6:
		return "over IPv6 none: " + s.Problem
	}
	return ""
}

func (p Path) words() string {
	text := fmt.Sprintf("%s  %d bytes inside the tunnel, %s %s", p.Peer, p.MTU, p.Way, p.Endpoint)
	if p.Fragments {
		text += ", in fragments"
	}
	return text
}

func (r Report) mtu() string {
	if r.MTU == 0 {
		return "unknown"
	}
	n, _ := r.nearest()
	return fmt.Sprintf("%d bytes to relay %s", r.MTU, n.Name)
}

func (x Relay) words() string {
	text := x.Name
	if x.Region != "" {
		text += " (" + x.Region + ")"
	}
	way := func(name string, d time.Duration) string {
		if d == 0 {
			return name + " no answer"
		}
		return fmt.Sprintf("%s %.1f ms", name, float64(d)/float64(time.Millisecond))
	}
	if x.Asked {
		text += "  " + way("UDP", x.UDP)
	}
	text += "  " + way("TCP", x.TCP)
	if x.MTU != 0 {
		text += fmt.Sprintf("  MTU %d", x.MTU)
	}
	return text
}

// Advice says what would help, the most helpful first. It is empty if peers reach this machine as well as possible.
func (r Report) Advice() []string {
	var all []string
	say := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	_, relay := r.nearest()
	switch {
	case len(r.Relays) == 0:
		say("No relay is known: peers that cannot reach each other directly cannot communicate. The coordinator includes a relay unless that is turned off.")
	case !relay:
		say("No relay answers, by UDP or by TCP: allow outbound UDP port 3478 or TCP port 443 to them.")
	case r.Kind == Blocked:
		say("Allow outbound UDP: all traffic goes through relays by TCP now, which is slow. UDP port 3478 to the relays helps; all UDP helps more.")
	}
	mapped := r.Router.External.IsValid() && !r.shared()
	if r.Kind == Hard && !mapped {
		say("Behind this NAT, only peers with easy NATs or none can be reached directly. Turn on UPnP, NAT-PMP or PCP in the router, or forward a UDP port to this machine (redoubt agent --listen-port).")
	}
	if r.shared() {
		say("The provider shares an address among customers (CGNAT): opening ports in the router does not help. IPv6 or a public address from the provider does.")
	}
	if r.Kind == Some && len(r.Relays) < 2 {
		say("A second relay would show what kind of NAT this is, and could replace the first one if it fails.")
	}
	if (r.Kind == Hard || r.shared()) && r.Local6 && r.Asked6 && len(r.STUN.V6.Mapped()) == 0 {
		say("This machine has an IPv6 address, but gets no answer over IPv6. If it worked, no NAT would be in the way.")
	}
	if r.MTU != 0 && r.MTU < 1280+60 {
		say("Packets of more than %d bytes do not get through: something on the path, such as another tunnel, has a smaller MTU.", r.MTU)
	}
	return all
}
