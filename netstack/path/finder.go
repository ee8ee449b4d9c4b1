package path

import (
	"cmp"
	"container/heap"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// Way is a way to reach a peer: a path to an address, or through a relay. The zero Way is none.
type Way struct {
	Addr   netip.AddrPort
	Relay  proto.NodeID
	Socket uint32 // to send from; 0 means the one that all peers share
}

// IsZero reports whether w is no path at all.
func (w Way) IsZero() bool { return w == Way{} }

// Direct reports whether w leads through no relay.
func (w Way) Direct() bool { return w.Addr.IsValid() }

// Route is how the packets for a peer are sent.
type Route struct {
	Main Way // zero if none is known: only Spray
	Copy Way // gets a copy of every packet while Main is in doubt; zero means none
	// Spray holds addresses that handshakes are sent to as well.
	Spray []netip.AddrPort
	// Roams means that Main is unproved: an authentic packet that arrives on another path shows a better one at once.
	Roams bool
}

func (r *Route) equal(o *Route) bool {
	return r.Main == o.Main && r.Copy == o.Copy && r.Roams == o.Roams && slices.Equal(r.Spray, o.Spray)
}

// Finder finds and maintains the path to each peer that has a path key. It is not safe for concurrent use.
type Finder struct {
	bounds Bounds
	random io.Reader
	local  []netip.Prefix
	own    pathmsg.Offer // what peers are told about this node
	peers  map[proto.NodeID]*pair
	due    pairHeap
	out    []Effect // of the current step
	now    time.Time

	punch       punch // the one in progress
	lastSocket  uint32
	guessRested time.Time
	aimedAt     map[netip.Addr]backoff // where punches hit nothing

	stirred time.Time // when a Stir was last requested
	keepAt  time.Time // when paths are next kept open; zero if they need not be
	tellAt  time.Time // when peers are next told what changed about this node; zero if nothing did
	mtu     int       // of this host's device; 0 means that sizes are not probed
}

// NewFinder returns a Finder without peers. It draws ping IDs from random, which must be cryptographically secure.
func NewFinder(bounds Bounds, local []netip.Prefix, random io.Reader) *Finder {
	return &Finder{
		bounds: bounds, random: random, local: slices.Clone(local), peers: map[proto.NodeID]*pair{}, aimedAt: map[netip.Addr]backoff{},
	}
}

// Events of a Finder, besides Known, Gone and Moved.
type (
	// Offering changes what peers are told about this node.
	Offering struct{ Offer pathmsg.Offer }
	// Wanted reports that a packet was sent to an idle peer.
	Wanted struct{ ID proto.NodeID }
	// Used reports, for a peer that is not idle, whether packets were sent to it and whether authentic ones arrived on the Main
	// path, or from another port of its address, since the last report. It comes every UsedEvery.
	Used struct {
		ID                  proto.NodeID
		Sent, Heard, Beside bool
	}
	// Heard reports that an authentic packet of a peer arrived on a path other than Main, for the first time since the route
	// changed.
	Heard struct {
		ID   proto.NodeID
		From Way
	}
	// Got is a path message from a peer.
	Got struct {
		ID      proto.NodeID
		From    Way
		Message pathmsg.Message
	}
	// Tick reports that the time returned by Next has come.
	Tick struct{}
)

func (Offering) event() {}
func (Wanted) event()   {}
func (Used) event()     {}
func (Heard) event()    {}
func (Got) event()      {}
func (Tick) event()     {}

// Effects of a Finder.
type (
	// Send sends a path message to a peer.
	Send struct {
		ID      proto.NodeID
		To      Way
		Message pathmsg.Message
	}
	// Use changes how the packets for a peer are sent.
	Use struct {
		ID    proto.NodeID
		Route Route
	}
	// Rest means that a peer is idle: Used is not needed until Wanted.
	Rest struct{ ID proto.NodeID }
)

func (Send) effect() {}
func (Use) effect()  {}
func (Rest) effect() {}

// UsedEvery is the interval at which Used is expected.
const UsedEvery = 50 * time.Millisecond

const (
	// restAfter is how long after the last outgoing packet a peer becomes idle.
	restAfter = 5 * time.Second
	// roundEvery is how often all candidates are tried while packets go out and no direct path is known, once the first rounds
	// are over; betterEvery is how often a better path is sought when there is one.
	roundEvery  = 5 * time.Second
	betterEvery = time.Minute
	// checkEvery is how often the current path is pinged while packets flow both ways.
	checkEvery = time.Second
	// trustFor is how long after its last Pong an address keeps its average round trip.
	trustFor = 2 * time.Minute
	// maxLearned is the most addresses of a peer that are tried without being in the netmap.
	maxLearned = 8
	// lostPings is how many pings in a row must go unanswered for a path to be lost.
	lostPings = 5
	// lateAfter is how long after a ping its Pong is accepted.
	lateAfter = 2 * time.Second
	// maxProbes is the most pings of one peer waiting for their Pong; the oldest makes room.
	maxProbes = 96
	// maxFollowed is how often packets follow the peer from one port of an address to another although both work.
	maxFollowed = 2
	// maxAnswers is how many pings of one peer are answered per second.
	maxAnswers = 64
	// maxCalls is how many searches a peer's Offers may start in callsIn: each pings where the peer claims to be, and it may lie.
	maxCalls = 4
	callsIn  = 2 * roundEvery
)

// rounds are the times after the start of a search at which all candidates are tried.
var rounds = [...]time.Duration{0, 50 * time.Millisecond, 150 * time.Millisecond, 350 * time.Millisecond, 750 * time.Millisecond}

// Step handles one event, and returns what is to be done.
func (f *Finder) Step(now time.Time, e Event) []Effect {
	f.now, f.out = now, nil
	switch e := e.(type) {
	case Known:
		f.known(e)
	case Gone:
		if p := f.peers[e.ID]; p != nil {
			f.leavePunch(p)
			f.unschedule(p)
			delete(f.peers, e.ID)
		}
	case Moved:
		f.moved(e)
	case Offering:
		f.offering(e.Offer)
	case Keeping:
		f.keeping(e.On)
	case Sized:
		f.mtu = min(e.MTU, maxMTU)
	case Tick:
		f.tick()
	default:
		f.ofPeer(e)
	}
	return f.out
}

// ofPeer handles an event of one peer.
func (f *Finder) ofPeer(e Event) {
	switch e := e.(type) {
	case Wanted:
		f.with(e.ID, func(p *pair) { f.wanted(p) })
	case Used:
		f.with(e.ID, func(p *pair) { f.used(p, e) })
	case Heard:
		f.with(e.ID, func(p *pair) { f.heardFrom(p, e.From) })
	case Got:
		f.with(e.ID, func(p *pair) { f.got(p, e) })
	}
}

func (f *Finder) with(id proto.NodeID, do func(*pair)) {
	if p := f.peers[id]; p != nil {
		do(p)
		f.settle(p)
	}
}

// Next returns when the next Tick is due; zero means never.
func (f *Finder) Next() time.Time {
	at := sooner(f.keepAt, f.tellAt)
	if len(f.due) > 0 {
		at = sooner(at, f.due[0].next)
	}
	return at
}

func (f *Finder) tick() {
	f.keep()
	f.tell()
	for len(f.due) > 0 && !f.due[0].next.After(f.now) {
		p := f.due[0]
		f.run(p)
		f.settle(p)
		if !p.next.IsZero() && !p.next.After(f.now) { // nothing may run twice in one instant
			p.next = f.now.Add(time.Millisecond)
			f.schedule(p)
		}
	}
}

// known handles what a netmap says about a peer.
func (f *Finder) known(e Known) {
	p := f.peers[e.ID]
	if p == nil {
		p = &pair{id: e.ID, all: map[netip.AddrPort]*candidate{}}
		f.peers[e.ID] = p
	}
	if p.relay != e.Relay {
		f.leaves(p, e.Relay)
		if p.current == nil && !p.since.IsZero() {
			p.since = f.now
		}
		p.relay, p.relayPong, p.relayAsked, p.relaySizes = e.Relay, time.Time{}, time.Time{}, search{}
	}
	p.endpoints = slices.Clone(e.Endpoints)
	f.relist(p)
	f.settle(p)
}

// relist handles a change of the peer's endpoints or of this host's networks. The addresses from the netmap are never forgotten.
func (f *Finder) relist(p *pair) {
	var fresh bool
	listed := f.bounds.Candidates(f.local, p.endpoints)
	for _, a := range listed {
		if c := p.all[a]; c == nil {
			fresh = true
			p.all[a] = &candidate{addr: a, told: true}
		} else {
			c.told = true
		}
	}
	for a, c := range p.all {
		if c.told && !slices.Contains(listed, a) {
			c.told, c.learned = false, f.now
		}
	}
	p.forget()
	f.elsewhere(p, fresh, listed)
}

// moved handles a change of this host's addresses. Current paths may no longer work, and the peers do not know yet.
func (f *Finder) moved(e Moved) {
	f.local = slices.Clone(e.Local)
	for _, p := range f.sorted() {
		f.relist(p)
		p.opens, p.followed = backoff{}, 0
		p.resize()
		recently := !p.lastHeard.IsZero() && f.now.Sub(p.lastHeard) < recent
		if c := p.current; c != nil {
			p.doubt(f.now, "this host's addresses changed")
			if !p.awake && recently {
				f.ping(p, c.way())
			}
		}
		if p.awake {
			p.search(f.now)
			f.run(p)
		}
		f.settle(p)
	}
}

// sorted returns the peers ordered by ID.
func (f *Finder) sorted() []*pair {
	list := make([]*pair, 0, len(f.peers))
	for _, p := range f.peers {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *pair) int { return cmp.Compare(a.id, b.id) })
	return list
}

