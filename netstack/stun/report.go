package stun

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Behaviour classifies how much a NAT's mapping or filtering depends on the remote endpoint (RFC 4787, sections 4.1 and 5).
type Behaviour uint8

// The behaviours, from the most to the least permissive.
const (
	Untold                  Behaviour = iota // no server could tell
	Untranslated                             // there is no NAT
	EndpointIndependent                      // one mapping for all; whoever knows it gets in
	AddressDependent                         // one mapping per remote address
	AddressAndPortDependent                  // one mapping per remote address and port
	Dependent                                // one of the last two; no server could tell which
)

var behaviours = [...]string{
	"unknown", "none", "endpoint-independent", "address-dependent", "address-and-port-dependent", "dependent",
}

// String returns the name that RFC 4787 gives the behaviour.
func (b Behaviour) String() string {
	if int(b) >= len(behaviours) {
		return fmt.Sprintf("Behaviour(%d)", uint8(b))
	}
	return behaviours[b]
}

// Report is what is known about a socket.
type Report struct {
	V4, V6 Family
	Done   bool // no more requests are sent
}

// Family is what is known about a socket in one address family. The zero value means nothing is known.
type Family struct {
	Answers   []Answer // one per server asked
	Mapping   Behaviour
	Filtering Behaviour
	Hairpin   Fact // whether the NAT forwards packets sent to its own external addresses
}

// Fact is the result of a yes-or-no test.
type Fact uint8

// The possible results.
const (
	Untested Fact = iota
	No
	Yes
)

// String returns the result as a word.
func (f Fact) String() string { return [...]string{"unknown", "no", "yes"}[f] }

// Answer is the answer of one server.
type Answer struct {
	Server netip.AddrPort
	Mapped netip.AddrPort // invalid if the server did not answer
	RTT    time.Duration
}

// Mapped returns the addresses at which servers see the socket, without duplicates.
func (f Family) Mapped() []netip.AddrPort {
	var all []netip.AddrPort
	for _, a := range f.Answers {
		if a.Mapped.IsValid() && !slices.Contains(all, a.Mapped) {
			all = append(all, a.Mapped)
		}
	}
	return all
}

// Mapped returns the addresses of both families.
func (r Report) Mapped() []netip.AddrPort { return append(r.V4.Mapped(), r.V6.Mapped()...) }

// clone returns a copy that later changes to r do not affect.
func (r Report) clone() Report {
	r.V4.Answers, r.V6.Answers = slices.Clone(r.V4.Answers), slices.Clone(r.V6.Answers)
	return r
}
