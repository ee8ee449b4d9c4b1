package path

import (
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// A node that gets another address, or another port at its NAT, tells the peers that it was just talking with: a peer that only
// sends would first have to miss answers, and its NAT admits nothing from an address that it never sent to.
//
//	this node                          the peer that sends
//	its address changes
//	its relays see it elsewhere
//	    Offer, through the relay  -->  the current path is in doubt: packets go through the relay as well
//	    Pongs                     <--  Pings, to all addresses of the Offer

// offerEvery is the shortest time between Offers: changes of one moment are announced together.
const offerEvery = 10 * time.Millisecond

// offering handles a change of what peers are told about this node.
func (f *Finder) offering(o pathmsg.Offer) {
	if !slices.Equal(o.Candidates, f.own.Candidates) && f.tellAt.IsZero() && len(f.own.Candidates) > 0 {
		f.tellAt = f.now.Add(offerEvery)
	}
	f.own = o
}

// tell announces where this node is to the peers that it was just talking with.
func (f *Finder) tell() {
	if f.tellAt.IsZero() || f.now.Before(f.tellAt) {
		return
	}
	f.tellAt = time.Time{}
	for _, p := range f.sorted() {
		if talks := f.now.Sub(p.lastHeard) < restAfter || f.now.Sub(p.asked) < restAfter; talks && p.relay != 0 {
			f.out = append(f.out, Send{p.id, Way{Relay: p.relay}, f.own})
		}
	}
}

// gotOffer handles an announcement of where else a peer may be. The peer sends it because it is looking for us or has moved:
// pings from both sides open the NATs in between.
func (f *Finder) gotOffer(p *pair, m pathmsg.Offer) {
	if f.now.Sub(p.offered) < offerEvery {
		return
	}
	p.offered = f.now
	p.outside = netip.AddrPort{}
	var fresh bool
	for nth, a := range m.Candidates {
		if f.bounds.Check(a) == nil {
			known := p.all[a] != nil
			p.learn(f.now, a, nth)
			fresh = fresh || !known && p.all[a] != nil // unless there are more than are kept
			if a.Addr().Is4() && !p.outside.IsValid() {
				p.outside = a
			}
		}
	}
	p.peerNAT = m.NAT
	if p.current != nil && !p.doubted {
		f.elsewhere(p, fresh, m.Candidates)
	} else if p.calls(f.now) {
		p.search(f.now)
		f.run(p)
	}
}

// elsewhere handles an announcement of a peer's addresses. A peer with new addresses, none of which is the current path's, has
// moved.
func (f *Finder) elsewhere(p *pair, fresh bool, said []netip.AddrPort) {
	c := p.current
	if !fresh || !p.awake || c != nil && (slices.Contains(said, c.addr) || !p.calls(f.now)) {
		return
	}
	if c != nil && !p.doubted {
		p.doubt(f.now, "the peer's addresses changed")
	}
	p.search(f.now)
	f.run(p)
}