// wanted starts looking for a path to a peer that was idle.
func (f *Finder) wanted(p *pair) {
	if p.awake {
		return
	}
	p.awake, p.lastSent, p.unanswered = true, f.now, time.Time{}
	if p.since.IsZero() {
		p.since = f.now
	}
	if p.current != nil && f.now.Sub(p.current.pong) > checkEvery {
		p.doubt(f.now, "it was at rest")
	}
	p.search(f.now)
	f.run(p)
}

// used checks whether what was sent was answered.
func (f *Finder) used(p *pair, e Used) {
	if !p.awake {
		return
	}
	if e.Sent {
		p.lastSent = f.now
	}
	if e.Heard {
		p.lastHeard, p.unanswered = f.now, time.Time{}
		if p.current != nil {
			p.current.met = f.now
		}
	} else if e.Beside && p.answersBeside() {
		p.lastHeard, p.unanswered = f.now, time.Time{}
	} else if e.Sent && p.unanswered.IsZero() {
		p.unanswered = f.now
	}
	if f.now.Sub(p.lastSent) > restAfter {
		p.awake = false
		p.rounds, p.round = len(rounds), time.Time{}
		f.out = append(f.out, Rest{p.id})
		return
	}
	f.run(p)
}

// heardFrom handles an authentic packet that arrived on another path: the peer may have moved.
func (f *Finder) heardFrom(p *pair, from Way) {
	p.lastHeard = f.now
	if p.source != from {
		p.source, p.sourced = from, f.now
	}
	if !from.Direct() || from.Socket != 0 || f.bounds.Check(from.Addr) != nil {
		return
	}
	c := p.learn(f.now, from.Addr, 0)
	c.heard = f.now
	if c != p.current && f.now.Sub(c.pong) > checkEvery && !p.settledAt(c, f.now) {
		if p.current != nil {
			p.beside = c               // until it answers or fails to
			f.ping(p, p.current.way()) // first: if it works, it should be first to answer
		}
		f.ping(p, from)
	}
}

