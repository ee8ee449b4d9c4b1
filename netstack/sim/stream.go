package sim

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"
)

const (
	window     = 256 << 10 // bytes that a stream holds in one direction before its writer blocks
	maxBacklog = 1024      // connections waiting to be accepted
)

// pipe is one direction of a stream. It is guarded by the Internet's lock.
type pipe struct {
	net              *Internet
	way              *way
	fromHost, toHost *Host

	chunks []chunk
	size   int
	last   time.Time // arrival of the last chunk
	moved  signal

	ended  bool // the writer is gone: no more data follows
	unread bool // the reader is gone
	broken bool // reset
}

// chunk is a piece of a stream in transit.
type chunk struct {
	data []byte
	end  bool
	due  time.Time // zero while it cannot be delivered
}

// open reports whether packets get through now, and how long they take.
func (p *pipe) open() (time.Duration, bool) { return p.way.open(p.net) }

func (p *pipe) put(c chunk) {
	if p.net.tap != nil && len(c.data) > 0 {
		p.net.tap(Seen{Data: c.data})
	}
	p.chunks = append(p.chunks, c)
	p.size += len(c.data)
	p.release()
}

// release sends the chunks that were held back.
func (p *pipe) release() {
	latency, ok := p.open()
	if !ok {
		return
	}
	due := time.Now().Add(latency)
	if due.Before(p.last) {
		due = p.last
	}
	for i := range p.chunks {
		if p.chunks[i].due.IsZero() {
			p.chunks[i].due = due
			p.last = due
		}
	}
	p.moved.fire()
}

// Conn is one end of a stream. It implements net.Conn.
type Conn struct {
	in, out       *pipe
	local, remote netip.AddrPort

	// Guarded by the Internet's lock.
	readBy, writeBy time.Time
	closed          bool
}

var _ net.Conn = (*Conn)(nil)

func (c *Conn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = c.fail("read", err)
	}
	return n, err
}

func (c *Conn) read(b []byte) (int, error) {
	p := c.in
	mu := &p.net.mu
	mu.Lock()
	defer mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case p.broken:
			return 0, os.NewSyscallError("read", syscall.ECONNRESET)
		case past(c.readBy):
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		}
		var due time.Time
		if len(p.chunks) > 0 {
			head := &p.chunks[0]
			due = head.due
			if !due.IsZero() && !due.After(time.Now()) {
				if head.end {
					return 0, io.EOF
				}
				return p.take(b), nil
			}
		}
		ch, deadline := p.moved.changed(), c.readBy
		mu.Unlock()
		await(ch, due, deadline)
		mu.Lock()
	}
}

// take reads from the first chunk, which has arrived.
func (p *pipe) take(b []byte) int {
	head := &p.chunks[0]
	n := copy(b, head.data)
	p.size -= n
	if head.data = head.data[n:]; len(head.data) == 0 {
		p.chunks = slices.Delete(p.chunks, 0, 1)
	}
	p.moved.fire()
	return n
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.write(b)
	if err != nil {
		err = c.fail("write", err)
	}
	return n, err
}

func (c *Conn) write(b []byte) (written int, err error) {
	p := c.out
	mu := &p.net.mu
	mu.Lock()
	defer mu.Unlock()
	for {
		_, open := p.open()
		switch {
		case c.closed:
			return written, net.ErrClosed
		case p.broken:
			return written, os.NewSyscallError("write", syscall.ECONNRESET)
		case p.unread && open:
			return written, os.NewSyscallError("write", syscall.EPIPE)
		case past(c.writeBy):
			return written, os.ErrDeadlineExceeded
		case len(b) == 0:
			return written, nil
		}
		if n := min(len(b), window-p.size); n > 0 {
			p.put(chunk{data: slices.Clone(b[:n])})
			b, written = b[n:], written+n
			continue
		}
		ch, deadline := p.moved.changed(), c.writeBy
		mu.Unlock()
		await(ch, deadline)
		mu.Lock()
	}
}

// Close implements net.Conn: the other end reads what is in transit, and then the end of the stream.
func (c *Conn) Close() error {
	mu := &c.in.net.mu
	mu.Lock()
	defer mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	c.closed = true
	c.in.unread = true
	c.in.moved.fire()
	c.out.put(chunk{end: true})
	c.out.ended = true
	c.out.moved.fire()
	if c.in.ended && c.out.unread {
		delete(c.in.net.pipes, c.in)
		delete(c.in.net.pipes, c.out)
	}
	return nil
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadlines(&t, &t) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadlines(&t, nil) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(nil, &t) }

func (c *Conn) setDeadlines(read, write *time.Time) error {
	mu := &c.in.net.mu
	mu.Lock()
	defer mu.Unlock()
	if c.closed {
		return c.fail("set", net.ErrClosed)
	}
	if read != nil {
		c.readBy = *read
		c.in.moved.fire()
	}
	if write != nil {
		c.writeBy = *write
		c.out.moved.fire()
	}
	return nil
}

// Listener accepts streams on all addresses of its host. It implements net.Listener.
type Listener struct {
	host *Host
	addr netip.AddrPort

	// Guarded by the Internet's lock.
	backlog []*Conn
	moved   signal
	closed  bool
}

