package session

import (
	"encoding/binary"
	"io"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
)

// The times of the WireGuard paper, and of its implementations.
const (
	RekeyAfterTime  = 120 * time.Second // the initiator of a session makes a new one
	RejectAfterTime = 180 * time.Second // a session ends
	rekeyTimeout    = 5 * time.Second   // between initiations
	jitter          = 334 * time.Millisecond
	silence         = 10 * time.Second // after which what was received is answered
	floodTime       = time.Second / 50 // between initiations that are answered
	lastMinute      = RejectAfterTime - silence - rekeyTimeout
)

const (
	maxAttempts     = 18 // 90 s of them
	maxMoveAttempts = 6
	maxSessions     = 8
)

// Seen is what must be known of a peer's key for as long as the key is valid: the greatest stamp of its initiations, and
// when that came.
type Seen struct {
	Stamp tai64n.Timestamp
	At    time.Time
}

// Pair is a key of this node and one of the peer.
type Pair struct {
	*noise.Pair
	// Seen belongs to the peer's key; all its pairs share it.
	Seen *Seen

	jar     noise.Jar
	touched time.Time // when an initiation was sent, or one was answered
}

// Config is what a Peer needs.
type Config struct {
	// Higher says that this node has the higher id of the two.
	Higher bool
	// Index reserves a number that the peer can name a handshake or session by. It is released by a Release.
	Index func() uint32
	// Random is where keys are drawn from.
	Random io.Reader
	Limits Limits
}

// flight is a handshake that waits for its answer.
type flight struct {
	initiator *noise.Initiator
	pair      *Pair
	message   []byte
	crossed   *Session // of the peer's initiation that came meanwhile
}

// purpose is why there are handshakes.
type purpose int

const (
	none purpose = iota
	need         // there is no session, or it grows old
	move         // the session in use is not of the first pair
)

// Peer is another node.
type Peer struct {
	cfg       Config
	psk       [32]byte
	keepalive time.Duration
	pairs     []*Pair
	sessions  []*Session // newest first
	current   *Session
	shaken    time.Time // when a handshake was completed last
	stamp     tai64n.Timestamp

	flight   *flight
	why      purpose
	attempts int
	late     bool // the last chance of the current session to be renewed was taken

	// Timers; zero where they do not run.
	retryAt      time.Time // the next attempt
	moveAt       time.Time // when to begin a move
	answerAt     time.Time // a keepalive is due, unless we send something
	again        bool      // data came since answerAt was set
	silentAt     time.Time // a handshake is due, unless something comes
	persistentAt time.Time
	expireAt     time.Time // the first session ends
}

// New is a peer that has no keys yet.
func New(cfg Config) *Peer {
	if cfg.Limits == (Limits{}) {
		cfg.Limits = DefaultLimits
	}
	return &Peer{cfg: cfg}
}

// Current is the session to send by; nil where there is none.
func (p *Peer) Current(now time.Time) *Session {
	if !p.current.usable(now) {
		return nil
	}
	return p.current
}

// LastHandshake is when a handshake was completed last; zero for never.
func (p *Peer) LastHandshake() time.Time { return p.shaken }

// Sessions says how many sessions there are.
func (p *Peer) Sessions() int { return len(p.sessions) }

// Idle says that a Peer has nothing that would be missed.
func (p *Peer) Idle() bool {
	return len(p.sessions) == 0 && p.flight == nil && p.why == none && p.keepalive == 0
}

