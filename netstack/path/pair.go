package path

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// pair is what this node knows of the ways to one peer.
type pair struct {
	id        proto.NodeID
	relay     proto.NodeID // where the peer waits; 0: nowhere
	endpoints []proto.Endpoint
	told      []netip.AddrPort // the candidates of the netmap, best first
	all       map[netip.AddrPort]*candidate
	peerNAT   pathmsg.NATClass
	outside   netip.AddrPort // where the peer's NAT shows it, as its last Offer says

	current   *candidate // the direct way in use; nil: none
	doubted   bool       // the way in use may be none any more
	doubtedAt time.Time  // since when: what it answered to before proves nothing
	followed  int        // how often it changed between ports of one address
	beside    *candidate // where the peer was just seen, and may have moved
	since     time.Time  // of the way in use
	why       string     // the way in use is in doubt, or was lost

	awake      bool
	lastSent   time.Time
	lastHeard  time.Time
	unanswered time.Time // since when packets went out with none coming back; zero: they do not
	answering  time.Time
	answers    int
	offered    time.Time // when the peer's last Offer was taken
	calling    time.Time // since when its calls are counted
	called     int
	asked      time.Time // when the peer pinged last
	firsts     backoff   // of pings of which one alone has another one expected
	missing    time.Time // when its next ping should have come; zero: it need not
	missed     time.Time // when something was done about that
	stirs      int       // how often it was
	again      bool      // it has pinged since

	began  time.Time // of the search
	rounds int       // of it that are over
	round  time.Time // the next one afterwards; zero: none
	probes []probe

	punched *candidate // the way by a socket of its own; nil: none
	opens   backoff    // of punches as the opener
	guesses backoff    // as the guesser

	// relayAsked is when it was asked for a Pong through the relay last, since nothing else came.
	relayAsked time.Time
	relayRTT   time.Duration
	relayPong  time.Time // zero: it was never proved
	relaySizes search
	sized      []sized
	fits       Fit

	route Route
	said  bool
	next  time.Time
	place int // in the heap, from 1; 0: it is not there
}

// candidate is an address where a peer may be.
type candidate struct {
	addr    netip.AddrPort
	socket  uint32    // of its own; 0: it is none of all
	punched bool      // it was guessed, or is where the peer guessed
	told    bool      // by the netmap
	learned time.Time // else: when the peer was last seen there, or said so
	ping    time.Time // the last one
	pong    time.Time // the last one; zero: it was never proved
	heard   time.Time // when a packet or a ping of the peer came from there last, of those that are told of
	met     time.Time // when packets came from there last while others went there
	rtt     time.Duration
	sizes   search
	missed  int // pings in a row without an answer, of those that were sent while it was in use
}

// probe is a ping that waits for its Pong.
type probe struct {
	id  pathmsg.TxID
	to  Way
	at  time.Time
	due time.Time // when it counts as not answered

	late bool // it does
}

// way is how messages get there.
func (c *candidate) way() Way { return Way{Addr: c.addr, Socket: c.socket} }

// at is the candidate that a direct way leads to; nil: none.
func (p *pair) at(w Way) *candidate {
	switch {
	case w.Socket == 0:
		return p.all[w.Addr]
	case p.punched != nil && p.punched.way() == w:
		return p.punched
	}
	return nil
}

// searches says that the first rounds of a search are not over.
func (p *pair) searches() bool { return p.rounds < len(rounds) && !p.began.IsZero() }

// calls says whether an Offer may begin a search, as far as one does not go on anyway.
func (p *pair) calls(now time.Time) bool {
	if p.searches() {
		return true
	}
	if now.Sub(p.calling) >= callsIn {
		p.calling, p.called = now, 0
	}
	p.called++
	return p.called <= maxCalls
}

// search begins to try all candidates, unless that has just begun.
func (p *pair) search(now time.Time) {
	if p.searches() {
		return
	}
	p.began, p.rounds, p.round = now, 0, time.Time{}
}

