package path

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

const (
	// stirEvery is the shortest time between two Stirs, and maxStirs the most for one silence of a peer.
	stirEvery = 250 * time.Millisecond
	maxStirs  = 3
	// keepEvery is how often a path that carries nothing else is kept open: less than the shortest timeout of NAT mappings.
	keepEvery = 25 * time.Second
	// maxKept is how many paths are kept open.
	maxKept = 2
	// firstPause is how long a single ping makes us expect no other after one that was not followed by any.
	firstPause = 10 * time.Second
)

// Keeping tells a Finder whether the current paths are the only way into this node: it is behind a NAT, no relay delivers to
// it, and its router opened no port.
type Keeping struct{ On bool }

func (Keeping) event() {}

// Stir asks for something to be sent to relays, because whatever is between this node and them may have forgotten it, or one of
// them may be gone.
type Stir struct{ Relay proto.NodeID } // 0 means all

func (Stir) effect() {}

// stir requests a Stir, unless one was requested recently.
func (f *Finder) stir() {
	if !f.stirred.IsZero() && f.now.Sub(f.stirred) < stirEvery {
		return
	}
	f.stirred = f.now
	f.out = append(f.out, Stir{})
}

// expect records a ping of the peer. A peer that sends and gets no answers keeps pinging, so it is known when the next ping is
// due. The first ping after a silence may be the result of what this node did about it.
func (p *pair) expect(now time.Time) {
	gap := now.Sub(p.asked)
	if gap < UsedEvery/2 {
		return // of the same moment, on another path
	}
	p.asked = now
	switch {
	case p.stirs > 0 && !p.again && now.Sub(p.missed) < checkEvery:
		if p.again = true; p.stirs < maxStirs {
			p.missing = now.Add(p.rhythm(stirEvery))
		}
	case gap < checkEvery:
		p.firsts = backoff{}
		p.missing, p.stirs, p.again = now.Add(p.rhythm(gap)), 0, false
	case p.current != nil && p.listens(now) && !now.Before(p.firsts.until):
		p.firsts.fail(now, firstPause) // it may be the first of many: the next one will tell
		p.missing, p.stirs, p.again = now.Add(p.rhythm(gap)), 0, false
	default:
		p.missing, p.stirs, p.again = time.Time{}, 0, false
	}
}

// listens reports whether all traffic between this node and the peer, as far as is known, goes to this node.
func (p *pair) listens(now time.Time) bool {
	return !p.awake || now.Sub(p.lastSent) > 2*UsedEvery && now.Sub(p.lastHeard) < 2*UsedEvery
}

// replied reports whether a ping that has just arrived is a reaction to one of ours: every node pings back when it is pinged
// after a while. If that made us expect more, two peers with nothing to say would ping each other forever.
func (p *pair) replied(now time.Time, from Way) bool {
	c := p.at(from)
	return c != nil && now.Sub(c.ping) < c.rtt+c.rtt/2+UsedEvery/2
}

// rhythm returns the longest gap between the pings of a peer that sends and hears nothing: its patience starts over with each
// Pong, and it checks every UsedEvery. For the round trip through a relay, the last gap is the only evidence. Either may be late.
func (p *pair) rhythm(gap time.Duration) time.Duration {
	const late = UsedEvery + UsedEvery/2
	if c := p.current; c != nil {
		return c.rtt + c.patience() + 2*UsedEvery + late
	}
	return gap + gap/2 + late
}

// miss handles a peer whose pings have stopped. It may have nothing more to send, or the NAT in front of this node may have
// dropped its mapping, and then only this node can open the path again.
func (f *Finder) miss(p *pair) {
	if p.missing.IsZero() || f.now.Before(p.missing) {
		return
	}
	p.missing = time.Time{}
	if p.awake && f.now.Sub(p.lastHeard) < 2*UsedEvery {
		p.missing = p.lastHeard.Add(2 * UsedEvery) // it is not silent
		return
	}
	c := p.current
	if c != nil && p.stirs > 0 && !c.pong.Before(p.missed) && !p.asked.After(p.missed) {
		return // the path works: the peer has nothing to send
	}
	f.stir()
	if c != nil && !p.waitsFor(c.way()) {
		f.ping(p, c.way())
	}
	p.missed, p.again = f.now, false
	if p.stirs++; p.stirs < maxStirs {
		p.missing = f.now.Add(stirEvery)
	}
}

// leaves handles a peer that moved to another relay. The relay that it left may be gone for this node as well.
func (f *Finder) leaves(p *pair, to proto.NodeID) {
	if p.relay != 0 && to != 0 && p.relay != to {
		f.out = append(f.out, Stir{p.relay})
	}
}

// missesRelay reports whether no answer came through the relay in time.
func (p *pair) missesRelay(now time.Time) bool {
	patience := max(p.relayRTT+p.relayRTT/4, 40*time.Millisecond) + 40*time.Millisecond
	return !p.unanswered.IsZero() && now.Sub(p.unanswered) >= patience
}

// askRelay pings through the relay if that is the only path and no answers come.
func (f *Finder) askRelay(p *pair) {
	way := Way{Relay: p.relay}
	if !p.awake || p.relay == 0 || !p.missesRelay(f.now) || p.waitsFor(way) {
		return
	}
	if p.relayAsked.After(p.relayPong) {
		f.stir() // the last ping went unanswered, too
	}
	p.relayAsked = f.now
	f.ping(p, way)
}

// keep keeps open the paths to the peers heard most recently. It sends a Pong that belongs to no Ping: nobody answers that.
func (f *Finder) keep() {
	if f.keepAt.IsZero() || f.now.Before(f.keepAt) {
		return
	}
	f.keepAt = f.now.Add(keepEvery)
	var kept []*pair
	for _, p := range f.peers {
		if c := p.current; c != nil && !p.awake && !f.near(c.addr.Addr()) {
			kept = append(kept, p)
		}
	}
	slices.SortFunc(kept, func(a, b *pair) int { return cmp.Or(b.lastHeard.Compare(a.lastHeard), cmp.Compare(a.id, b.id)) })
	for _, p := range kept[:min(len(kept), maxKept)] {
		f.out = append(f.out, Send{p.id, p.current.way(), pathmsg.Pong{Observed: p.current.addr}})
	}
}

// near reports whether an address is on one of this host's networks, with no router in between.
func (f *Finder) near(a netip.Addr) bool {
	return slices.ContainsFunc(f.local, func(p netip.Prefix) bool { return p.Contains(a) })
}

// keeping turns keeping on or off.
func (f *Finder) keeping(on bool) {
	switch {
	case !on:
		f.keepAt = time.Time{}
	case f.keepAt.IsZero():
		f.keepAt = f.now.Add(keepEvery)
	}
}