// got handles a path message.
func (f *Finder) got(p *pair, e Got) {
	switch m := e.Message.(type) {
	case pathmsg.Ping:
		f.gotPing(p, e.From, m)
	case pathmsg.Pong:
		f.gotPong(p, m)
	case pathmsg.Offer:
		f.gotOffer(p, m)
	case pathmsg.Punch:
		f.gotPunch(p, m)
	}
}

func (f *Finder) gotPing(p *pair, from Way, m pathmsg.Ping) {
	if f.now.Sub(p.answering) >= time.Second {
		p.answering, p.answers = f.now, 0
	}
	if p.answers++; p.answers > maxAnswers || from.Socket != 0 && !f.answersBy(p, from.Socket) {
		return
	}
	f.out = append(f.out, Send{p.id, from, pathmsg.Pong{TxID: m.TxID, Observed: from.Addr}})
	if m.Size < MinMTU && !p.replied(f.now, from) { // otherwise the peer is missing no answers
		p.expect(f.now)
	}
	if !from.Direct() || f.bounds.Check(from.Addr) != nil {
		return
	}
	if from.Socket != 0 {
		f.pingedAt(p, from)
		return
	}
	c := p.learn(f.now, from.Addr, 0)
	c.heard = f.now
	// It reached us, so ours may reach it. If it came on the current path, the peer asks because it is missing answers.
	if f.now.Sub(c.pong) > checkEvery/4 && f.now.Sub(c.ping) > rounds[1]/2 && !p.settledAt(c, f.now) &&
		(p.awake || c == p.current || p.current == nil || f.now.Sub(p.lastHeard) < recent) {
		f.ping(p, from)
	}
}

