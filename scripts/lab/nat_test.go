//go:build linux

package lab_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

// udp returns a UDP socket on a host.
func udp(t *testing.T, h *lab.Host) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func portOf(c *net.UDPConn) uint16 { return c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// seen sends a datagram to a socket at an address and returns the source address seen there; invalid if it does not arrive.
func seen(t *testing.T, from, to *net.UDPConn, at netip.Addr, patience time.Duration) netip.AddrPort {
	t.Helper()
	_, err := from.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(at, portOf(to)))
	if err != nil {
		t.Fatal(err)
	}
	if err := to.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, source, err := to.ReadFromUDPAddrPort(make([]byte, 9))
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
}

func TestNAT(t *testing.T) {
	w := labtest.World(t)
	lan := labtest.LAN(t, w, "internet")
	server := labtest.Host(t, w, "server", lan)
	one, two := udp(t, server), udp(t, server)
	add := func(name string, at *lab.LAN, cfg lab.NATConfig) (*lab.NAT, *lab.Host) {
		nat, err := w.AddNAT(name, at, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return nat, labtest.Host(t, w, "behind "+name, nat.Inside)
	}
	const soon, never = 10 * time.Second, 100 * time.Millisecond
	easy, a := add("easy", lan, lab.NATConfig{V6: true})
	x := udp(t, a)
	want := netip.AddrPortFrom(easy.V4(), portOf(x))
	if got, again := seen(t, x, one, server.V4(), soon), seen(t, x, two, server.V4(), soon); got != want || again != want {
		t.Errorf("easy: seen as %s and %s, want %s", got, again, want)
	}
	if got := seen(t, x, one, server.V6(), soon); got != netip.AddrPortFrom(a.V6(), portOf(x)) {
		t.Errorf("easy, IPv6: seen as %s", got)
	}
	if got := seen(t, one, x, easy.V4(), soon); got.Addr() != server.V4() {
		t.Errorf("easy: answered by %s", got)
	}
	if err := easy.Reboot(); err != nil {
		t.Fatal(err)
	}
	if got := seen(t, one, x, easy.V4(), never); got.IsValid() {
		t.Errorf("easy, rebooted: let in %s", got)
	}
	hard, b := add("hard", lan, lab.NATConfig{Hard: true})
	y := udp(t, b)
	if got, other := seen(t, y, one, server.V4(), soon), seen(t, y, two, server.V4(), soon); got.Addr() != hard.V4() || got == other {
		t.Errorf("hard: seen as %s and %s", got, other)
	}
	if got := seen(t, y, one, server.V6(), never); got.IsValid() {
		t.Errorf("hard: IPv6 got out as %s", got)
	}
	_, c := add("hotel", easy.Inside, lab.NATConfig{BlockUDP: true, TCPPort: 443, V6: true})
	z := udp(t, c)
	for _, at := range []netip.Addr{server.V4(), server.V6()} {
		if got := seen(t, z, one, at, never); got.IsValid() {
			t.Errorf("hotel: UDP seen from %s", got)
		}
		for port, wanted := range map[uint16]bool{443: true, 80: false} {
			to := netip.AddrPortFrom(at, port)
			if err := server.Echo(to); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), map[bool]time.Duration{true: soon, false: never}[wanted])
			if err := c.TryTCP(ctx, to); (err == nil) != wanted {
				t.Errorf("hotel: TCP to %s: %v", to, err)
			}
			cancel()
		}
	}
}
