package path

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// pair is what this node knows about the paths to one peer.
type pair struct {
	id        proto.NodeID
	relay     proto.NodeID // the peer's home relay; 0 means none
	endpoints []proto.Endpoint
	all       map[netip.AddrPort]*candidate
	peerNAT   pathmsg.NATClass
	outside   netip.AddrPort // the peer's address outside its NAT, from its last Offer

	current   *candidate // the direct path in use; nil if none
	doubted   bool       // current may no longer work
	doubtedAt time.Time  // since when; answers to earlier pings prove nothing
	followed  int        // how often it moved between ports of one address
	beside    *candidate // where the peer was just seen and may have moved to
	source    Way        // where packets last came from, if not from where ours go
	sourced   time.Time  // since when
	since     time.Time  // when the current path came into use
	why       string     // why the current path is in doubt, or the last one was lost

	awake      bool
	lastSent   time.Time
	lastHeard  time.Time
	unanswered time.Time // since when packets go out with none coming back; zero if some do
	answering  time.Time
	answers    int
	offered    time.Time // when the peer's last Offer was accepted
	calling    time.Time // start of the period in which its calls are counted
	called     int
	asked      time.Time // when the peer last pinged
	firsts     backoff   // for expecting another ping after a single one
	missing    time.Time // when its next ping is due; zero if none is expected
	missed     time.Time // when we last reacted to a missing ping
	stirs      int       // how often we have reacted
	again      bool      // it has pinged since then

	began  time.Time // when the search began
	rounds int       // rounds of the search that are over
	round  time.Time // when the next one after these is due; zero means none
	probes []probe

	punched *candidate // the path from a dedicated socket; nil if none
	opens   backoff    // for punches as the opener
	guesses backoff    // for punches as the guesser

	// relayAsked is when the peer was last pinged through the relay because nothing else arrived.
	relayAsked time.Time
	relayRTT   time.Duration
	relayPong  time.Time // zero if never proved
	relaySizes search
	sized      []sized
	fits       Fit

	route Route
	said  bool
	next  time.Time
	place int // index in the heap, from 1; 0 if not in it
}

// candidate is an address where a peer may be reachable.
type candidate struct {
	addr    netip.AddrPort
	socket  uint32    // the dedicated one; 0 means the shared one
	punched bool      // found by hole punching: we guessed its port, or the peer guessed ours
	told    bool      // by the netmap
	learned time.Time // if not told: when the peer was last seen here or announced it
	nth     int       // its place in the Offer that announced it then; 0 if the peer was seen here
	ping    time.Time // last one sent
	pong    time.Time // last one received; zero if never proved
	proof   time.Time // when the ping was sent that it answered
	heard   time.Time // when a reported packet or ping of the peer last came from here
	met     time.Time // when packets last came from here while this was the current path
	rtt     time.Duration
	sizes   search
	missed  int // unanswered pings in a row, of those sent while this was the current path
}

// probe is a ping that is waiting for its Pong.
type probe struct {
	id  pathmsg.TxID
	to  Way
	at  time.Time
	due time.Time // when it counts as unanswered

	late bool // it counts as unanswered
}

// way returns the path to the candidate.
func (c *candidate) way() Way { return Way{Addr: c.addr, Socket: c.socket} }

// at returns the candidate that a direct path leads to, or nil if there is none.
func (p *pair) at(w Way) *candidate {
	switch {
	case w.Socket == 0:
		return p.all[w.Addr]
	case p.punched != nil && p.punched.way() == w:
		return p.punched
	}
	return nil
}

// searches reports whether the first rounds of a search are in progress.
func (p *pair) searches() bool { return p.rounds < len(rounds) && !p.began.IsZero() }

// calls counts an Offer, and reports whether it may start a search, unless one is in progress anyway.
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

// search starts to try all candidates, unless that has just begun.
func (p *pair) search(now time.Time) {
	if p.searches() {
		return
	}
	p.began, p.rounds, p.round = now, 0, time.Time{}
}

// learn records a further address where the peer may be: the nth that it announced, from 0 on, or one where it was seen.
func (p *pair) learn(now time.Time, a netip.AddrPort, nth int) *candidate {
	c := p.all[a]
	if c == nil {
		c = &candidate{addr: a}
		p.all[a] = c
	}
	c.learned, c.nth = now, nth
	p.forget()
	return c
}

// forget drops addresses that are not in the netmap, beginning with those where the peer was seen longest ago. Of one Offer, the
// first ones stay: peers announce the most reliable ones first.
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
		return cmp.Or(b.learned.Compare(a.learned), b.pong.Compare(a.pong), cmp.Compare(a.nth, b.nth), a.addr.Compare(b.addr))
	})
	for _, c := range learned[maxLearned:] {
		delete(p.all, c.addr)
	}
}

// list returns the candidates, best first.
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