// Next is when a Tick is due; zero for never.
func (p *Peer) Next() (next time.Time) {
	for _, t := range [...]time.Time{p.retryAt, p.moveAt, p.answerAt, p.silentAt, p.persistentAt, p.expireAt} {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

// Step takes an event, and appends to out what is to be done.
func (p *Peer) Step(now time.Time, e Event, out []Effect) []Effect {
	switch e := e.(type) {
	case Want:
		if p.Current(now) == nil {
			out = p.shake(now, need, out)
		}
	case Sent:
		out = p.sent(now, e.Data, out)
	case Received:
		out = p.received(now, e, out)
	case Initiation:
		out = p.initiation(now, e, out)
	case Response:
		out = p.response(now, e.Message, out)
	case CookieReply:
		out = p.cookie(now, e, out)
	case Tick:
		out = p.tick(now, out)
	case Probe:
		out = p.probe(now, out)
	case SetPairs:
		out = p.setPairs(now, e.Pairs, out)
	case Leave:
		out = p.leave(now, e.Local, out)
	case SetPSK:
		p.psk = e.PSK
	case SetKeepalive:
		out = p.setKeepalive(now, e.Interval, out)
	}
	return out
}

// leave begins a handshake for the first pair where a session lives that is of another key of ours: the peer's end of it may
// be what the peer speaks by.
func (p *Peer) leave(now time.Time, l *noise.Local, out []Effect) []Effect {
	if slices.ContainsFunc(p.sessions, func(s *Session) bool { return s.Pair.Local == l && s.Alive(now) }) {
		return p.shake(now, move, out)
	}
	return out
}

// cookie keeps what proves to the peer that we are where we say.
func (p *Peer) cookie(now time.Time, e CookieReply, out []Effect) []Effect {
	pair := p.signed(e.Index)
	if pair == nil {
		return append(out, Dropped{ErrUnknown})
	}
	if pair.jar.Take(now, pair.Remote, e.Message) != nil {
		return append(out, Dropped{ErrForged})
	}
	return out
}

// signed finds the pair by whose keys we sent the handshake message that has an index: our initiation that waits for its
// answer, or the response that a session came of which the peer may not have yet.
func (p *Peer) signed(index uint32) *Pair {
	if f := p.flight; f != nil && f.initiator.Index == index {
		return f.pair
	}
	for _, s := range p.sessions {
		if s.Index == index && !s.confirmed {
			return s.Pair
		}
	}
	return nil
}

// shake begins a series of initiations, unless one runs that serves as well.
func (p *Peer) shake(now time.Time, why purpose, out []Effect) []Effect {
	if p.why == need || p.why == why || len(p.pairs) == 0 {
		return out
	}
	running := p.why != none
	p.why, p.attempts = why, 0
	if running {
		return out // its next attempt is near
	}
	return p.initiate(now, out)
}

// initiate sends the first message of a handshake, or sees to it that this happens as soon as it may.
func (p *Peer) initiate(now time.Time, out []Effect) []Effect {
	pair := p.pairs[0]
	if p.why == need {
		pair = p.pairs[p.attempts%len(p.pairs)]
	}
	if !pair.touched.IsZero() && now.Sub(pair.touched) < rekeyTimeout {
		p.retryAt = pair.touched.Add(rekeyTimeout)
		return out
	}
	p.retryAt = now.Add(rekeyTimeout + p.delay())
	ephemeral, ok := p.draw()
	if !ok {
		return out // without randomness the next attempt may do better
	}
	out = p.land(out)
	var msg [noise.InitiationSize]byte
	index := p.cfg.Index()
	i, err := pair.Initiate(&msg, ephemeral, index, p.nextStamp(now))
	if err != nil {
		return append(out, Release{index})
	}
	pair.jar.Sign(now, pair.Remote, msg[:])
	pair.touched = now
	p.flight = &flight{initiator: i, pair: pair, message: msg[:]}
	p.spoke(now)
	return append(out, Message{msg[:]})
}

// land ends the handshake that is under way.
func (p *Peer) land(out []Effect) []Effect {
	f := p.flight
	if f == nil {
		return out
	}
	f.initiator.Clear()
	p.flight = nil
	return append(out, Release{f.initiator.Index})
}

func (p *Peer) draw() (k [32]byte, ok bool) {
	_, err := io.ReadFull(p.cfg.Random, k[:])
	return k, err == nil
}

// delay is a random part of the time between attempts, so that two nodes do not keep step.
func (p *Peer) delay() time.Duration {
	var b [4]byte
	// Where there is no randomness there is no jitter either.
	_, _ = io.ReadFull(p.cfg.Random, b[:])
	return time.Duration(binary.LittleEndian.Uint32(b[:])) * jitter >> 32
}

// nextStamp is later than all before it, also when the clock was set back or has not moved by the stamps' measure.
func (p *Peer) nextStamp(now time.Time) tai64n.Timestamp {
	s := noise.Stamp(now)
	if !s.After(p.stamp) {
		s = p.stamp
		for i := len(s) - 4; i >= 0; i-- { // the last three bytes are always zero
			if s[i]++; s[i] != 0 {
				break
			}
		}
	}
	p.stamp = s
	return s
}

// initiation answers a handshake that the peer began.
func (p *Peer) initiation(now time.Time, e Initiation, out []Effect) []Effect {
	pair := e.Pair
	if !slices.Contains(p.pairs, pair) {
		return append(out, Dropped{ErrUnknown})
	}
	stamp, err := pair.Verify(e.Message)
	if err != nil {
		return append(out, Dropped{ErrForged})
	}
	if !stamp.After(pair.Seen.Stamp) || (!pair.Seen.At.IsZero() && now.Sub(pair.Seen.At) <= floodTime) {
		return append(out, Dropped{ErrStale})
	}
	*pair.Seen = Seen{Stamp: stamp, At: now}
	out = append(out, Heard{})
	p.heard(now)

	ephemeral, ok := p.draw()
	if !ok {
		return out
	}
	var msg [noise.ResponseSize]byte
	index := p.cfg.Index()
	keys, err := pair.Respond(&msg, e.Message, ephemeral, index, &p.psk)
	if err != nil {
		return append(out, Release{index})
	}
	s, err := newSession(pair, &keys, index, e.Message.Sender, now, p.cfg.Limits)
	if err != nil {
		return append(out, Release{index})
	}
	if f := p.flight; f != nil && f.pair == pair {
		f.crossed, s.crossed = s, f
	}
	pair.jar.Sign(now, pair.Remote, msg[:])
	pair.touched = now
	out = p.add(s, out)
	p.spoke(now)
	return append(out, Message{msg[:]})
}

// response ends a handshake that we began.
func (p *Peer) response(now time.Time, msg []byte, out []Effect) []Effect {
	f := p.flight
	if f == nil {
		return append(out, Dropped{ErrUnknown})
	}
	keys, remote, err := f.initiator.Consume(msg, &p.psk)
	if err != nil {
		return append(out, Dropped{ErrForged})
	}
	s, err := newSession(f.pair, &keys, f.initiator.Index, remote, now, p.cfg.Limits)
	if err != nil {
		return p.land(out)
	}
	p.flight = nil
	s.Initiator, s.confirmed, s.from = true, true, f
	out = append(out, Heard{})
	p.heard(now)
	out = p.add(s, out)
	if c := f.crossed; p.cfg.Higher || c == nil || c != p.current {
		p.promote(now, s)
	}
	p.complete(now)
	return append(out, Ready{Confirm: true})
}

// received notes an authentic message.
func (p *Peer) received(now time.Time, e Received, out []Effect) []Effect {
	s := e.Session
	if s.ended {
		return out
	}
	p.heard(now)
	if !s.confirmed {
		s.confirmed = true
		if !p.outranked(now, s) {
			p.promote(now, s)
		}
		p.complete(now)
		out = append(out, Ready{})
	}
	if e.Data {
		if p.answerAt.IsZero() {
			p.answerAt = now.Add(silence)
		} else {
			p.again = true
		}
	}
	if c := p.current; c != nil && !p.late && c.Initiator && now.Sub(c.made) > lastMinute {
		p.late = true
		out = p.shake(now, need, out)
	}
	return out
}

// outranked says whether the current session is to be used although s was confirmed after it.
func (p *Peer) outranked(now time.Time, s *Session) bool {
	c := p.current
	switch {
	case !c.usable(now):
		return false
	case p.cfg.Higher && s.crossed != nil && c.from == s.crossed:
		return true // both were made at once, and this one is ours
	}
	return c.Pair == p.pairs[0] && s.Pair != p.pairs[0] && now.Sub(c.made) < rekeyTimeout
}

// promote sends by s from now on.
func (p *Peer) promote(now time.Time, s *Session) {
	p.current, p.late = s, false
	p.moveAt = time.Time{}
	if s.Pair == p.pairs[0] {
		return
	}
	p.armMove(now)
}

// armMove sees to it that there will be a session of the first pair. One of both nodes is to begin.
func (p *Peer) armMove(now time.Time) {
	p.moveAt = now
	if !p.cfg.Higher {
		p.moveAt = now.Add(rekeyTimeout + p.delay())
	}
}

// complete notes that a handshake succeeded. What it was not for goes on.
func (p *Peer) complete(now time.Time) {
	p.shaken = now
	if p.why == move && p.current != nil && p.current.Pair != p.pairs[0] {
		return
	}
	p.why, p.attempts = none, 0
	p.retryAt = time.Time{}
	if p.flight != nil { // it may still be answered; it is given up when the next one would be due
		p.retryAt = now.Add(rekeyTimeout)
	}
}

// add takes a new session in.
func (p *Peer) add(s *Session, out []Effect) []Effect {
	keep := p.sessions[:0:0]
	keep = append(keep, s)
	for _, o := range p.sessions {
		// The peer began anew, so it does not wait for the answer before; and there is a limit to what is kept.
		replaced := !s.Initiator && !o.confirmed && o.Pair == s.Pair
		if o != p.current && (replaced || len(keep) >= maxSessions-1) {
			out = p.end(o, out)
			continue
		}
		keep = append(keep, o)
	}
	p.setSessions(keep)
	return append(out, Install{s})
}

// end forgets a session; the caller takes it out of the list.
func (p *Peer) end(s *Session, out []Effect) []Effect {
	s.ended = true
	if p.current == s {
		p.current = nil
	}
	return append(out, Release{s.Index})
}

func (p *Peer) setSessions(list []*Session) {
	p.sessions = list
	p.expireAt = time.Time{}
	for _, s := range list {
		if t := s.made.Add(RejectAfterTime); p.expireAt.IsZero() || t.Before(p.expireAt) {
			p.expireAt = t
		}
	}
}

// drop ends the sessions that are not to be kept.
func (p *Peer) drop(now time.Time, keep func(*Session) bool, out []Effect) []Effect {
	list := p.sessions[:0:0]
	for _, s := range p.sessions {
		if keep(s) {
			list = append(list, s)
		} else {
			out = p.end(s, out)
		}
	}
	p.setSessions(list)
	if p.current == nil {
		p.fall(now)
	}
	return out
}

// setPairs changes the keys.
func (p *Peer) setPairs(now time.Time, pairs []*Pair, out []Effect) []Effect {
	p.pairs = slices.Clone(pairs)
	if f := p.flight; f != nil && !slices.Contains(p.pairs, f.pair) {
		out = p.land(out)
		if p.why != none {
			p.retryAt = now
		}
	}
	out = p.drop(now, func(s *Session) bool { return slices.Contains(p.pairs, s.Pair) }, out)
	p.moveAt = time.Time{}
	if len(p.pairs) == 0 {
		p.why, p.retryAt = none, time.Time{}
	}
	if c := p.current; c != nil && c.Pair != p.pairs[0] {
		p.armMove(now)
	} else if p.why == move {
		p.why, p.retryAt = none, time.Time{}
		out = p.land(out)
	}
	return out
}

// fall goes back to the newest session that the peer has for sure.
func (p *Peer) fall(now time.Time) {
	for _, s := range p.sessions {
		if s.confirmed {
			p.promote(now, s)
			return
		}
	}
}

// setKeepalive changes the interval. Where there was none, the first keepalive is due at once.
func (p *Peer) setKeepalive(now time.Time, d time.Duration, out []Effect) []Effect {
	before := p.keepalive
	p.keepalive = d
	switch {
	case d == 0:
		p.persistentAt = time.Time{}
	case before == 0:
		p.persistentAt = now.Add(d)
		return p.probe(now, out)
	default:
		p.persistentAt = now.Add(d)
	}
	return out
}

// probe tells the peer where we are.
func (p *Peer) probe(now time.Time, out []Effect) []Effect {
	if p.Current(now) != nil {
		return p.keep(now, out)
	}
	if f := p.flight; f != nil {
		return append(out, Message{f.message}) // somewhere it may not have been to yet
	}
	return p.shake(now, need, out)
}

// keep sends a keepalive.
func (p *Peer) keep(now time.Time, out []Effect) []Effect {
	if p.Current(now) == nil {
		return p.shake(now, need, out)
	}
	return p.sent(now, false, append(out, Keepalive{}))
}
