package path

import (
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// A node that has other addresses, or another port at its NAT, tells who was just talking with it: a peer that only sends would
// miss answers first, and the peer's NAT lets nothing in from where it never sent to.
//
//	this node                          the peer that sends
//	its address changes
//	its relays see it elsewhere
//	    Offer, through the relay  -->  the way in use is in doubt: packets go through the relay as well
//	    Pongs                     <--  Pings, to all addresses of the Offer

// offerEvery is how close Offers come at most: changes of one moment are told together.
const offerEvery = 10 * time.Millisecond

// offering takes what peers are told of this node.
func (f *Finder) offering(o pathmsg.Offer) {
	if !slices.Equal(o.Candidates, f.own.Candidates) && f.tellAt.IsZero() && len(f.own.Candidates) > 0 {
		f.tellAt = f.now.Add(offerEvery)
	}
	f.own = o
}

// tell says to who talked with this node just now where it is.
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

// gotOffer takes where else a peer may be. That it asks means that it looks for us now, or has moved: pings from both sides open
// what is between.
func (f *Finder) gotOffer(p *pair, m pathmsg.Offer) {
	if f.now.Sub(p.offered) < offerEvery {
		return
	}
	p.offered = f.now
	p.outside = netip.AddrPort{}
	var fresh bool
	for _, a := range m.Candidates {
		if f.bounds.Check(a) == nil {
			fresh = fresh || p.all[a] == nil
			p.learn(f.now, a)
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

// elsewhere follows what was said of where a peer is. One that has new addresses, of which the way in use leads to none, has moved.
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
