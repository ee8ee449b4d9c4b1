package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// Times of a link.
const (
	// renewBefore is how long before its end a session is bound anew; one that lasts for less than four times this, when a
	// quarter of it is left.
	renewBefore = 2 * time.Minute
	// keepWarm is how often a session that nothing else keeps open says something, so that NATs keep its mapping.
	keepWarm = 25 * time.Second
	// firstTry is how long the first answer is awaited; each later one twice as long, up to lastTry.
	firstTry = 250 * time.Millisecond
	lastTry  = 2 * time.Second
	// tries is how many hellos or binds go unanswered before the relay counts as not there by UDP.
	tries = 5
	// pause and maxPause bound the time until it is tried again.
	pause    = time.Second
	maxPause = time.Minute
	// suspect is how long a session in use may bring nothing before it is asked whether it lives, and ask how often.
	suspect = 600 * time.Millisecond
	ask     = 250 * time.Millisecond
	asks    = 3
)

var (
	errSilent = errors.New("no answer by UDP")
	errMute   = errors.New("no answer by the stream")
	errRandom = errors.New("no random numbers")
)

// refusedError is why a relay binds no session.
func refusedError(r relaymsg.Reason) error { return fmt.Errorf("relay refuses: %s", r) }

// link is the state of one relay by UDP, as its node sees it. It decides and does nothing: see Step.
type link struct {
	relay proto.Relay
	addrs []netip.AddrPort // where the relay may be

	// want says that a session is wanted, and measure that the round trip is.
	want, measure bool

	try *attempt // to bind a session; nil: none is made
	cur *bound   // the session in use; nil: there is none

	failures int
	next     time.Time // when it is tried again
	err      error     // why it was not, for people
	rtt      time.Duration
	measured time.Time
	// drains says that the relay is about to stop.
	drains time.Time
}

// attempt is a session that is being bound.
type attempt struct {
	session    uint32
	secret     *relaymsg.Secret
	said       time.Time // when the first hello went
	lone       bool      // no second one went, so that an answer tells the round trip
	count      int
	next       time.Time
	addr       netip.AddrPort // who answered
	cookie     [relaymsg.CookieSize]byte
	challenged bool
	info       *relaymsg.BindInfo // signed; nil: not yet
	key        *relaymsg.Key
	signing    bool
}

// bound is a session.
type bound struct {
	session uint32
	addr    netip.AddrPort
	key     *relaymsg.Key
	seen    netip.AddrPort // us, as the relay sees us
	since   time.Time
	until   time.Time
	counter uint64 // of the last Rebind
	heard   time.Time
	// sent is when packets were sent last, and asked when the first of them was since something was heard. Who moves packets
	// keeps both up to date, and heard.
	sent, asked time.Time
	pinged      time.Time
	token       uint64 // of the last ping
	open        int    // pings without an answer
	rebinding   time.Time
}

// event is what happens to a link.
type event interface{ isEvent() }

type (
	// ticked is the time that has passed.
	ticked struct{}
	// arrived is a control datagram of the relay. Raw is all of it.
	arrived struct {
		from netip.AddrPort
		m    relaymsg.Message
		raw  []byte
	}
	// signed is a certificate with the signature that binds the session of an attempt, or why there is none.
	signed struct {
		session uint32
		info    relaymsg.BindInfo
		key     *relaymsg.Key
		err     error
	}
	// moved says that our address, or the socket, is another one.
	moved struct{}
	// stirred says that what is between may have forgotten us, or that the relay may be gone.
	stirred struct{}
)

func (ticked) isEvent()  {}
func (arrived) isEvent() {}
func (signed) isEvent()  {}
func (moved) isEvent()   {}
func (stirred) isEvent() {}

// effect is what is to be done.
type effect interface{ isEffect() }

type (
	// send sends a datagram to the relay.
	send struct {
		to netip.AddrPort
		b  []byte
	}
	// sign makes the signature of a session's transcript, which may take long.
	sign struct {
		session uint32
		secret  *relaymsg.Secret
		key     [relaymsg.KeySize]byte
	}
	// opened and lost say that the session in use is another one, or that there is none any more.
	opened struct{}
	lost   struct{}
	// unreachable says that the relay does not bring packets to a peer.
	unreachable struct {
		peer   proto.NodeID
		reason relaymsg.Reason
	}
	// leave says that the relay is about to stop.
	leave struct{}
	// gauged says that the round trip is known.
	gauged struct{}
)

func (send) isEffect()        {}
func (sign) isEffect()        {}
func (opened) isEffect()      {}
func (lost) isEffect()        {}
func (unreachable) isEffect() {}
func (leave) isEffect()       {}
func (gauged) isEffect()      {}

// chance is where a link's randomness comes from.
type chance interface {
	Uint64() uint64
	// Float64 is 0 to 1.
	Float64() float64
	Secret() *relaymsg.Secret
}