func (f *Finder) gotPong(p *pair, m pathmsg.Pong) {
	i := slices.IndexFunc(p.probes, func(x probe) bool { return x.id == m.TxID })
	if i < 0 {
		if !f.struck(p, m.TxID) {
			f.gotSized(p, m.TxID) // otherwise it answers no ping of ours, or comes too late
		}
		return
	}
	x := p.probes[i]
	p.probes = slices.Delete(p.probes, i, i+1)
	p.lastHeard = f.now
	rtt := f.now.Sub(x.at)
	if !x.to.Direct() {
		if x.to.Relay != p.relay {
			return
		}
		p.relayRTT, p.relayPong = rtt, f.now
		if p.current == nil {
			if p.missesRelay(f.now) {
				p.relaySizes.suspect(f.now)
			}
			p.unanswered = time.Time{}
		}
		return
	}
	c := p.at(x.to)
	if c == nil {
		if x.to.Socket != 0 && f.punch.pair == p {
			f.found(p, x.to, rtt)
		}
		return
	}
	c.answer(f.now, rtt)
	if f.punch.pair == p && c.addr.Addr() == f.punch.target {
		c.punched = true // its ping got in because ours had been sent there before
	}
	if c == p.beside {
		p.beside = nil
	}
	if c == p.current {
		if !p.unanswered.IsZero() && f.now.Sub(p.unanswered) >= c.patience() {
			c.sizes.suspect(f.now)
		}
		p.unanswered = time.Time{}
		if !x.at.Before(p.doubtedAt) {
			p.trust(f.now)
		}
		return
	}
	if !p.prefers(c, f.local) {
		return
	}
	p.change(f.now, c)
	if !p.mayFollow() && !c.told {
		for _, other := range p.list(f.local) {
			if other.told && c.besides(other) {
				f.ping(p, other.way())
			}
		}
	}
}

// run does whatever is due for a peer.
func (f *Finder) run(p *pair) {
	p.expire(f.now)
	f.miss(p)
	f.check(p)
	f.look(p)
	f.runPunch(p)
}

// check pings the current path if no answers come otherwise.
func (f *Finder) check(p *pair) {
	c := p.current
	if c == nil {
		f.askRelay(p)
		return
	}
	if c.missed > 0 {
		missing := "it does not answer"
		if c.missed >= lostPings {
			p.lose(f.now, missing)
			return
		}
		if !p.doubted {
			p.doubt(f.now, missing)
			p.search(f.now)
			f.stir()
		}
	}
	asked := p.waitsFor(c.way())
	silent := !p.unanswered.IsZero() && f.now.Sub(p.unanswered) >= c.patience()
	due := p.awake && f.now.Sub(c.ping) >= checkEvery && f.now.Sub(p.lastSent) < checkEvery
	if warm := p.warms(); !warm.IsZero() && !f.now.Before(warm) {
		due = true
	}
	if !asked && (silent || due || p.doubted) && f.now.Sub(c.ping) >= UsedEvery/2 {
		f.ping(p, c.way())
	}
}