var _ net.Listener = (*Listener)(nil)

// Listen opens a listener on the port of address, as net.Listen does; port 0 picks a free one.
func (h *Host) Listen(network, address string) (*Listener, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if len(address) > 0 && address[0] == ':' {
		address = "[::]" + address
	}
	a, err := h.resolve(network, address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	port, taken := a.Port(), func(p uint16) bool { return h.listeners[p] != nil }
	if port == 0 {
		if port, err = h.freePort(taken); err != nil {
			return nil, &net.OpError{Op: "listen", Net: network, Err: err}
		}
	}
	if taken(port) {
		return nil, &net.OpError{Op: "listen", Net: network, Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	l := &Listener{host: h, addr: netip.AddrPortFrom(a.Addr(), port)}
	h.listeners[port] = l
	return l, nil
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	mu := &l.host.net.mu
	mu.Lock()
	defer mu.Unlock()
	for {
		if l.closed {
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
		}
		if len(l.backlog) > 0 {
			c := l.backlog[0]
			l.backlog = slices.Delete(l.backlog, 0, 1)
			return c, nil
		}
		ch := l.moved.changed()
		mu.Unlock()
		<-ch
		mu.Lock()
	}
}

// Close implements net.Listener. Connections waiting to be accepted are reset.
func (l *Listener) Close() error {
	n := l.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if l.closed {
		return &net.OpError{Op: "close", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.closed = true
	delete(l.host.listeners, l.addr.Port())
	for _, c := range l.backlog {
		for _, p := range []*pipe{c.in, c.out} {
			p.broken = true
			p.moved.fire()
			delete(n.pipes, p)
		}
	}
	l.backlog = nil
	l.moved.fire()
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// The initial interval at which a connection attempt is repeated, and the time after which it is given up.
const (
	synRetry   = time.Second
	synTimeout = 127 * time.Second
)

// DialContext opens a stream to host:port, where host is an address or a host's name. If nobody is there it blocks until ctx is
// done or the attempt times out, as on a real network; it is refused if the host does not listen.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, to, err := h.dial(ctx, network, address)
	if err != nil {
		op := &net.OpError{Op: "dial", Net: network, Err: err}
		if to.IsValid() {
			op.Addr = net.TCPAddrFromAddrPort(to)
		}
		return nil, op
	}
	return c, nil
}

func (h *Host) dial(ctx context.Context, network, address string) (c *Conn, to netip.AddrPort, err error) {
	n := h.net
	begun, retry := time.Now(), synRetry
	for {
		var from netip.Addr
		var ok bool
		n.mu.Lock()
		if to, err = h.resolve(network, address); err == nil {
			if from, ok = h.source(to.Addr()); !ok {
				err = os.NewSyscallError("connect", syscall.ENETUNREACH)
			}
		}
		var w *way
		var latency time.Duration
		if err == nil {
			if w = n.way(h, from, to); w != nil {
				latency, _ = w.open(n)
			}
		}
		n.mu.Unlock()
		if err != nil {
			return nil, to, err
		}
		if w != nil {
			c, err := h.handshake(ctx, from, to, latency)
			if c != nil || err != nil {
				return c, to, err
			}
		}
		if time.Since(begun) >= synTimeout {
			return nil, to, os.NewSyscallError("connect", syscall.ETIMEDOUT)
		}
		if err := pause(ctx, retry); err != nil {
			return nil, to, err
		}
		retry *= 2
	}
}

// handshake sends a SYN. If it returns neither a connection nor an error, the SYN was lost.
func (h *Host) handshake(ctx context.Context, from netip.Addr, to netip.AddrPort, latency time.Duration) (*Conn, error) {
	if err := pause(ctx, latency); err != nil {
		return nil, err
	}
	c, lost := h.connect(from, to)
	if lost {
		return nil, nil
	}
	err := pause(ctx, latency)
	switch {
	case c == nil && err == nil:
		return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
	case err != nil && c != nil:
		return nil, errors.Join(err, c.Close())
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// connect handles the arrival of a SYN.
func (h *Host) connect(from netip.Addr, to netip.AddrPort) (c *Conn, lost bool) {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.way(h, from, to)
	if w == nil {
		return nil, true
	}
	l := w.to.host.listeners[to.Port()]
	if l == nil || len(l.backlog) >= maxBacklog {
		return nil, l != nil
	}
	port, err := h.freePort(func(uint16) bool { return false })
	if err != nil {
		return nil, true
	}
	there := &pipe{net: n, way: w, fromHost: h, toHost: w.to.host}
	back := &pipe{net: n, way: w, fromHost: w.to.host, toHost: h}
	n.pipes[there], n.pipes[back] = struct{}{}, struct{}{}
	l.backlog = append(l.backlog, &Conn{in: there, out: back, local: to, remote: w.seen(port)})
	l.moved.fire()
	return &Conn{in: back, out: there, local: netip.AddrPortFrom(from, port), remote: to}, false
}

// pause waits for d. If ctx is done first, it returns why.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return os.ErrDeadlineExceeded
		}
		return ctx.Err()
	}
}