// class returns a low number for a nearby address.
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

// answer records a Pong.
func (c *candidate) answer(now time.Time, rtt time.Duration) {
	if c.pong.IsZero() || now.Sub(c.pong) > trustFor {
		c.rtt = rtt
	} else {
		c.rtt += (rtt - c.rtt) / 4
	}
	c.pong, c.proof, c.missed = now, now.Add(-rtt), 0
}

// patience returns how long packets may go unanswered on a path before the path is pinged.
func (c *candidate) patience() time.Duration {
	return max(c.rtt+c.rtt/4, 20*time.Millisecond) + 40*time.Millisecond
}

// prefers reports whether a candidate that has just answered is better than the current path: nearer, clearly faster, or the
// only one that works.
func (p *pair) prefers(c *candidate, local []netip.Prefix) bool {
	cur := p.current
	if cur == nil || p.doubted || cur.missed > 0 {
		return true
	}
	if !c.heard.IsZero() && c.heard.After(p.lastOn(cur)) && p.silentOn(cur, c) {
		return true // the peer sends from there, and no longer from where it was
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

// besides reports whether the other candidate is another port of the same address.
func (c *candidate) besides(other *candidate) bool {
	return c != other && c.addr.Addr() == other.addr.Addr()
}

// mayFollow reports whether packets may follow the peer from a port that works to the port of the same address that its own
// packets come from. If both NATs map each destination to a port of its own, a port that is new on one side leads to a new one
// on the other: then the peer's packets never come from where ours go, however often they follow. The port that lasts is the
// one that the peer announced, since it keeps that one open.
func (p *pair) mayFollow() bool { return p.followed < maxFollowed }

// answersBeside reports whether packets from another port of the current path's address count as answers to those that go out.
// Like all packets they prove only the way back, but as long as they come from one port, nothing has changed: the path was
// asked since they began to, and is asked every second, as when they come from where ours go.
func (p *pair) answersBeside() bool {
	c := p.current
	return c != nil && !p.mayFollow() && p.source.Addr.Addr() == c.addr.Addr() && c.missed == 0 && c.proof.After(p.sourced)
}

// settledAt reports whether another port of a candidate's address is the current path, and still proves to work.
func (p *pair) settledAt(c *candidate, now time.Time) bool {
	cur := p.current
	if cur == nil || !cur.besides(c) || p.mayFollow() || (c.told && !cur.told) || p.doubted || cur.missed > 0 {
		return false
	}
	proved := now.Sub(cur.pong)
	silent := !p.unanswered.IsZero() && now.Sub(p.unanswered) >= cur.patience()
	return proved <= checkEvery/4 || proved <= checkEvery && !silent
}

// lastOn returns when a path was last seen to work.
func (p *pair) lastOn(c *candidate) time.Time {
	if c.heard.After(c.pong) {
		return c.heard
	}
	return c.pong
}

// silentOn reports whether packets go out on the current path with none coming back, while another path has just answered.
func (p *pair) silentOn(cur, other *candidate) bool {
	if cur.missed > 0 || !p.awake {
		return true
	}
	if p.mayFollow() || !cur.besides(other) {
		return !p.unanswered.IsZero() || p.waitsFor(cur.way())
	}
	// Packets may come from where none are sent, so only pings count: one sent no later than the other's should have been
	// answered by now.
	return slices.ContainsFunc(p.probes, func(x probe) bool { return x.to == cur.way() && !x.late && !x.at.After(other.ping) })
}

// change makes a candidate the current path.
func (p *pair) change(now time.Time, c *candidate) {
	if p.current != nil && p.current.besides(c) {
		p.followed++
	}
	p.current, p.doubted, p.beside, p.why, p.since = c, false, nil, "", now
	p.unanswered, c.missed = time.Time{}, 0
}

// trust ends the doubt about the current path.
func (p *pair) trust(now time.Time) {
	if p.doubted {
		p.doubted, p.why = false, ""
		p.rounds = len(rounds)
		p.round = now.Add(betterEvery)
	}
}

// doubt puts the current path in doubt, so that packets take both paths.
func (p *pair) doubt(now time.Time, why string) {
	p.doubted, p.doubtedAt, p.why = true, now, why
}

// lose gives up the current path.
func (p *pair) lose(now time.Time, why string) {
	p.current.pong, p.current.missed = time.Time{}, 0
	p.current, p.doubted, p.why, p.since, p.followed = nil, false, why, now, 0
	p.rounds = len(rounds) // so that the search starts over
	p.search(now)
}

// routeNow returns how the peer's packets should be sent.
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
			r.Copy = relay // for the packet that ends the idle time: a NAT may have dropped its mapping meanwhile
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

// wake returns when something is next due for the peer; zero means only after an event.
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

// sooner returns the earlier of two times; a zero time means never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
