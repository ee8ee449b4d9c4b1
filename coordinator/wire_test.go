package coordinator

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

var errRefused = errors.New("connection refused")

// listener is an in-memory network: connections with deadlines, and 64 KiB buffers each way.
type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	last int
}

func newListener() *listener {
	return &listener{conns: make(chan net.Conn, 32768), closed: make(chan struct{})}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443} }

func (l *listener) dial() (net.Conn, error) {
	l.mu.Lock()
	l.last++
	from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(100 + l.last>>8), byte(l.last)}), 50000)
	l.mu.Unlock()
	a, b := newPipe(), newPipe()
	addr := net.TCPAddrFromAddrPort(from)
	select {
	case <-l.closed:
		return nil, errRefused
	case l.conns <- &conn{in: a, out: b, local: l.Addr(), remote: addr}:
	}
	return &conn{in: b, out: a, local: addr, remote: l.Addr()}, nil
}

// pipe is one direction of a connection.
type pipe struct {
	mu            sync.Mutex
	changed       *sync.Cond
	buf           []byte
	ended         bool // by the writer
	broken        bool // by either
	readBy, sayBy time.Time
}

const pipeSize = 64 << 10

func newPipe() *pipe {
	p := &pipe{}
	p.changed = sync.NewCond(&p.mu)
	return p
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case past(p.readBy):
			return 0, timedOut{}
		case len(p.buf) > 0:
			n := copy(b, p.buf)
			p.buf = append(p.buf[:0], p.buf[n:]...)
			p.changed.Broadcast()
			return n, nil
		case p.broken:
			return 0, net.ErrClosed
		case p.ended:
			return 0, io.EOF
		}
		p.changed.Wait()
	}
}

func (p *pipe) write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(b) > 0 {
		switch {
		case p.ended || p.broken:
			return n, net.ErrClosed
		case past(p.sayBy):
			return n, timedOut{}
		case len(p.buf) < pipeSize:
			k := min(len(b), pipeSize-len(p.buf))
			p.buf = append(p.buf, b[:k]...)
			b, n = b[k:], n+k
			p.changed.Broadcast()
			continue
		}
		p.changed.Wait()
	}
	return n, nil
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (p *pipe) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.changed.Broadcast()
}

type timedOut struct{}

func (timedOut) Error() string   { return "i/o timeout" }
func (timedOut) Timeout() bool   { return true }
func (timedOut) Temporary() bool { return true }

type conn struct {
	in, out       *pipe
	local, remote net.Addr
}

func (c *conn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *conn) Write(b []byte) (int, error) { return c.out.write(b) }
func (c *conn) LocalAddr() net.Addr         { return c.local }
func (c *conn) RemoteAddr() net.Addr        { return c.remote }

func (c *conn) Close() error {
	c.out.set(func() { c.out.ended = true })
	c.in.set(func() { c.in.broken = true })
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.set(func() { c.in.readBy = t })
	c.in.wakeAt(t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.set(func() { c.out.sayBy = t })
	c.out.wakeAt(t)
	return nil
}

func (p *pipe) wakeAt(t time.Time) {
	if !t.IsZero() {
		time.AfterFunc(time.Until(t), func() { p.set(func() {}) })
	}
}
