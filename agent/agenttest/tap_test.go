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
	// lost means that it never arrives, and both ends see their stream break.
	lost fate = "lost"
	// unanswered means that it arrives, and the stream breaks before an answer can.
	unanswered fate = "unanswered"
	// swallowed means that neither it nor anything after it arrives for a while, and nobody is told.
	swallowed fate = "swallowed"
)

var fates = []fate{lost, unanswered, swallowed}

// outage is how long everything after a swallowed message is lost as well.
const outage = 3 * time.Minute

// tap sits between a machine and the coordinator. It counts the messages of both, the TLS handshake's included, and one of them
// meets its fate.
type tap struct {
	node   *node
	at     int // which message, from 0
	fate   fate
	larger int // messages up to this size, such as keepalives, are not counted

	mu   sync.Mutex
	seen int
	hit  bool
}

// install taps all streams that begin later.
func (t *tap) install(n *node) *tap {
	t.node = n
	n.tap, n.m.center.tap = t, t
	return t
}

// Hit reports whether there was such a message.
func (t *tap) Hit() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hit
}

// pass reports whether a message may pass, and carries out its fate.
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

// errDead means that the calling process was killed.
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

// tappedListener accepts connections that may be tapped.
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