// learn notes where a peer may be as well.
func (p *pair) learn(now time.Time, a netip.AddrPort) *candidate {
	c := p.all[a]
	if c == nil {
		c = &candidate{addr: a}
		p.all[a] = c
	}
	c.learned = now
	p.forget()
	return c
}

// forget drops addresses that nobody told of and where the peer was seen longest ago.
func (p *pair) forget() {
	var learned []*candidate
	for _, c := range p.all {
		if !c.told && c != p.current && c != p.beside {
			learned = append(learned, c)
		}
	}
	if len(learned) <= maxLearned {
		return
	}
	slices.SortFunc(learned, func(a, b *candidate) int {
		return cmp.Or(b.learned.Compare(a.learned), b.pong.Compare(a.pong), a.addr.Compare(b.addr))
	})
	for _, c := range learned[maxLearned:] {
		delete(p.all, c.addr)
	}
}

// list are the candidates, best first.
func (p *pair) list(local []netip.Prefix) []*candidate {
	out := make([]*candidate, 0, len(p.all))
	for _, c := range p.all {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *candidate) int {
		return cmp.Or(cmp.Compare(class(local, a.addr.Addr()), class(local, b.addr.Addr())), a.addr.Compare(b.addr))
	})
	return out
}

// class is low for what is near.
func class(local []netip.Prefix, a netip.Addr) int { return rank(local, a, proto.EndpointInterface) }

// expire counts the pings that were not answered in time.
func (p *pair) expire(now time.Time) {
	p.probes = slices.DeleteFunc(p.probes, func(x probe) bool { return now.Sub(x.at) >= lateAfter })
	for i := range p.probes {
		x := &p.probes[i]
		if x.late || now.Before(x.due) {
			continue
		}
		x.late = true
		if c := p.at(x.to); c != nil && c == p.current && c.pong.Before(x.at) {
			c.missed++
		}
	}
	if b := p.beside; b != nil && !p.waitsFor(b.way()) {
		p.beside = nil
	}
}

func (p *pair) waitsFor(w Way) bool {
	return slices.ContainsFunc(p.probes, func(x probe) bool { return x.to == w && !x.late })
}

// answer notes a Pong.
func (c *candidate) answer(now time.Time, rtt time.Duration) {
	if c.pong.IsZero() || now.Sub(c.pong) > trustFor {
		c.rtt = rtt
	} else {
		c.rtt += (rtt - c.rtt) / 4
	}
	c.pong, c.missed = now, 0
}

// patience is how long packets may go out by a way without an answer before it is asked for one.
func (c *candidate) patience() time.Duration {
	return max(c.rtt+c.rtt/4, 20*time.Millisecond) + 40*time.Millisecond
}

// prefers says whether a candidate that has just answered is better than the way in use: nearer, or clearly faster, or the
// only one that works.
func (p *pair) prefers(c *candidate, local []netip.Prefix) bool {
	cur := p.current
	if cur == nil || p.doubted || cur.missed > 0 {
		return true
	}
	if !c.heard.IsZero() && c.heard.After(p.lastOn(cur)) && p.silentOn(cur, c) {
		return true // the peer speaks from there, and no more from where it was
	}
	if cur.besides(c) {
		return p.mayFollow() && c.heard.After(cur.met) || !p.mayFollow() && c.told && !cur.told
	}
	switch near, nearer := class(local, cur.addr.Addr()), class(local, c.addr.Addr()); {
	case nearer == 0 && near > 0:
		return c.rtt <= cur.rtt
	case near == 0 && nearer > 0:
		return false
	}
	return c.rtt+2*time.Millisecond < cur.rtt*8/10
}

// besides says whether another candidate is another port of the same address.
func (c *candidate) besides(other *candidate) bool {
	return c != other && c.addr.Addr() == other.addr.Addr()
}

// mayFollow says whether packets may follow the peer from a port that works to another one of the same address, from where its own
// come. Each destination may have a port of its own at the peer's NAT, and so does each new port of ours at the other one: then
// the peer's packets never come from where ours go, however often they follow. What lasts is the port that it told of, since it
// keeps that one open.
func (p *pair) mayFollow() bool { return p.followed < maxFollowed }

