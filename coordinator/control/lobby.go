package control

import (
	"container/list"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// maxHandshake is how much a guest may send before its handshake is complete: several times what the longest valid certificate
// chain needs. TLS buffers a message until it is complete.
const maxHandshake = 64 << 10

var errTooMuch = errors.New("more bytes than a handshake takes")

// lobby holds the connections that are not authenticated yet. It has a fixed number of places: when it is full, a newcomer
// takes the place of the oldest guest, so that silent connections cannot lock out others.
type lobby struct {
	places int
	// slots bounds how many handshakes compute at once; a handshake waiting for its peer holds none.
	slots *slots

	mu      sync.Mutex
	guests  *list.List // of *guest, oldest first
	closed  bool
	dropped atomic.Uint64
}

func newLobby(places, computing int) *lobby {
	return &lobby{places: places, slots: &slots{free: computing}, guests: list.New()}
}

// enter gives a connection a place. Until it leaves, no deadline set on it extends beyond until.
func (l *lobby) enter(c net.Conn, until time.Time) (*guest, bool) {
	g := &guest{Conn: c, lobby: l}
	g.patience(until)
	var oldest *guest
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		c.Close()
		return nil, false
	}
	if l.guests.Len() >= l.places {
		oldest = l.guests.Remove(l.guests.Front()).(*guest)
		oldest.place = nil
	}
	g.place = l.guests.PushBack(g)
	l.mu.Unlock()
	if oldest != nil {
		l.dropped.Add(1)
		oldest.drop()
	}
	return g, true
}

func (l *lobby) leave(g *guest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g.place != nil {
		l.guests.Remove(g.place)
		g.place = nil
	}
}

func (l *lobby) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.guests.Len()
}

// close drops all guests, and all who come later.
func (l *lobby) close() {
	l.mu.Lock()
	l.closed = true
	var all []*guest
	for e := l.guests.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(*guest))
	}
	l.mu.Unlock()
	for _, g := range all {
		g.drop()
	}
}

// guest is the connection below TLS.
type guest struct {
	net.Conn
	lobby *lobby
	place *list.Element // guarded by lobby.mu; nil once it left

	// shaking means that the reader or writer holds a slot. It is set only on the goroutine doing the handshake.
	shaking bool
	// allowance is how many bytes the guest may still send during the handshake.
	allowance int
	// node is the node that the handshake authenticated, nil for none. outOfTime reports that its certificate has expired, or
	// is not yet valid because the coordinator's clock was wrong when it was issued.
	node      *cert.Node
	outOfTime bool

	// writers does the writing once the node is known.
	writers *pool

	until atomic.Pointer[time.Time]
}

// shake runs f, the handshake, holding a slot that is released whenever f waits.
func (g *guest) shake(f func() error) error {
	begin := time.Now()
	g.lobby.slots.take(false)
	if until := g.until.Load(); until != nil {
		g.patience(until.Add(time.Since(begin))) // the wait for a slot is not the guest's fault
	}
	g.shaking, g.allowance = true, maxHandshake
	err := f()
	g.shaking = false
	g.lobby.slots.give()
	return err
}

// patience sets the deadline for the connection's current step; it overrides any later deadline set on the connection.
func (g *guest) patience(until time.Time) {
	g.until.Store(&until)
	_ = g.Conn.SetDeadline(until)
}

// admit takes the connection out of the lobby and removes its deadline.
func (g *guest) admit() {
	g.lobby.leave(g)
	g.until.Store(nil)
	_ = g.Conn.SetDeadline(time.Time{})
}

func (g *guest) Read(b []byte) (int, error) {
	if !g.shaking {
		return g.Conn.Read(b)
	}
	if g.allowance == 0 {
		return 0, errTooMuch
	}
	g.lobby.slots.give()
	defer g.lobby.slots.take(true)
	n, err := g.Conn.Read(b[:min(len(b), g.allowance)])
	g.allowance -= n
	return n, err
}

func (g *guest) Write(b []byte) (n int, err error) {
	if g.writers != nil {
		g.writers.aside(func() { n, err = g.Conn.Write(b) })
		return n, err
	}
	if g.shaking {
		g.lobby.slots.give()
		defer g.lobby.slots.take(true)
	}
	return g.Conn.Write(b)
}

func (g *guest) Close() error {
	g.lobby.leave(g)
	return g.Conn.Close()
}

// drop closes the connection without a message.
func (g *guest) drop() { _ = g.Close() }

func (g *guest) SetDeadline(t time.Time) error      { return g.Conn.SetDeadline(g.bound(t)) }
func (g *guest) SetReadDeadline(t time.Time) error  { return g.Conn.SetReadDeadline(g.bound(t)) }
func (g *guest) SetWriteDeadline(t time.Time) error { return g.Conn.SetWriteDeadline(g.bound(t)) }

func (g *guest) bound(t time.Time) time.Time {
	if until := g.until.Load(); until != nil && (t.IsZero() || t.After(*until)) {
		return *until
	}
	return t
}