// Step takes what happened and gives what is to be done.
func (l *link) Step(now time.Time, e event, r chance) []effect {
	switch e := e.(type) {
	case ticked:
		out := l.tickBound(now, r)
		return append(out, l.tickTry(now, r)...)
	case moved:
		return l.move(now, r)
	case stirred:
		return l.stir(now, r)
	case signed:
		return l.bind(now, e, r)
	case arrived:
		return l.arrive(now, e, r)
	}
	return nil
}

// due is when the link wants the next tick.
func (l *link) due() time.Time {
	var at time.Time
	earlier := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	switch {
	case l.try != nil:
		earlier(l.try.next)
	case l.measure || (l.want && l.cur == nil):
		earlier(laterOf(l.next, time.Unix(1, 0)))
	case l.want:
		earlier(l.renewal())
	}
	if c := l.cur; c != nil {
		earlier(c.until)
		earlier(c.nextPing())
	}
	return at
}

func laterOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// renewal is when a session is bound anew before it is over.
func (l *link) renewal() time.Time {
	c := l.cur
	if c == nil {
		return time.Time{}
	}
	return laterOf(c.until.Add(-min(renewBefore, c.until.Sub(c.since)/4)), l.next)
}

// nextPing is when the relay is asked whether the session lives.
func (c *bound) nextPing() time.Time {
	switch {
	case c.open > 0 && !c.heard.After(c.pinged):
		return c.pinged.Add(ask)
	case c.asked.After(c.heard):
		return laterOf(c.asked.Add(suspect), c.pinged.Add(suspect))
	}
	return laterOf(c.heard, c.pinged).Add(keepWarm)
}

func (l *link) tickBound(now time.Time, r chance) []effect {
	c := l.cur
	if c == nil {
		return nil
	}
	if !now.Before(c.until) {
		l.cur = nil
		return []effect{lost{}}
	}
	if now.Before(c.nextPing()) {
		return nil
	}
	if c.heard.After(c.pinged) {
		c.open = 0
	}
	if c.open >= asks {
		l.cur, l.next, l.err = nil, now, errSilent
		return []effect{lost{}}
	}
	if !l.want && c.open == 0 && now.Sub(c.sent) > keepWarm {
		bye := relaymsg.Append(nil, &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Bye, Session: c.session}}, c.key, false)
		l.cur = nil
		return []effect{send{c.addr, bye}, lost{}}
	}
	return []effect{l.ping(now, r)}
}

func (l *link) ping(now time.Time, r chance) effect {
	c := l.cur
	c.token, c.pinged = r.Uint64(), now
	c.open++
	m := &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Ping, Session: c.session}, Token: c.token}
	return send{c.addr, relaymsg.Append(nil, m, c.key, false)}
}

func (l *link) tickTry(now time.Time, r chance) []effect {
	t := l.try
	if t == nil {
		wanted := l.measure || (l.want && (l.cur == nil || !now.Before(l.renewal())))
		if !wanted || now.Before(l.next) || len(l.addrs) == 0 {
			return nil
		}
		return l.begin(now, r)
	}
	if now.Before(t.next) {
		return nil
	}
	if t.count >= tries {
		l.fail(now, errSilent, r)
		return nil
	}
	if !t.challenged {
		t.lone = false
		return l.hello(now)
	}
	if t.info == nil {
		t.next = now.Add(lastTry)
		t.count++
		return nil // the signature takes its time
	}
	return []effect{l.bindAgain(now)}
}

// begin begins an attempt.
func (l *link) begin(now time.Time, r chance) []effect {
	secret := r.Secret()
	if secret == nil {
		l.fail(now, errRandom, r)
		return nil
	}
	l.try = &attempt{session: uint32(r.Uint64()), secret: secret, said: now, lone: true}
	return l.hello(now)
}

// hello asks at all addresses.
func (l *link) hello(now time.Time) (out []effect) {
	t := l.try
	t.next = now.Add(min(firstTry<<t.count, lastTry))
	t.count++
	for _, a := range l.addrs {
		m := &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Hello, Session: t.session}}
		out = append(out, send{a, relaymsg.Append(nil, m, nil, false)})
	}
	return out
}

// fail ends an attempt.
func (l *link) fail(now time.Time, err error, r chance) {
	l.try, l.err, l.measure = nil, err, false
	wait := min(pause<<min(l.failures, 10), maxPause)
	l.failures++
	l.next = now.Add(time.Duration((0.5 + 0.5*r.Float64()) * float64(wait)))
}

// move has the relay learn of our other address: it answers what comes from there with a cookie.
func (l *link) move(now time.Time, r chance) []effect {
	l.next, l.failures = time.Time{}, 0
	if l.try != nil {
		l.try = nil
	}
	if l.cur == nil {
		return l.tickTry(now, r)
	}
	l.cur.open = 0
	return []effect{l.ping(now, r)}
}

