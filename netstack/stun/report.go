package stun

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Behaviour is how much of the other end a NAT looks at (RFC 4787, sections 4.1 and 5).
type Behaviour uint8

// The behaviours, from the easiest to the hardest.
const (
	Untold                  Behaviour = iota // no server could tell
	Untranslated                             // there is no NAT
	EndpointIndependent                      // one mapping for all; whoever knows it gets in
	AddressDependent                         // one for each address spoken to
	AddressAndPortDependent                  // one for each address and port spoken to
	Dependent                                // one of the last two: no server could tell which
)

var behaviours = [...]string{
	"unknown", "none", "endpoint-independent", "address-dependent", "address-and-port-dependent", "dependent",
}

// String names a behaviour as RFC 4787 does.
func (b Behaviour) String() string {
	if int(b) >= len(behaviours) {
		return fmt.Sprintf("Behaviour(%d)", uint8(b))
	}
	return behaviours[b]
}

// Report is what is known of a socket.
type Report struct {
	V4, V6 Family
	Done   bool // nothing is asked any more
}

// Family is what is known of a socket in one address family. The zero value knows nothing.
type Family struct {
	Answers   []Answer // one a server that was asked
	Mapping   Behaviour
	Filtering Behaviour
	Hairpin   Fact // the NAT turns packets to its own outside addresses around
}

// Fact is something that is so, or not, or that nobody looked at.
type Fact uint8

// The facts.
const (
	Untested Fact = iota
	No
	Yes
)

// String says it in a word.
func (f Fact) String() string { return [...]string{"unknown", "no", "yes"}[f] }

// Answer is what one server said.
type Answer struct {
	Server netip.AddrPort
	Mapped netip.AddrPort // invalid: it did not answer
	RTT    time.Duration
}

// Mapped are the addresses that the socket is seen with, each once.
func (f Family) Mapped() []netip.AddrPort {
	var all []netip.AddrPort
	for _, a := range f.Answers {
		if a.Mapped.IsValid() && !slices.Contains(all, a.Mapped) {
			all = append(all, a.Mapped)
		}
	}
	return all
}

// Mapped are the addresses of both families.
func (r Report) Mapped() []netip.AddrPort { return append(r.V4.Mapped(), r.V6.Mapped()...) }

// clone keeps a report that was given away from changing.
func (r Report) clone() Report {
	r.V4.Answers, r.V6.Answers = slices.Clone(r.V4.Answers), slices.Clone(r.V6.Answers)
	return r
}
