package agenttest

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// fate is what happens to a message.
type fate string

const (
	// lost: it never arrives, and both ends see their stream break.
	lost fate = "lost"
	// unanswered: it arrives, and the stream breaks before an answer can.
	unanswered fate = "unanswered"
	// swallowed: it never arrives, nor does anything after it for a while, and nobody is told.
	swallowed fate = "swallowed"
)

var fates = []fate{lost, unanswered, swallowed}

// outage is how long a swallowed message takes everything after it with it.
const outage = 3 * time.Minute

// tap stands between a machine and the coordinator. It counts the messages of both, the TLS handshake's included, and one of
// them meets its fate.
type tap struct {
	node   *node
	at     int // which message, from 0
	fate   fate
	larger int // messages up to this size are not counted: keepalives

	mu   sync.Mutex
	seen int
	hit  bool
}

// install puts the tap in the way of all streams that begin from now on.
func (t *tap) install(n *node) *tap {
	t.node = n
	n.tap, n.m.center.tap = t, t
	return t
}

// Hit says whether there was such a message.
func (t *tap) Hit() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hit
}

// pass says whether a message may pass, and sees to what follows.
func (t *tap) pass(message []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hit || len(message) <= t.larger {
		return true
	}
	t.hit = t.seen == t.at
	t.seen++
	if !t.hit {
		return true
	}
	net, a, b := t.node.m.net, t.node.host, t.node.m.center.host
	switch t.fate {
	case lost:
		go net.ResetStreams(a, b)
	case unanswered:
		time.AfterFunc(latency+latency/2, func() { net.ResetStreams(a, b) })
		return true
	case swallowed:
		net.Cut(a, b)
		time.AfterFunc(outage, func() { net.Heal(a, b) })
	}
	return false
}

// errDead says that the process that asks is none any more.
var errDead = errors.New("killed")

// tapped is a connection of a process that may die, with a tap in one direction, or none.
type tapped struct {
	net.Conn
	tap  *tap
	dead *atomic.Bool
}

// Write implements net.Conn.
func (c tapped) Write(b []byte) (int, error) {
	if c.dead.Load() || c.tap != nil && !c.tap.pass(b) {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// tappedListener accepts connections that a tap may be in the way of.
type tappedListener struct {
	net.Listener
	c *center
}

// Accept implements net.Listener.
func (l tappedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tapped{conn, l.c.tap, &l.c.dead}, nil
}
