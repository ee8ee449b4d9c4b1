package path

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// View is the state of the path to a peer.
type View struct {
	Way   Way           // zero if none is known
	Since time.Time     // zero if it was never used
	RTT   time.Duration // of Pongs; zero if not known
	Doubt bool          // packets take both paths
	// Punched means that the path was found by guessing the port of a NAT.
	Punched bool
	// MTU is the largest packet that gets through, inside the tunnel; 0 if it is not known (yet). Fragments means that it gets
	// through in fragments.
	MTU       int
	Fragments bool
	// Cause says why the path is not direct, or in doubt, for programs to read, and Why says it for people. Both are empty for
	// a direct path that is not in doubt.
	Cause Cause
	Why   string
}

// Cause is why a path is not direct, or in doubt.
type Cause string

// The causes.
const (
	Unsent       Cause = "unsent"            // nothing was sent yet
	Looking      Cause = "looking"           // the first attempts are not over
	NoAddress    Cause = "no-address"        // the peer announced none
	NoFamily     Cause = "no-common-family"  // one has only IPv4, the other only IPv6
	BlockedHere  Cause = "udp-blocked-here"  // no UDP gets out of this node's network
	BlockedThere Cause = "udp-blocked-there" // or out of the peer's
	HardNATs     Cause = "hard-nats"         // on both sides: neither can know the other's port
	NoAnswer     Cause = "no-answer"         // none of the peer's addresses answers
	InDoubt      Cause = "in-doubt"          // the direct path may no longer work
)

// View returns the state of the path to a peer; false if the peer is not known.
func (f *Finder) View(id proto.NodeID) (View, bool) {
	p := f.peers[id]
	if p == nil {
		return View{}, false
	}
	v := View{Since: p.since, Doubt: p.doubted}
	if _, s, _ := p.inUse(); s != nil {
		v.MTU, v.Fragments = s.limit, s.split
	}
	switch {
	case p.current != nil:
		v.Way, v.RTT = p.current.way(), p.current.rtt
		v.Punched = p.current.punched
		if p.doubted {
			v.Cause, v.Why = InDoubt, p.why
		}
		return v, true
	case p.relay != 0:
		v.Way, v.RTT = Way{Relay: p.relay}, p.relayRTT
	}
	v.Cause, v.Why = p.reason(&f.own)
	if why := f.punchReason(p); why != "" && v.Cause == NoAnswer {
		v.Why = why
	}
	if p.why != "" {
		v.Why = "the direct way stopped answering; " + v.Why
	}
	if p.relay == 0 && v.Cause != Unsent {
		v.Why += "; and it waits at no relay"
	}
	return v, true
}

// reason returns why there is no direct path.
func (p *pair) reason(own *pathmsg.Offer) (Cause, string) {
	switch {
	case p.began.IsZero():
		return Unsent, "nothing was sent yet"
	case len(p.all) == 0:
		return NoAddress, "the peer has told of no address"
	case p.rounds < len(rounds):
		return Looking, "still looking, at " + p.addresses()
	case own.NAT == pathmsg.NATBlocked && p.peerNAT == pathmsg.NATBlocked:
		return BlockedHere, "UDP is blocked here and there"
	case own.NAT == pathmsg.NATBlocked:
		return BlockedHere, "UDP is blocked here"
	case p.peerNAT == pathmsg.NATBlocked:
		return BlockedThere, "UDP is blocked there"
	}
	var here, there families
	for _, a := range own.Candidates {
		here.add(a.Addr())
	}
	for a := range p.all {
		there.add(a.Addr())
	}
	if here != (families{}) && !here.meet(there) {
		return NoFamily, "it has only " + there.String() + " addresses, and this machine only " + here.String()
	}
	if own.NAT == pathmsg.NATHard && p.peerNAT == pathmsg.NATHard {
		return HardNATs, "hard NAT here and hard NAT there"
	}
	again := "tried again with the next packet"
	if p.awake {
		again = fmt.Sprintf("tried every %.0f s", roundEvery.Seconds())
	}
	return NoAnswer, "no answer from " + p.addresses() + nats(own.NAT, p.peerNAT) + ", " + again
}

// addresses describes how many addresses the peer may have.
func (p *pair) addresses() string {
	if len(p.all) == 1 {
		return "its only address"
	}
	return fmt.Sprintf("its %d addresses", len(p.all))
}

// nats describes what is known about the NATs of the two sides.
func nats(here, there pathmsg.NATClass) string {
	var known []string
	for _, side := range []struct {
		class pathmsg.NATClass
		where string
	}{{here, "here"}, {there, "there"}} {
		switch side.class {
		case pathmsg.NATNone:
			known = append(known, "no NAT "+side.where)
		case pathmsg.NATEasy, pathmsg.NATHard:
			known = append(known, side.class.String()+" NAT "+side.where)
		}
	}
	if len(known) == 0 {
		return ""
	}
	return " (" + strings.Join(known, ", ") + ")"
}

// families is the set of address families in use.
type families struct{ v4, v6 bool }

func (s *families) add(a netip.Addr) {
	s.v4, s.v6 = s.v4 || a.Is4(), s.v6 || a.Is6()
}

func (s families) meet(o families) bool { return s.v4 && o.v4 || s.v6 && o.v6 }

func (s families) String() string {
	if s.v4 {
		return "IPv4"
	}
	return "IPv6"
}
