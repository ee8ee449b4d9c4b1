package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// The timing of a link.
const (
	// renewBefore is how long before its end a session is bound again; one shorter than four times this is renewed when a
	// quarter of it is left.
	renewBefore = 2 * time.Minute
	// keepWarm is how often something is sent over an otherwise idle session, so that NATs keep its mapping.
	keepWarm = 25 * time.Second
	// firstTry is how long to wait for the first answer; each later wait is twice as long, up to lastTry.
	firstTry = 250 * time.Millisecond
	lastTry  = 2 * time.Second
	// tries is how many hellos or binds go unanswered before the relay counts as unreachable over UDP.
	tries = 5
	// pause and maxPause bound the backoff before it is tried again.
	pause    = time.Second
	maxPause = time.Minute
	// A session in use that is silent for suspect is pinged every ask, and given up after asks unanswered pings.
	suspect = 600 * time.Millisecond
	ask     = 250 * time.Millisecond
	asks    = 3
)

var (
	errSilent = errors.New("no answer by UDP")
	errMute   = errors.New("no answer by the stream")
	errRandom = errors.New("no random numbers")
)

// refusedError returns an error for a relay that refuses to bind a session.
func refusedError(r relaymsg.Reason) error { return fmt.Errorf("relay refuses: %s", r) }

// link is a node's view of one relay over UDP. It decides but does nothing: see Step.
type link struct {
	relay proto.Relay
	addrs []netip.AddrPort // where the relay may be

	// want means that a session is wanted, measure that the round trip is.
	want, measure bool

	try *attempt // to bind a session; nil if there is none
	cur *bound   // the session in use; nil if there is none

	failures int
	next     time.Time // of the next attempt
	err      error     // of the last attempt, for users
	rtt      time.Duration
	measured time.Time
	// drains is when the relay will stop, if it has announced so.
	drains time.Time
}

// attempt is a session being bound.
type attempt struct {
	session    uint32
	secret     *relaymsg.Secret
	said       time.Time // when the first hello was sent
	lone       bool      // no second hello was sent, so an answer gives the round trip
	count      int
	next       time.Time
	addr       netip.AddrPort // where the answer came from
	cookie     [relaymsg.CookieSize]byte
	challenged bool
	info       *relaymsg.BindInfo // signed; nil until then
	key        *relaymsg.Key
	signing    bool
}

// bound is a bound session.
type bound struct {
	session uint32
	addr    netip.AddrPort
	key     *relaymsg.Key
	seen    netip.AddrPort // our address, as the relay sees it
	since   time.Time
	until   time.Time
	counter uint64 // of the last Rebind
	heard   time.Time
	// sent is when packets were last sent, and asked when the first of them since heard was. The code that moves packets
	// updates both, and heard.
	sent, asked time.Time
	pinged      time.Time
	token       uint64 // of the last ping
	open        int    // unanswered pings
	rebinding   time.Time
}

// event is something that happens to a link.
type event interface{ isEvent() }

type (
	// ticked reports that time has passed.
	ticked struct{}
	// arrived is a control datagram from the relay. raw is all of it.
	arrived struct {
		from netip.AddrPort
		m    relaymsg.Message
		raw  []byte
	}
	// signed is a certificate with the signature that binds an attempt's session, or the error.
	signed struct {
		session uint32
		info    relaymsg.BindInfo
		key     *relaymsg.Key
		err     error
	}
	// moved reports that our address, or the socket, has changed.
	moved struct{}
	// stirred reports that a device on the path may have forgotten us, or that the relay may be gone.
	stirred struct{}
)

func (ticked) isEvent()  {}
func (arrived) isEvent() {}
func (signed) isEvent()  {}
func (moved) isEvent()   {}
func (stirred) isEvent() {}

// effect is an action that the caller must take.
type effect interface{ isEffect() }

type (
	// send sends a datagram to the relay.
	send struct {
		to netip.AddrPort
		b  []byte
	}
	// sign signs a session's transcript, which may take long.
	sign struct {
		session uint32
		secret  *relaymsg.Secret
		key     [relaymsg.KeySize]byte
	}
	// opened and lost mean that there is another session in use, or none any longer.
	opened struct{}
	lost   struct{}
	// unreachable means that the relay does not deliver packets to a peer.
	unreachable struct {
		peer   proto.NodeID
		reason relaymsg.Reason
	}
	// leave means that the relay is about to stop.
	leave struct{}
	// gauged means that the round trip is known.
	gauged struct{}
)

func (send) isEffect()        {}
func (sign) isEffect()        {}
func (opened) isEffect()      {}
func (lost) isEffect()        {}
func (unreachable) isEffect() {}
func (leave) isEffect()       {}
func (gauged) isEffect()      {}

// chance is a link's source of randomness.
type chance interface {
	Uint64() uint64
	// Float64 returns a number from 0 to 1.
	Float64() float64
	Secret() *relaymsg.Secret
}

// Step handles an event and returns the resulting effects.
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

// due returns when the link wants the next tick.
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
	case len(l.addrs) == 0:
		// No attempt is possible until an address is found, and that causes a tick.
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

// renewal returns when the session is bound again, before it ends.
func (l *link) renewal() time.Time {
	c := l.cur
	if c == nil {
		return time.Time{}
	}
	return laterOf(c.until.Add(-min(renewBefore, c.until.Sub(c.since)/4)), l.next)
}

// nextPing returns when to ping the relay to check that the session is alive.
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

// begin starts an attempt.
func (l *link) begin(now time.Time, r chance) []effect {
	secret := r.Secret()
	if secret == nil {
		l.fail(now, errRandom, r)
		return nil
	}
	l.try = &attempt{session: uint32(r.Uint64()), secret: secret, said: now, lone: true}
	return l.hello(now)
}

// hello sends a hello to all addresses.
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

// move pings the relay from our changed address: it answers with a cookie.
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

// stir pings the relay, unless that was done a moment ago.
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
		// The sender need not be the relay: the session stays in use while another one is bound.
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

// told handles a message authenticated with the session's key.
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

// answered handles a message for an attempt's session.
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

// bind continues with the signature.
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
