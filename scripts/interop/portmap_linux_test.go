package interop

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

// homeRouter is a router with miniupnpd, a laptop behind it, and a stranger outside.
type homeRouter struct {
	*testing.T
	ctx              context.Context //nolint:containedctx // of the test
	nat              *lab.NAT
	router           *lab.Process
	laptop, stranger *lab.Host
}

const mappedPort = 41641

func newHomeRouter(t *testing.T, nat lab.NATConfig, protocols string) *homeRouter {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	w := labtest.World(t)
	lan := labtest.LAN(t, w, "internet")
	h := &homeRouter{T: t, ctx: ctx, stranger: labtest.Host(t, w, "stranger", lan)}
	var err error
	if h.nat, err = w.AddNAT("router", lan, nat); err != nil {
		t.Fatal(err)
	}
	h.laptop = labtest.Host(t, w, "laptop", h.nat.Inside)
	h.router = labtest.Miniupnpd(t, h.nat, protocols)
	return h
}

// older is a socket to a router that only speaks NAT-PMP: it replaces PCP's version with one that miniupnpd does not support,
// and turns its error response into one of NAT-PMP.
type older struct{ net.PacketConn }

// WriteTo implements net.PacketConn.
func (o older) WriteTo(b []byte, to net.Addr) (int, error) {
	if len(b) > 0 && b[0] == 2 {
		b = append([]byte{3}, b[1:]...)
	}
	return o.PacketConn.WriteTo(b, to)
}

// ReadFrom implements net.PacketConn.
func (o older) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := o.PacketConn.ReadFrom(b)
	if err == nil && n >= 12 && b[0] != 0 {
		n = copy(b, append([]byte{0, b[1], 0, b[3]}, b[8:12]...))
	}
	return n, from, err
}

// opens makes the client open a port for the laptop's address, and checks that a stranger can get in through it.
func (h *homeRouter) opens(gateway, local netip.Addr, wrap func(net.PacketConn) net.PacketConn, outside func(portmap.State) netip.AddrPort, removed string) portmap.State {
	h.Helper()
	if err := h.laptop.Echo(netip.AddrPortFrom(local, mappedPort)); err != nil {
		h.Fatal(err)
	}
	states := make(chan portmap.State, 100)
	client := portmap.New(portmap.Config{
		Gateway: func() (netip.Addr, netip.Addr, error) { return gateway, local, nil },
		Listen: func(a netip.Addr) (c net.PacketConn, err error) {
			err = h.laptop.Do(func() error {
				c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
				return err
			})
			return wrap(c), err
		},
		Dial: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = h.laptop.Do(func() error {
				var d net.Dialer
				c, err = d.DialContext(ctx, network, address)
				return err
			})
			return c, err
		},
		Changed: func(s portmap.State) { states <- s },
	})
	defer client.Close()
	if err := h.router.WaitFor(h.ctx, "istening "); err != nil {
		h.Fatal(err)
	}
	client.Start(mappedPort)
	s := mapped(h.ctx, h.T, states, h.router)
	if err := h.stranger.TryUDP(h.ctx, outside(s)); err != nil {
		h.Errorf("through the mapped port: %v\n%s", err, h.router.Output())
	}
	if err := client.Close(); err != nil {
		h.Error(err)
	}
	if err := h.router.WaitFor(h.ctx, removed); err != nil {
		h.Error(err)
	}
	return s
}

func plain(c net.PacketConn) net.PacketConn { return c }

func TestMiniupnpd(t *testing.T) {
	labtest.Need(t)
	const control = "enable_natpmp=yes\nenable_upnp=no\n"
	for protocol, c := range map[portmap.Protocol]struct {
		config  string
		wrap    func(net.PacketConn) net.PacketConn
		removed string // what miniupnpd logs when a mapping is deleted
	}{
		portmap.PCP:    {control, plain, "removed"},
		portmap.NATPMP: {control, func(c net.PacketConn) net.PacketConn { return older{c} }, "removed"},
		portmap.UPnP:   {"enable_natpmp=no\nenable_upnp=yes\n", plain, "removing"},
	} {
		t.Run(string(protocol), func(t *testing.T) {
			t.Parallel()
			h := newHomeRouter(t, lab.NATConfig{Hard: true}, c.config)
			outside := func(s portmap.State) netip.AddrPort { return netip.AddrPortFrom(h.nat.V4(), s.External.Port()) }
			s := h.opens(h.nat.Inside.V4.Addr(), h.laptop.V4(), c.wrap, outside, c.removed)
			if s.Protocol != protocol || s.External.Addr() != labtest.PublicAddr {
				t.Errorf("%+v", s)
			}
		})
	}
	t.Run("PCP over IPv6", func(t *testing.T) {
		t.Parallel()
		h := newHomeRouter(t, lab.NATConfig{V6: true}, control)
		own := netip.AddrPortFrom(h.laptop.V6(), mappedPort)
		s := h.opens(h.nat.Inside.V6.Addr(), h.laptop.V6(), plain, func(portmap.State) netip.AddrPort { return own }, "removed")
		if s.Protocol != portmap.PCP || s.External != own {
			t.Errorf("%+v", s)
		}
	})
}

// mapped waits for a mapping.
func mapped(ctx context.Context, t *testing.T, states <-chan portmap.State, router *lab.Process) portmap.State {
	t.Helper()
	for {
		select {
		case s := <-states:
			if s.External.IsValid() {
				return s
			}
			if s.Problem != "" {
				t.Fatalf("no mapping: %s\n%s", s.Problem, router.Output())
			}
		case <-ctx.Done():
			t.Fatalf("no mapping:\n%s", router.Output())
		}
	}
}