// look tries the candidates when a round is due.
func (f *Finder) look(p *pair) {
	if p.began.IsZero() || (p.rounds >= len(rounds) && (p.round.IsZero() || f.now.Before(p.round))) {
		return
	}
	if p.rounds < len(rounds) && f.now.Before(p.began.Add(rounds[p.rounds])) {
		return
	}
	first := p.rounds == 0 || p.rounds == 3 || p.rounds >= len(rounds)
	for p.rounds < len(rounds) && !f.now.Before(p.began.Add(rounds[p.rounds])) {
		p.rounds++
	}
	if p.rounds >= len(rounds) {
		every := roundEvery
		if p.current != nil && !p.doubted {
			every = betterEvery
		}
		p.round = f.now.Add(every)
	}
	for _, c := range p.list(f.local) {
		if f.now.Sub(c.pong) > checkEvery && f.now.Sub(c.ping) > UsedEvery/2 && !p.settledAt(c, f.now) {
			f.ping(p, Way{Addr: c.addr})
		}
	}
	if p.relay != 0 {
		f.ping(p, Way{Relay: p.relay})
		if first {
			f.out = append(f.out, Send{p.id, Way{Relay: p.relay}, f.own})
		}
	}
}

func (f *Finder) ping(p *pair, to Way) {
	var id pathmsg.TxID
	if _, err := io.ReadFull(f.random, id[:]); err != nil {
		return // a ping with a guessable ID proves nothing
	}
	patience := time.Second
	if c := p.at(to); c != nil {
		c.ping = f.now
		if c == p.current {
			patience = max(2*c.rtt, 60*time.Millisecond) + 30*time.Millisecond
		}
	} else if !to.Direct() && p.relayRTT > 0 {
		patience = max(2*p.relayRTT, 120*time.Millisecond) + 60*time.Millisecond
	}
	if len(p.probes) == maxProbes {
		p.probes = slices.Delete(p.probes, 0, 1)
	}
	p.probes = append(p.probes, probe{id: id, to: to, at: f.now, due: f.now.Add(patience)})
	f.out = append(f.out, Send{p.id, to, pathmsg.Ping{TxID: id}})
}

// settle announces changes of the route and of the packet size that fits it, and sets the timer.
func (f *Finder) settle(p *pair) {
	f.fit(p)
	if r := p.routeNow(f.local); !p.said || !r.equal(&p.route) {
		p.route, p.said = r, true
		f.out = append(f.out, Use{p.id, r})
	}
	f.settlePunch(p)
	p.next = p.wake()
	if f.punch.pair == p && (p.next.IsZero() || f.punch.next.Before(p.next)) {
		p.next = f.punch.next
	}
	if p.next.IsZero() {
		f.unschedule(p)
	} else {
		f.schedule(p)
	}
}

func (f *Finder) schedule(p *pair) {
	if p.place == 0 {
		heap.Push(&f.due, p)
	} else {
		heap.Fix(&f.due, p.place-1)
	}
}

func (f *Finder) unschedule(p *pair) {
	if p.place > 0 {
		heap.Remove(&f.due, p.place-1)
	}
}

// pairHeap implements heap.Interface: the pairs for which something is due, earliest first.
type pairHeap []*pair

func (h pairHeap) Len() int           { return len(h) }
func (h pairHeap) Less(i, j int) bool { return h[i].next.Before(h[j].next) }

func (h pairHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i+1, j+1
}

func (h *pairHeap) Push(x any) {
	p := x.(*pair) //nolint:errcheck // only schedule pushes
	*h = append(*h, p)
	p.place = len(*h)
}

func (h *pairHeap) Pop() any {
	last := len(*h) - 1
	p := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	p.place = 0
	return p
}
