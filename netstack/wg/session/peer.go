package session

import (
	"encoding/binary"
	"io"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
)

// The timers of the WireGuard paper, and of its implementations.
const (
	RekeyAfterTime  = 120 * time.Second // the initiator of a session makes a new one
	RejectAfterTime = 180 * time.Second // a session ends
	rekeyTimeout    = 5 * time.Second   // between initiations
	jitter          = 334 * time.Millisecond
	silence         = 10 * time.Second // after which received data is answered
	floodTime       = time.Second / 50 // between initiations that are answered
	lastMinute      = RejectAfterTime - silence - rekeyTimeout
)

const (
	maxAttempts     = 18 // over 90 s
	maxMoveAttempts = 6
	maxSessions     = 8
)

// Seen is the replay protection of a peer's key, to be kept for as long as the key is valid: the greatest timestamp of its
// initiations, and when that initiation came.
type Seen struct {
	Stamp tai64n.Timestamp
	At    time.Time
}

// Pair is a key of this node and a key of the peer.
type Pair struct {
	*noise.Pair
	// Seen belongs to the peer's key, and is shared by all its pairs.
	Seen *Seen

	jar     noise.Jar
	touched time.Time // when an initiation was last sent or answered
}

// Config is what a Peer needs.
type Config struct {
	// Higher reports whether this node has the higher id of the two.
	Higher bool
	// Index reserves a number by which the peer can name a handshake or session. A Release frees it.
	Index func() uint32
	// Random is the source of keys.
	Random io.Reader
	Limits Limits
}

// flight is a handshake that waits for its response.
type flight struct {
	initiator *noise.Initiator
	pair      *Pair
	message   []byte
	crossed   *Session // made by a peer's initiation that came meanwhile
}

// purpose is why a series of handshakes is made.
type purpose int

const (
	none purpose = iota
	need         // there is no session, or it grows old
	move         // the session in use is not of the first pair
)

// Peer is the state of WireGuard with another node.
type Peer struct {
	cfg       Config
	psk       [32]byte
	keepalive time.Duration
	pairs     []*Pair
	sessions  []*Session // newest first
	current   *Session
	shaken    time.Time // when a handshake last completed
	stamp     tai64n.Timestamp

	flight   *flight
	why      purpose
	attempts int
	late     bool // the last chance to renew the current session was used

	// Timers; zero if not running.
	retryAt      time.Time // the next attempt
	moveAt       time.Time // when to begin a move
	answerAt     time.Time // a keepalive is due, unless we send something
	again        bool      // data came since answerAt was set
	silentAt     time.Time // a handshake is due, unless something arrives
	persistentAt time.Time
	expireAt     time.Time // the first session ends
}

// New returns a peer without keys.
func New(cfg Config) *Peer {
	if cfg.Limits == (Limits{}) {
		cfg.Limits = DefaultLimits
	}
	return &Peer{cfg: cfg}
}

// Current returns the session to send over, or nil if there is none.
func (p *Peer) Current(now time.Time) *Session {
	if !p.current.usable(now) {
		return nil
	}
	return p.current
}

// LastHandshake returns when a handshake last completed; zero means never.
func (p *Peer) LastHandshake() time.Time { return p.shaken }

// Sessions returns the number of sessions.
func (p *Peer) Sessions() int { return len(p.sessions) }

// Idle reports whether a Peer has no state that would be missed.
func (p *Peer) Idle() bool {
	return len(p.sessions) == 0 && p.flight == nil && p.why == none && p.keepalive == 0
}

