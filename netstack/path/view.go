package path

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// View is how things stand with a peer.
type View struct {
	Way   Way           // zero: none is known
	Since time.Time     // zero: it was never used
	RTT   time.Duration // of the last Pong; zero: not known
	Doubt bool          // packets go both ways
	// Punched says that the port of a NAT was guessed for it.
	Punched bool
	// MTU is how large a packet may be that arrives, inside the tunnel; 0: that is not known (yet). Fragments says that
	// it does so in fragments.
	MTU       int
	Fragments bool
	// Cause says why the way is not direct, or in doubt, in a word for programs, and Why in words for people. They are empty
	// where it is neither.
	Cause Cause
	Why   string
}

// Cause is why a way is not direct, or in doubt.
type Cause string

// The causes.
const (
	Unsent       Cause = "unsent"            // nothing was sent yet
	Looking      Cause = "looking"           // the first tries are not over
	NoAddress    Cause = "no-address"        // the peer has told of none
	NoFamily     Cause = "no-common-family"  // one has only IPv4, the other one only IPv6
	BlockedHere  Cause = "udp-blocked-here"  // no UDP gets out of this node's network
	BlockedThere Cause = "udp-blocked-there" // nor out of the peer's
	HardNATs     Cause = "hard-nats"         // on both sides: neither can know the other one's port
	NoAnswer     Cause = "no-answer"         // none of the peer's addresses answers
	InDoubt      Cause = "in-doubt"          // the direct way may be none any more
)

// View tells how things stand with a peer; false where it is not known.
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

// reason says why there is no direct way.
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

// addresses says at how many the peer may be.
func (p *pair) addresses() string {
	if len(p.all) == 1 {
		return "its only address"
	}
	return fmt.Sprintf("its %d addresses", len(p.all))
}

// nats says what is known of the NATs of the two sides.
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

// families are the kinds of addresses that there are.
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
