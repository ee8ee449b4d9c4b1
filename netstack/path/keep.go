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
	// stirEvery is how often a node's own way out is doubted at most, and maxStirs how often for one silence of a peer.
	stirEvery = 250 * time.Millisecond
	maxStirs  = 3
	// keepEvery is how often a way is kept open that nothing else keeps so: less than the shortest time after which NATs forget.
	keepEvery = 25 * time.Second
	// maxKept is how many ways are.
	maxKept = 2
	// firstPause is how long a ping alone has no other one expected where none came after the last such one.
	firstPause = 10 * time.Second
)

// Keeping says whether the ways in use are this node's only ones in: it is behind a NAT, no relay brings anything to it, and
// its router opened no port.
type Keeping struct{ On bool }

func (Keeping) event() {}

// Stir says that what is between this node and its relays may have forgotten it, or that one of them may be gone: it should say
// something to them.
type Stir struct{ Relay proto.NodeID } // 0: to all

func (Stir) effect() {}

// stir asks for a Stir, if none was lately.
func (f *Finder) stir() {
	if !f.stirred.IsZero() && f.now.Sub(f.stirred) < stirEvery {
		return
	}
	f.stirred = f.now
	f.out = append(f.out, Stir{})
}

// expect notes a ping of the peer. One that sends and gets no answers pings all the time: from that follows when the next one should
// have come. The first one after a silence may be the answer to what this node did about that.
func (p *pair) expect(now time.Time) {
	gap := now.Sub(p.asked)
	if gap < UsedEvery/2 {
		return // another one of the same moment, by another way
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
		p.firsts.fail(now, firstPause) // it may be the first of many: the next one tells
		p.missing, p.stirs, p.again = now.Add(p.rhythm(gap)), 0, false
	default:
		p.missing, p.stirs, p.again = time.Time{}, 0, false
	}
}

// listens says that what goes on between this node and the peer, as far as is known, goes to this node only.
func (p *pair) listens(now time.Time) bool {
	return !p.awake || now.Sub(p.lastSent) > 2*UsedEvery && now.Sub(p.lastHeard) < 2*UsedEvery
}

// replied says that a ping that came just now is to one of ours, as everyone sends it who is pinged after a while. If more were expected
// of it, two peers with nothing to say would ask each other for ever.
func (p *pair) replied(now time.Time, from Way) bool {
	c := p.at(from)
	return c != nil && now.Sub(c.ping) < c.rtt+c.rtt/2+UsedEvery/2
}

// rhythm is how far apart the pings are at most of a peer that sends and hears nothing: its patience begins anew with each Pong, and
// it looks every UsedEvery. Of how long a Pong takes through a relay, only the last gap tells. Either may be late.
func (p *pair) rhythm(gap time.Duration) time.Duration {
	const late = UsedEvery + UsedEvery/2
	if c := p.current; c != nil {
		return c.rtt + c.patience() + 2*UsedEvery + late
	}
	return gap + gap/2 + late
}

// miss is for a peer whose pings have stopped. It may have nothing more to send; or the NAT in front of this node has forgotten
// it, and then nobody but this node can open the way again.
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
		return // it leads to the peer, which has nothing to send
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

// leaves is for a peer that waits at another relay now. The one that it left may be gone, for this node as well.
func (f *Finder) leaves(p *pair, to proto.NodeID) {
	if p.relay != 0 && to != 0 && p.relay != to {
		f.out = append(f.out, Stir{p.relay})
	}
}

// missesRelay says that no answer came through the relay in time.
func (p *pair) missesRelay(now time.Time) bool {
	patience := max(p.relayRTT+p.relayRTT/4, 40*time.Millisecond) + 40*time.Millisecond
	return !p.unanswered.IsZero() && now.Sub(p.unanswered) >= patience
}

// askRelay pings through the relay that is the only way, where no answers come.
func (f *Finder) askRelay(p *pair) {
	way := Way{Relay: p.relay}
	if !p.awake || p.relay == 0 || !p.missesRelay(f.now) || p.waitsFor(way) {
		return
	}
	if p.relayAsked.After(p.relayPong) {
		f.stir() // the last ping is without an answer, too
	}
	p.relayAsked = f.now
	f.ping(p, way)
}

// keep keeps the ways open to who was heard last. What it sends is a Pong to no Ping: nobody answers that.
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

// near says that there is no router on the way to an address.
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