// Next returns when a Tick is due; zero means never.
func (p *Peer) Next() (next time.Time) {
	for _, t := range [...]time.Time{p.retryAt, p.moveAt, p.answerAt, p.silentAt, p.persistentAt, p.expireAt} {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

// Step handles an event, and appends the resulting effects to out.
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

// leave begins a handshake for the first pair if a session under our key l is alive: the peer may still be sending over it.
func (p *Peer) leave(now time.Time, l *noise.Local, out []Effect) []Effect {
	if slices.ContainsFunc(p.sessions, func(s *Session) bool { return s.Pair.Local == l && s.Alive(now) }) {
		return p.shake(now, move, out)
	}
	return out
}

// cookie stores the cookie that proves to the peer that we are at our address.
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

// signed returns the pair with which we sent the handshake message that has this index: our initiation in flight, or a response
// whose session the peer may not have yet.
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

// shake begins a series of initiations, unless one is running that serves as well.
func (p *Peer) shake(now time.Time, why purpose, out []Effect) []Effect {
	if p.why == need || p.why == why || len(p.pairs) == 0 {
		return out
	}
	running := p.why != none
	p.why, p.attempts = why, 0
	if running {
		return out // its next attempt is soon
	}
	return p.initiate(now, out)
}

// initiate sends an initiation, or schedules it for as soon as one is allowed.
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
		return out // without randomness; the next attempt may do better
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

// land ends the handshake in flight.
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

// delay returns a random part of the time between attempts, so that two nodes do not stay in step.
func (p *Peer) delay() time.Duration {
	var b [4]byte
	// Without randomness there is no jitter either.
	_, _ = io.ReadFull(p.cfg.Random, b[:])
	return time.Duration(binary.LittleEndian.Uint32(b[:])) * jitter >> 32
}

// nextStamp returns a timestamp later than all before it, even if the clock was set back or moved too little to show.
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

// response completes a handshake that we began.
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

// received handles the arrival of an authentic message.
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

// outranked reports whether to keep using the current session although s was confirmed after it.
func (p *Peer) outranked(now time.Time, s *Session) bool {
	c := p.current
	switch {
	case !c.usable(now):
		return false
	case p.cfg.Higher && s.crossed != nil && c.from == s.crossed:
		return true // the handshakes crossed, and the current session is from ours
	}
	return c.Pair == p.pairs[0] && s.Pair != p.pairs[0] && now.Sub(c.made) < rekeyTimeout
}

// promote makes s the session to send over.
func (p *Peer) promote(now time.Time, s *Session) {
	p.current, p.late = s, false
	p.moveAt = time.Time{}
	if s.Pair == p.pairs[0] {
		return
	}
	p.armMove(now)
}

// armMove schedules the handshake for a session of the first pair. Only one of the two nodes should begin it.
func (p *Peer) armMove(now time.Time) {
	p.moveAt = now
	if !p.cfg.Higher {
		p.moveAt = now.Add(rekeyTimeout + p.delay())
	}
}

// complete records that a handshake succeeded. A purpose that it does not serve continues.
func (p *Peer) complete(now time.Time) {
	p.shaken = now
	if p.why == move && p.current != nil && p.current.Pair != p.pairs[0] {
		return
	}
	p.why, p.attempts = none, 0
	p.retryAt = time.Time{}
	if p.flight != nil { // it may still be answered; it is abandoned when the next one would be due
		p.retryAt = now.Add(rekeyTimeout)
	}
}

// add adds a new session to the list.
func (p *Peer) add(s *Session, out []Effect) []Effect {
	keep := p.sessions[:0:0]
	keep = append(keep, s)
	for _, o := range p.sessions {
		// The peer started over, so it is not waiting for the previous response; and the number of sessions is limited.
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

// end forgets a session; the caller removes it from the list.
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

// drop ends the sessions that keep rejects.
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

// fall goes back to the newest session that the peer is known to have.
func (p *Peer) fall(now time.Time) {
	for _, s := range p.sessions {
		if s.confirmed {
			p.promote(now, s)
			return
		}
	}
}

// setKeepalive changes the interval. If there was none, the first keepalive is due at once.
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

// probe sends the peer a message that tells it where we are.
func (p *Peer) probe(now time.Time, out []Effect) []Effect {
	if p.Current(now) != nil {
		return p.keep(now, out)
	}
	if f := p.flight; f != nil {
		return append(out, Message{f.message}) // perhaps to an endpoint it has not been sent to yet
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
