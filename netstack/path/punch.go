package path

import (
	"encoding/binary"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// A NAT that maps each destination to another port (a hard one) does not reveal which port a peer will get, and a peer whose
// own NAT admits only ports that it has sent to cannot wait for it. They can still meet by chance, by the birthday paradox:
//
//	opener, behind the hard NAT               guesser, behind the easy one
//	  Punch ───────────────── relay ────────►   unless it has, or just had, another
//	  ◄────────────────────── relay ─────────   Punch, the same
//	  256 sockets, a Ping from each             Pings to random ports of the opener's address, 100 a second
//	      ╲__ 256 ports of its NAT ◄── one that matches
//	  Pong from that socket, and a Ping ─────►   admitted: this was sent to before
//
// Of N = 64512 ports k = 256 are open toward the guesser's address. The probability that n different guesses all miss is
// (1-n/N)(1-n/(N-1))...(1-n/(N-k+1)), which is about exp(-k·n/N): a half after 175 guesses, 2 % after 1000.
//
// Guesses, and pings from the sockets, go where an authenticated peer claims to be, and it may lie. So they are few, in total
// and to each address, and ever rarer where they hit nothing. Answers from elsewhere do not make up for misses.

// Effects of a Finder that is punching.
type (
	// Open opens a socket besides the one that all peers share, for a Way. Socket numbers are never reused.
	Open struct {
		ID     proto.NodeID // for which peer
		Socket uint32
	}
	// Shut closes such a socket.
	Shut struct {
		ID     proto.NodeID
		Socket uint32
	}
)

func (Open) effect() {}
func (Shut) effect() {}

const (
	// MaxSockets is how many sockets are open for a punch. Once it is over at most one stays open.
	MaxSockets = 256
	// MaxGuesses is how many ports a punch tries.
	MaxGuesses = 1000

	// punchFor is how long a punch sends guesses, or pings from the sockets.
	punchFor = 10 * time.Second
	// punchLate is how long after that it waits for answers.
	punchLate = time.Second
	// guessEvery and guessAtOnce set the pace of guesses.
	guessEvery  = 50 * time.Millisecond
	guessAtOnce = 5
	// openEvery and openAtOnce set the pace at which sockets are opened and pinged from, and againEvery is when all of them ping
	// again: that makes up for losses, and a guess that came before its socket was open has opened the guesser's NAT for it.
	openEvery  = 25 * time.Millisecond
	openAtOnce = 32
	againEvery = 3 * time.Second
	// askEvery and maxAsks are how often a peer is asked to guess, and askAgain is when a peer that did not answer is asked again.
	askEvery = 500 * time.Millisecond
	maxAsks  = 4
	askAgain = 10 * time.Second
	// openPause and guessPause are the pause from a first miss to the next punch with a peer; they double with each miss, up to
	// pauseMax. The guesser's pause is shorter, so that it does not refuse an opener that keeps its own.
	openPause  = time.Minute
	guessPause = 50 * time.Second
	pauseMax   = 32 * time.Minute
	// guessRest is how long after any punch a guesser takes part in none.
	guessRest = 10 * time.Second
	// hitPause is the pause from a first hit to the next punch as the opener, should the path be lost; it doubles with each
	// hit, up to openPause. A peer that answers, falls silent and asks again must not have sockets opened all the time.
	hitPause = 10 * time.Second
	// warmFor is how long after the last packet the opener keeps a punched path open, with a ping every warmEvery: no NAT drops
	// a mapping that has seen an answer sooner, and finding another costs a punch.
	warmFor   = 5 * time.Minute
	warmEvery = 20 * time.Second

	firstPort = 1024 // lowest that NATs assign
)

// role is this node's part in a punch.
type role uint8

const (
	roleNone  role = iota
	roleAsker      // an opener whose peer has not answered yet
	roleOpener
	roleGuesser
)

// punch is the one in progress, if any.
type punch struct {
	role  role
	pair  *pair
	began time.Time
	next  time.Time

	asks    int
	toward  netip.AddrPort // where the guesser is mapped
	sockets []uint32
	pinged  int // how many pings the sockets have sent

	struck   uint32 // the socket by which the two first heard of each other; 0 if none
	struckAt time.Time

	target  netip.Addr // the opener's address
	guessed map[uint16]struct{}

	shots map[pathmsg.TxID]shot // pings that may be answered
}

// shot is a ping of a punch.
type shot struct {
	to Way
	at time.Time
}

// backoff is how long something is left alone after an attempt.
type backoff struct {
	fails, hits int // in a row
	until       time.Time
}

func (b *backoff) fail(now time.Time, pause time.Duration) {
	b.fails++
	b.until = now.Add(min(pause<<min(b.fails-1, 10), pauseMax))
}

func (b *backoff) hit(now time.Time) {
	if b.fails = 0; now.Sub(b.until) >= pauseMax {
		b.hits = 0
	}
	b.until = now.Add(min(hitPause<<min(b.hits, 10), openPause))
	b.hits++
}

// mayAsk reports whether a punch as the opener is due: nothing else was found, and a punch may succeed.
func (f *Finder) mayAsk(p *pair) bool {
	return f.punch.role == roleNone && f.own.NAT == pathmsg.NATHard && p.peerNAT == pathmsg.NATEasy && p.outside.IsValid() &&
		p.relay != 0 && p.current == nil && p.rounds >= len(rounds) && !f.now.Before(p.opens.until) &&
		!f.now.Before(f.aimedAt[p.outside.Addr()].until) && (p.awake || f.now.Sub(p.offered) < roundEvery)
}

// runPunch does whatever is due for a punch with a peer.
func (f *Finder) runPunch(p *pair) {
	if f.mayAsk(p) {
		f.punch = punch{role: roleAsker, pair: p, began: f.now, next: f.now, toward: p.outside, shots: map[pathmsg.TxID]shot{}}
	}
	x := &f.punch
	if x.pair != p || f.now.Before(x.next) {
		return
	}
	switch {
	case x.role == roleAsker && x.asks == maxAsks:
		f.endPunch()
		p.opens.until = f.now.Add(askAgain)
	case x.role == roleAsker:
		x.asks++
		x.next = f.now.Add(askEvery)
		f.out = append(f.out, Send{p.id, Way{Relay: p.relay}, pathmsg.Punch{Toward: x.toward}})
	case f.now.Sub(x.began) >= punchFor+punchLate:
		f.missed()
	case f.now.Sub(x.began) >= punchFor:
		x.next = x.began.Add(punchFor + punchLate)
	case x.role == roleOpener:
		f.openMore()
	case x.role == roleGuesser:
		f.guessMore()
	}
}

// gotPunch handles a request for a punch, or the answer to ours.
func (f *Finder) gotPunch(p *pair, m pathmsg.Punch) {
	x := &f.punch
	switch {
	case x.pair == p && x.role == roleAsker && m.Toward == x.toward:
		x.role, x.began, x.next = roleOpener, f.now, f.now
		f.runPunch(p)
	case x.pair == p && x.role == roleGuesser && f.now.Sub(x.began) < maxAsks*askEvery: // the answer was lost
		f.out = append(f.out, Send{p.id, Way{Relay: p.relay}, m})
	case f.mayGuess(p, m):
		f.punch = punch{
			role: roleGuesser, pair: p, began: f.now, next: f.now, target: p.outside.Addr(),
			guessed: map[uint16]struct{}{}, shots: map[pathmsg.TxID]shot{},
		}
		f.out = append(f.out, Send{p.id, Way{Relay: p.relay}, m})
		f.runPunch(p)
	}
}

// mayGuess reports whether a peer's request for a punch is granted.
func (f *Finder) mayGuess(p *pair, m pathmsg.Punch) bool {
	return f.punch.role == roleNone && f.own.NAT == pathmsg.NATEasy && p.peerNAT == pathmsg.NATHard && p.outside.IsValid() &&
		p.relay != 0 && (p.current == nil || p.doubted) && slices.Contains(f.own.Candidates, m.Toward) &&
		!f.now.Before(f.guessRested) && !f.now.Before(p.guesses.until) && !f.now.Before(f.aimedAt[p.outside.Addr()].until)
}

// openMore opens some more of the sockets, or pings again from those that are open.
func (f *Finder) openMore() {
	x := &f.punch
	for range openAtOnce {
		i := x.pinged % MaxSockets
		if i == len(x.sockets) {
			f.lastSocket++
			x.sockets = append(x.sockets, f.lastSocket)
			f.out = append(f.out, Open{x.pair.id, f.lastSocket})
		}
		f.shoot(Way{Addr: x.toward, Socket: x.sockets[i]})
		x.pinged++
	}
	x.next = f.now.Add(openEvery)
	if x.pinged%MaxSockets == 0 {
		x.next = x.began.Add(min(time.Duration(x.pinged/MaxSockets)*againEvery, punchFor))
	}
}

// guessMore pings some more ports.
func (f *Finder) guessMore() {
	x := &f.punch
	x.next = f.now.Add(guessEvery)
	for range min(guessAtOnce, MaxGuesses-len(x.guessed)) {
		port, ok := f.guess()
		if !ok {
			return
		}
		x.guessed[port] = struct{}{}
		f.shoot(Way{Addr: netip.AddrPortFrom(x.target, port)})
	}
}

// guess draws a port that was not drawn before.
func (f *Finder) guess() (uint16, bool) {
	for {
		var b [2]byte
		if _, err := io.ReadFull(f.random, b[:]); err != nil {
			return 0, false
		}
		port := binary.BigEndian.Uint16(b[:])
		if _, was := f.punch.guessed[port]; port >= firstPort && !was {
			return port, true
		}
	}
}

// shoot sends a ping of a punch.
func (f *Finder) shoot(to Way) {
	var id pathmsg.TxID
	if _, err := io.ReadFull(f.random, id[:]); err != nil {
		return // as in ping
	}
	x := &f.punch
	x.shots[id] = shot{to, f.now}
	f.out = append(f.out, Send{x.pair.id, to, pathmsg.Ping{TxID: id}})
}

// struck handles a Pong that may answer a ping of a punch, and reports whether it does.
func (f *Finder) struck(p *pair, id pathmsg.TxID) bool {
	x := &f.punch
	s, ok := x.shots[id]
	if x.pair != p || !ok || f.now.Sub(s.at) >= lateAfter {
		return false
	}
	delete(x.shots, id)
	p.lastHeard = f.now
	f.found(p, s.to, f.now.Sub(s.at))
	return true
}

// found makes the path that a punch found a candidate, and the current path if there is no better one.
func (f *Finder) found(p *pair, w Way, rtt time.Duration) {
	var c *candidate
	switch {
	case w.Socket == 0:
		c = p.learn(f.now, w.Addr, 0)
	case p.punched != nil || !f.answersBy(p, w.Socket):
		return
	default:
		c = &candidate{addr: w.Addr, socket: w.Socket}
	}
	c.punched = true
	c.answer(f.now, rtt)
	if !p.prefers(c, f.local) {
		return
	}
	if c.socket != 0 {
		p.punched = c
	}
	p.change(f.now, c)
}

// answersBy reports whether a Ping that arrived on a socket of a punch is answered: on the first socket that received one,
// unless nothing comes of that. A guesser that has hit two would use one of them, and we might keep the other.
func (f *Finder) answersBy(p *pair, socket uint32) bool {
	x := &f.punch
	switch {
	case p.punched != nil:
		return p.punched.socket == socket
	case x.pair != p:
		return true
	case x.struck == 0 || f.now.Sub(x.struckAt) >= lateAfter:
		x.struck, x.struckAt = socket, f.now
	}
	return x.struck == socket
}

// pingedAt handles a Ping that arrived on a socket of a punch.
func (f *Finder) pingedAt(p *pair, from Way) {
	c := p.at(from)
	switch {
	case c != nil:
		c.heard = f.now
		if f.now.Sub(c.pong) <= checkEvery/4 || f.now.Sub(c.ping) <= rounds[1]/2 {
			return
		}
	case f.punch.pair != p || !slices.Contains(f.punch.sockets, from.Socket) || from.Addr != f.punch.toward:
		return
	}
	f.ping(p, from)
}

// aim returns the address that a punch sends to; zero while it sends nowhere.
func (x *punch) aim() netip.Addr {
	switch x.role {
	case roleGuesser:
		return x.target
	case roleOpener:
		return x.toward.Addr()
	}
	return netip.Addr{}
}

// missed ends a punch that did not find a path to the address it was aimed at.
func (f *Finder) missed() {
	x := &f.punch
	if a := x.aim(); a.IsValid() {
		aimed := f.aimedAt[a]
		aimed.fail(f.now, guessPause)
		f.aimedAt[a] = aimed
		if x.role == roleGuesser {
			x.pair.guesses.fail(f.now, guessPause)
		} else {
			x.pair.opens.fail(f.now, openPause)
		}
	}
	f.endPunch()
}

// hit ends a punch that found one.
func (f *Finder) hit() {
	x := &f.punch
	delete(f.aimedAt, x.aim())
	if x.role == roleGuesser {
		x.pair.guesses = backoff{}
	} else {
		x.pair.opens.hit(f.now)
	}
	f.endPunch()
}

// endPunch closes all sockets except the one of a path that was found.
func (f *Finder) endPunch() {
	x := f.punch
	f.punch = punch{}
	if x.role == roleGuesser {
		f.guessRested = f.now.Add(guessRest)
	}
	// Addresses left alone for long start over. Since there is one punch at a time, there are a few hundred of them at most.
	for a, b := range f.aimedAt {
		if f.now.Sub(b.until) >= pauseMax {
			delete(f.aimedAt, a)
		}
	}
	for _, s := range x.sockets {
		if x.pair.punched == nil || x.pair.punched.socket != s {
			f.out = append(f.out, Shut{x.pair.id, s})
		}
	}
}

// settlePunch ends what is no longer needed: a punch with a peer that has a path, and a socket that is not in use.
func (f *Finder) settlePunch(p *pair) {
	if f.punch.pair == p && p.current != nil && !p.doubted {
		if p.current.addr.Addr() == f.punch.aim() {
			f.hit()
		} else {
			f.missed()
		}
	}
	if c := p.punched; c != nil && p.current != c {
		p.punched = nil
		f.out = append(f.out, Shut{p.id, c.socket})
	}
}

// leavePunch ends the punch and closes the socket of a peer that is gone.
func (f *Finder) leavePunch(p *pair) {
	p.current = nil
	if f.punch.pair == p {
		f.missed()
	}
	f.settlePunch(p)
}

// warms returns when the current path is next pinged although nothing is sent on it; zero means never.
func (p *pair) warms() time.Time {
	c := p.current
	if c == nil || c != p.punched {
		return time.Time{}
	}
	if at := c.ping.Add(warmEvery); at.Before(p.lastSent.Add(warmFor)) {
		return at
	}
	return time.Time{}
}

// punchReason describes how guessing ports for a peer stands; it returns an empty string if there is nothing to say.
func (f *Finder) punchReason(p *pair) string {
	hard := f.own.NAT == pathmsg.NATHard && p.peerNAT == pathmsg.NATEasy
	if !hard && (f.own.NAT != pathmsg.NATEasy || p.peerNAT != pathmsg.NATHard) {
		return ""
	}
	b := p.guesses
	if hard {
		b = p.opens
	}
	switch {
	case f.punch.pair == p:
		return "the ports of a NAT that gives each destination another one are being guessed"
	case b.fails > 0 && f.now.Before(b.until):
		return "a NAT gives each destination another port, and it was not guessed; the next try is at " + b.until.Format(time.TimeOnly)
	}
	return ""
}
