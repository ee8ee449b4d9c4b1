// Package echo sends ICMP echo requests from the host's own network stack, so that they take the same path as every other
// packet of the host: through the routes, the TUN device and the filter.
package echo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// ErrLost reports that no reply came in time.
var ErrLost = errors.New("no answer")

// Socket sends echo requests from one address. It must be used from one goroutine.
type Socket struct {
	conn *icmp.PacketConn
	v6   bool
	raw  bool // also sees replies to others, and must set the identifier itself
	id   uint16
	seq  uint16
}

// Open opens a socket that sends from src: an unprivileged one if the system has them, otherwise a raw one.
func Open(src netip.Addr) (*Socket, error) {
	s := &Socket{v6: src.Is6(), id: uint16(rand.Uint32())}
	plain, raw := "udp4", "ip4:icmp"
	if s.v6 {
		plain, raw = "udp6", "ip6:ipv6-icmp"
	}
	var err error
	if s.conn, err = icmp.ListenPacket(plain, src.String()); err == nil {
		return s, nil
	}
	s.raw = true
	if s.conn, err = icmp.ListenPacket(raw, src.String()); err != nil {
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w; give the agent CAP_NET_RAW, or let its group in net.ipv4.ping_group_range", err)
		}
		return nil, fmt.Errorf("open a socket for pings from %s: %w", src, err)
	}
	return s, nil
}

// Close closes the socket.
func (s *Socket) Close() error { return s.conn.Close() }

// Ping sends an echo request and waits for the reply until the context ends.
func (s *Socket) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	s.seq++
	nonce := rand.Uint64()
	request, err := s.request(nonce)
	if err != nil {
		return 0, err
	}
	// The deadline of a ping that was given up must not end the next one. An error means that the socket is closed, and the
	// read will report that.
	_ = s.conn.SetReadDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	sent := time.Now()
	if _, err := s.conn.WriteTo(request, s.addr(dst)); err != nil {
		return 0, fmt.Errorf("send a ping to %s: %w", dst, err)
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return 0, ErrLost
			}
			return 0, fmt.Errorf("wait for the answer of %s: %w", dst, err)
		}
		if addrOf(from) == dst && s.answers(buf[:n], nonce) {
			return time.Since(sent), nil
		}
	}
}

func (s *Socket) request(nonce uint64) ([]byte, error) {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{
		ID: int(s.id), Seq: int(s.seq), Data: binary.BigEndian.AppendUint64(make([]byte, 0, 56), nonce)[:56],
	}}
	if s.v6 {
		m.Type = ipv6.ICMPTypeEchoRequest // the kernel fills in the checksum
	}
	b, err := m.Marshal(nil)
	if err != nil {
		return nil, fmt.Errorf("make a ping: %w", err)
	}
	return b, nil
}

// answers reports whether a message is the reply to the last request.
func (s *Socket) answers(b []byte, nonce uint64) bool {
	protocol := ipv4.ICMPTypeEcho.Protocol()
	if s.v6 {
		protocol = ipv6.ICMPTypeEchoRequest.Protocol()
	}
	m, err := icmp.ParseMessage(protocol, b)
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
		return false
	}
	e, ok := m.Body.(*icmp.Echo)
	return ok && e.Seq == int(s.seq) && (!s.raw || e.ID == int(s.id)) && len(e.Data) >= 8 &&
		binary.BigEndian.Uint64(e.Data) == nonce
}

func (s *Socket) addr(a netip.Addr) net.Addr {
	if s.raw {
		return &net.IPAddr{IP: a.AsSlice()}
	}
	return &net.UDPAddr{IP: a.AsSlice()}
}

func addrOf(a net.Addr) netip.Addr {
	var ip net.IP
	switch a := a.(type) {
	case *net.UDPAddr:
		ip = a.IP
	case *net.IPAddr:
		ip = a.IP
	}
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}
