package sim

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"
)

// maxDatagrams bounds the datagrams queued in a socket; more are lost.
const maxDatagrams = 4096

// UDPConn is a UDP socket on all addresses of its host. It implements net.PacketConn.
type UDPConn struct {
	host *Host
	port uint16

	// Guarded by the Internet's lock.
	queue    []datagram // ordered by arrival
	moved    signal
	deadline time.Time
	closed   bool
	whole    bool // packets must not be fragmented in transit; over IPv6 they never are
	probes   bool // nor by the host, whatever ICMP reported
}

var _ net.PacketConn = (*UDPConn)(nil)

// ListenUDP opens a socket on a port; 0 picks a free one.
func (h *Host) ListenUDP(port uint16) (*UDPConn, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	taken := func(p uint16) bool { return h.udp[p] != nil }
	if port == 0 {
		var err error
		if port, err = h.freePort(taken); err != nil {
			return nil, err
		}
	}
	if taken(port) {
		return nil, &net.OpError{Op: "listen", Net: "udp", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	c := &UDPConn{host: h, port: port, whole: true}
	h.udp[port] = c
	return c, nil
}

// send sends a datagram from src, or from a suitable address if src is invalid.
func (c *UDPConn) send(data []byte, src netip.Addr, dst netip.AddrPort) error {
	h, n := c.host, c.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if src.IsValid() {
		if !slices.Contains(h.addrs, src) && !src.IsLoopback() {
			return os.NewSyscallError("sendmsg", syscall.EINVAL)
		}
	} else {
		var ok bool
		if src, ok = h.source(dst.Addr()); !ok {
			return os.NewSyscallError("sendmsg", syscall.ENETUNREACH)
		}
	}
	d := datagram{
		sender: h, asked: dst, from: netip.AddrPortFrom(src, c.port), dst: dst,
		whole: c.whole || c.probes || dst.Addr().Is6(), data: bytes.Clone(data),
	}
	if mtu, ok := h.mtus[dst.Addr()]; ok && !c.probes && d.size() > mtu {
		d.whole = false
	}
	n.carry(d)
	return nil
}

// arrive queues a datagram by its arrival time.
func (c *UDPConn) arrive(d datagram) {
	if len(c.queue) >= maxDatagrams {
		return
	}
	i := len(c.queue)
	for i > 0 && c.queue[i-1].due.After(d.due) {
		i--
	}
	c.queue = slices.Insert(c.queue, i, d)
	c.moved.fire()
}

// Probe makes the socket send unfragmented packets, whatever ICMP reported about the path (IP_PMTUDISC_PROBE). Without it a
// packet known to be too large is sent in fragments, as Linux does (IP_PMTUDISC_WANT).
func (c *UDPConn) Probe() { c.discover(true, true) }

// discover sets whether packets are unfragmented if nothing is known about the path, and if they are known to be too large.
func (c *UDPConn) discover(whole, probes bool) {
	c.host.net.mu.Lock()
	defer c.host.net.mu.Unlock()
	c.whole, c.probes = whole, probes
}

// receive waits for datagrams, and returns at least one and at most limit.
func (c *UDPConn) receive(limit int) ([]datagram, error) {
	mu := &c.host.net.mu
	mu.Lock()
	defer mu.Unlock()
	for {
		if c.closed {
			return nil, net.ErrClosed
		}
		c.host.settle()
		now, n := time.Now(), 0
		for n < len(c.queue) && n < limit && !c.queue[n].due.After(now) {
			n++
		}
		if n > 0 {
			got := slices.Clone(c.queue[:n])
			c.queue = slices.Delete(c.queue, 0, n)
			return got, nil
		}
		if past(c.deadline) {
			return nil, os.ErrDeadlineExceeded
		}
		var due time.Time
		if len(c.queue) > 0 {
			due = c.queue[0].due
		}
		ch, deadline, expected := c.moved.changed(), c.deadline, c.host.expected()
		mu.Unlock()
		await(ch, due, deadline, expected)
		mu.Lock()
	}
}

// ReadFrom implements net.PacketConn.
func (c *UDPConn) ReadFrom(b []byte) (int, net.Addr, error) {
	got, err := c.receive(1)
	if err != nil {
		return 0, nil, &net.OpError{Op: "read", Net: "udp", Err: err}
	}
	return copy(b, got[0].data), net.UDPAddrFromAddrPort(got[0].from), nil
}

// WriteTo implements net.PacketConn.
func (c *UDPConn) WriteTo(b []byte, to net.Addr) (int, error) {
	a, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, &net.OpError{Op: "write", Net: "udp", Addr: to, Err: net.InvalidAddrError("not a UDP address")}
	}
	dst := a.AddrPort()
	if err := c.send(b, netip.Addr{}, netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())); err != nil {
		return 0, &net.OpError{Op: "write", Net: "udp", Addr: to, Err: err}
	}
	return len(b), nil
}

// LocalAddr implements net.PacketConn.
func (c *UDPConn) LocalAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv6Unspecified(), c.port))
}

// SetDeadline implements net.PacketConn; writes never block.
func (c *UDPConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline implements net.PacketConn.
func (c *UDPConn) SetReadDeadline(t time.Time) error {
	mu := &c.host.net.mu
	mu.Lock()
	defer mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.deadline = t
	c.moved.fire()
	return nil
}

// SetWriteDeadline implements net.PacketConn; writes never block.
func (c *UDPConn) SetWriteDeadline(time.Time) error { return nil }

// Close implements net.PacketConn.
func (c *UDPConn) Close() error {
	mu := &c.host.net.mu
	mu.Lock()
	defer mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	delete(c.host.udp, c.port)
	c.moved.fire()
	return nil
}