// stir asks whether the session lives, unless that was asked just now.
func (l *link) stir(now time.Time, r chance) []effect {
	if l.cur == nil || now.Sub(l.cur.pinged) < ask {
		return nil
	}
	if l.cur.heard.After(l.cur.pinged) {
		l.cur.open = 0
	}
	return []effect{l.ping(now, r)}
}

func (l *link) arrive(now time.Time, e arrived, r chance) []effect {
	if t := l.try; t != nil && e.m.Session == t.session {
		return l.answered(now, t, e, r)
	}
	c := l.cur
	if c == nil || e.m.Session != c.session || e.from != c.addr {
		return nil
	}
	switch e.m.Kind {
	case relaymsg.Challenge:
		if now.Sub(c.rebinding) < ask {
			return nil
		}
		c.rebinding = now
		c.counter++
		m := &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Rebind, Session: c.session}, Cookie: e.m.Cookie, Token: c.counter}
		return []effect{send{c.addr, relaymsg.Append(nil, m, c.key, false)}}
	case relaymsg.Refused:
		// Whoever says so need not be the relay: the session stays in use while another one is bound.
		if l.want && l.try == nil && !now.Before(l.next) {
			out := l.begin(now, r)
			l.next = now.Add(lastTry)
			return out
		}
		return nil
	}
	if !c.key.Verify(e.raw, true) {
		return nil
	}
	c.heard = now
	return l.told(now, c, e.m)
}

// told is for what the relay says under the session's key.
func (l *link) told(now time.Time, c *bound, m relaymsg.Message) []effect {
	switch m.Kind {
	case relaymsg.Pong:
		if m.Token == c.token && c.open > 0 {
			if c.open == 1 {
				l.setRTT(now, now.Sub(c.pinged))
			}
			c.open = 0
		}
	case relaymsg.Bound:
		c.seen, c.open = m.Addr, 0
		return []effect{opened{}}
	case relaymsg.Unreached:
		return []effect{unreachable{m.Peer, m.Reason}}
	case relaymsg.Drain:
		if l.drains.IsZero() {
			l.drains = now.Add(time.Duration(m.Seconds) * time.Second)
			return []effect{leave{}}
		}
	}
	return nil
}

func (l *link) setRTT(now time.Time, d time.Duration) {
	if l.rtt == 0 || now.Sub(l.measured) > time.Hour {
		l.rtt = d
	} else {
		l.rtt += (d - l.rtt) / 4
	}
	l.measured = now
}

// answered is for what an attempt's session is told.
func (l *link) answered(now time.Time, t *attempt, e arrived, r chance) []effect {
	switch e.m.Kind {
	case relaymsg.Challenge:
		if t.challenged && (e.from != t.addr || t.info == nil) {
			return nil // one is enough
		}
		if !t.challenged {
			t.challenged, t.addr, t.count = true, e.from, 0
			if t.lone {
				l.setRTT(now, now.Sub(t.said))
			}
			l.measured = now
			l.measure, l.err = false, nil
			if !l.want || (l.cur != nil && now.Before(l.renewal())) {
				l.try, l.failures = nil, 0
				return []effect{gauged{}}
			}
		}
		t.cookie = e.m.Cookie
		if t.info != nil {
			return []effect{l.bindAgain(now)}
		}
		if t.signing {
			return nil
		}
		t.signing, t.next = true, now.Add(lastTry)
		return []effect{sign{t.session, t.secret, l.relay.Key}}
	case relaymsg.Refused:
		if t.challenged && e.from == t.addr {
			l.fail(now, refusedError(e.m.Reason), r)
		}
		return nil
	case relaymsg.Bound:
		if t.key == nil || e.from != t.addr || !t.key.Verify(e.raw, true) {
			return nil
		}
		l.try, l.failures, l.err, l.drains = nil, 0, nil, time.Time{}
		l.next = time.Time{}
		l.cur = &bound{
			session: t.session, addr: t.addr, key: t.key, seen: e.m.Addr, heard: now, pinged: now,
			since: now, until: now.Add(time.Duration(e.m.Seconds) * time.Second),
		}
		return []effect{opened{}}
	}
	return nil
}

// bind goes on with a signature.
func (l *link) bind(now time.Time, e signed, r chance) []effect {
	t := l.try
	if t == nil || t.session != e.session {
		return nil
	}
	if e.err != nil {
		l.fail(now, e.err, r)
		return nil
	}
	t.info, t.key, t.count = &e.info, e.key, 0
	return []effect{l.bindAgain(now)}
}

func (l *link) bindAgain(now time.Time) effect {
	t := l.try
	t.next = now.Add(min(firstTry<<t.count, lastTry))
	t.count++
	m := &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Bind, Session: t.session}, Cookie: t.cookie, BindInfo: *t.info}
	return send{t.addr, relaymsg.Append(nil, m, nil, false)}
}