// settledAt says whether another port of a candidate's address is the way in use, and still proves to be one.
func (p *pair) settledAt(c *candidate, now time.Time) bool {
	cur := p.current
	if cur == nil || !cur.besides(c) || p.mayFollow() || (c.told && !cur.told) || p.doubted || cur.missed > 0 {
		return false
	}
	proved := now.Sub(cur.pong)
	silent := !p.unanswered.IsZero() && now.Sub(p.unanswered) >= cur.patience()
	return proved <= checkEvery/4 || proved <= checkEvery && !silent
}

// lastOn is when a way was last seen to work.
func (p *pair) lastOn(c *candidate) time.Time {
	if c.heard.After(c.pong) {
		return c.heard
	}
	return c.pong
}

// silentOn says whether packets go out by the way in use and none come back, where another one has just answered.
func (p *pair) silentOn(cur, other *candidate) bool {
	if cur.missed > 0 || !p.awake {
		return true
	}
	if p.mayFollow() || !cur.besides(other) {
		return !p.unanswered.IsZero() || p.waitsFor(cur.way())
	}
	// Packets may come from where none go to, so that only this counts: what was asked no later should have answered by now.
	return slices.ContainsFunc(p.probes, func(x probe) bool { return x.to == cur.way() && !x.late && !x.at.After(other.ping) })
}

// change makes a candidate the way in use.
func (p *pair) change(now time.Time, c *candidate) {
	if p.current != nil && p.current.besides(c) {
		p.followed++
	}
	p.current, p.doubted, p.beside, p.why, p.since = c, false, nil, "", now
	p.unanswered, c.missed = time.Time{}, 0
}

// trust ends a doubt.
func (p *pair) trust(now time.Time) {
	if p.doubted {
		p.doubted, p.why = false, ""
		p.rounds = len(rounds)
		p.round = now.Add(betterEvery)
	}
}

// doubt has packets go both ways.
func (p *pair) doubt(now time.Time, why string) {
	p.doubted, p.doubtedAt, p.why = true, now, why
}

// lose gives the way in use up.
func (p *pair) lose(now time.Time, why string) {
	p.current.pong, p.current.missed = time.Time{}, 0
	p.current, p.doubted, p.why, p.since, p.followed = nil, false, why, now, 0
	p.rounds = len(rounds) // the search begins anew
	p.search(now)
}

// routeNow is what packets should do.
func (p *pair) routeNow(local []netip.Prefix) Route {
	var relay Way
	if p.relay != 0 {
		relay = Way{Relay: p.relay}
	}
	if p.current != nil && !p.doubted {
		r := Route{Main: p.current.way()}
		switch {
		case p.beside != nil:
			r.Copy = Way{Addr: p.beside.addr}
		case !p.awake:
			r.Copy = relay // the packet that ends the rest: a NAT may have forgotten the way meanwhile
		}
		return r
	}
	r := Route{Main: relay, Roams: true}
	for _, c := range p.list(local) {
		if len(r.Spray) < MaxCandidates {
			r.Spray = append(r.Spray, c.addr)
		}
	}
	if p.current != nil {
		r.Main, r.Copy = p.current.way(), relay
		if relay.IsZero() && p.beside != nil {
			r.Copy = Way{Addr: p.beside.addr}
		}
	}
	return r
}

// wake is when there is something to do for the peer; zero: when something happens.
func (p *pair) wake() (at time.Time) {
	add := func(t time.Time) { at = sooner(at, t) }
	add(p.missing)
	if !p.awake && p.current == nil && len(p.probes) == 0 && p.rounds >= len(rounds) {
		return at
	}
	if p.rounds < len(rounds) && !p.began.IsZero() {
		add(p.began.Add(rounds[p.rounds]))
	} else if p.awake {
		add(p.round)
	}
	if !p.awake {
		add(p.warms())
	}
	if _, s, _ := p.inUse(); s != nil && p.awake {
		add(s.next())
	}
	for _, x := range p.probes {
		if x.late {
			add(x.at.Add(lateAfter))
		} else {
			add(x.due)
		}
	}
	return at
}

// sooner is the earlier one of two times, of which a zero one is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
