//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// patience bounds one exchange of the clients below, unless the context ends earlier: longer than the five seconds after
// which WireGuard repeats a handshake that collided with the other side's.
const patience = 10 * time.Second

// Listen opens a TCP listener in the host's network. The caller must close it.
func (h *Host) Listen(addr netip.AddrPort) (net.Listener, error) {
	var l net.Listener
	err := h.Do(func() error {
		var err error
		var c net.ListenConfig
		l, err = c.Listen(context.Background(), "tcp"+family(addr.Addr()), addr.String())
		return err
	})
	return l, err
}

// ListenUDP opens a UDP socket in the host's network. The caller must close it.
func (h *Host) ListenUDP(addr netip.AddrPort) (*net.UDPConn, error) {
	var c *net.UDPConn
	err := h.Do(func() error {
		var err error
		c, err = net.ListenUDP("udp"+family(addr.Addr()), net.UDPAddrFromAddrPort(addr))
		return err
	})
	return c, err
}

// family returns the network suffix that keeps a wildcard IPv6 socket from accepting IPv4.
func family(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

// Dial connects from the host to an address, such as "tcp", "10.99.1.10:80". The address must be a literal: names would be
// resolved outside the host.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, fmt.Errorf("dial %s: want a literal address and port: %w", addr, err)
	}
	var c net.Conn
	err := h.Do(func() error {
		var err error
		var d net.Dialer
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Echo serves TCP and UDP on the address until the world is closed: it sends back what it receives.
func (h *Host) Echo(addr netip.AddrPort) error {
	l, err := h.Listen(addr)
	if err != nil {
		return fmt.Errorf("serve TCP on %s: %w", h.Name, err)
	}
	u, err := h.ListenUDP(addr)
	if err != nil {
		return errors.Join(fmt.Errorf("serve UDP on %s: %w", h.Name, err), l.Close())
	}
	s := &echo{conns: make(map[net.Conn]struct{})}
	s.wg.Go(func() { s.accept(l) })
	s.wg.Go(func() { s.packets(u) })
	h.world.onClose(func() error {
		err := errors.Join(l.Close(), u.Close())
		s.hangUp()
		s.wg.Wait()
		return err
	})
	return nil
}

// echo owns the connections of one server.
type echo struct {
	wg     sync.WaitGroup
	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]struct{}
}

func (s *echo) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed with the world
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			_ = c.Close()
			return
		}
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.wg.Go(func() {
			// The client or the world ends the connection; neither is an error.
			_, _ = io.Copy(c, c)
			_ = c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

func (s *echo) packets(u *net.UDPConn) {
	buf := make([]byte, 65536)
	for {
		n, from, err := u.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = u.WriteToUDPAddrPort(buf[:n], from)
		}
	}
}

func (s *echo) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
}

// TryTCP connects to an echo server and exchanges a few bytes with it.
func (h *Host) TryTCP(ctx context.Context, addr netip.AddrPort) error { return h.try(ctx, "tcp", addr) }

// TryUDP exchanges one packet with an echo server.
func (h *Host) TryUDP(ctx context.Context, addr netip.AddrPort) error { return h.try(ctx, "udp", addr) }

func (h *Host) try(ctx context.Context, network string, addr netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := h.Dial(ctx, network, addr.String())
	if err != nil {
		return err
	}
	return errors.Join(exchange(ctx, c), c.Close())
}

// exchange sends a few bytes and waits for them to come back.
func exchange(ctx context.Context, c net.Conn) error {
	if end, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(end); err != nil {
			return err
		}
	}
	sent := []byte("hello from " + c.LocalAddr().String())
	if _, err := c.Write(sent); err != nil {
		return err
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("%v sent back %q for %q", c.RemoteAddr(), got, sent)
	}
	return nil
}

// Ping sends one echo request and returns the round-trip time.
func (h *Host) Ping(ctx context.Context, addr netip.Addr) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	network, protocol := "ip4:icmp", 1
	var kind, answer icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if addr.Is6() {
		network, protocol = "ip6:ipv6-icmp", 58
		kind, answer = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	var c *net.IPConn
	err := h.Do(func() error {
		var err error
		c, err = net.DialIP(network, nil, &net.IPAddr{IP: addr.AsSlice()})
		return err
	})
	if err != nil {
		return 0, err
	}
	d, err := echoOnce(ctx, c, kind, answer, protocol)
	if err != nil {
		err = fmt.Errorf("ping %v from %s: %w", addr, h.Name, err)
	}
	return d, errors.Join(err, c.Close())
}

// echoOnce sends one echo request and waits for the reply.
func echoOnce(ctx context.Context, c *net.IPConn, kind, answer icmp.Type, protocol int) (time.Duration, error) {
	end, _ := ctx.Deadline()
	if err := c.SetDeadline(end); err != nil {
		return 0, err
	}
	const id, seq = 0x5244, 1
	ask := icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: seq, Data: []byte("redoubt")}}
	b, err := ask.Marshal(nil)
	if err != nil {
		return 0, err
	}
	sent := time.Now()
	if _, err := c.Write(b); err != nil {
		return 0, err
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := c.ReadFromIP(buf) // unlike Read, this strips the IPv4 header
		if err != nil {
			return 0, err
		}
		m, err := icmp.ParseMessage(protocol, buf[:n])
		if err != nil || m.Type != answer {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.ID == id && e.Seq == seq {
			return time.Since(sent), nil
		}
	}
}
