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

func TestMiniupnpd(t *testing.T) {
	labtest.Need(t)
	for protocol, config := range map[portmap.Protocol]string{
		portmap.PCP:  "enable_natpmp=yes\nenable_upnp=no\n",
		portmap.UPnP: "enable_natpmp=no\nenable_upnp=yes\n",
	} {
		t.Run(string(protocol), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			t.Cleanup(cancel)
			w := labtest.World(t)
			lan := labtest.LAN(t, w, "internet")
			stranger := labtest.Host(t, w, "stranger", lan)
			nat, err := w.AddNAT("router", lan, lab.NATConfig{Hard: true})
			if err != nil {
				t.Fatal(err)
			}
			laptop := labtest.Host(t, w, "laptop", nat.Inside)
			router := labtest.Miniupnpd(t, nat, config)
			const port = 41641
			if err := laptop.Echo(netip.AddrPortFrom(laptop.V4(), port)); err != nil {
				t.Fatal(err)
			}
			states := make(chan portmap.State, 100)
			client := portmap.New(portmap.Config{
				Gateway: func() (netip.Addr, netip.Addr, error) { return nat.Inside.V4.Addr(), laptop.V4(), nil },
				Listen: func(a netip.Addr) (c net.PacketConn, err error) {
					err = laptop.Do(func() error {
						c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
						return err
					})
					return c, err
				},
				Dial: func(ctx context.Context, network, address string) (c net.Conn, err error) {
					err = laptop.Do(func() error {
						var d net.Dialer
						c, err = d.DialContext(ctx, network, address)
						return err
					})
					return c, err
				},
				Changed: func(s portmap.State) { states <- s },
			})
			defer client.Close()
			if err := router.WaitFor(ctx, "istening "); err != nil {
				t.Fatal(err)
			}
			client.Start(port)
			s := mapped(ctx, t, states, router)
			if s.Protocol != protocol || s.External.Addr() != labtest.PublicAddr {
				t.Errorf("%+v", s)
			}
			to := netip.AddrPortFrom(nat.V4(), s.External.Port())
			if err := stranger.TryUDP(ctx, to); err != nil {
				t.Errorf("through the mapped port: %v\n%s", err, router.Output())
			}
			if err := client.Close(); err != nil {
				t.Error(err)
			}
			if err := router.WaitFor(ctx, removed[protocol]); err != nil {
				t.Error(err)
			}
		})
	}
}

// removed is what miniupnpd says when a mapping is deleted.
var removed = map[portmap.Protocol]string{portmap.PCP: "removed", portmap.UPnP: "removing"}

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
