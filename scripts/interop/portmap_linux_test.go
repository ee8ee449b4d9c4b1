package interop

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/nftables"

	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

// startMiniupnpd makes a NAT a router that opens ports, by the program that many routers have.
func startMiniupnpd(t *testing.T, nat *lab.NAT, protocols string) *lab.Process {
	t.Helper()
	if err := nat.Do(chains); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf")
	text := "ext_ifname=eth0\nlistening_ip=eth1\nport=5000\nuuid=d58c1bff-45a7-4aea-8965-729f082f78d4\nsystem_uptime=no\n" +
		"lease_file=" + filepath.Join(dir, "leases") + "\next_ip=" + publicAddr.String() + "\n" +
		"allow 1024-65535 192.168.0.0/16 1024-65535\n" + protocols
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := nat.Start(lab.Command{Path: "miniupnpd", Args: []string{"-d", "-4", "-f", conf, "-P", filepath.Join(dir, "pid")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// publicAddr is what the router says that its outside address is. Its own is private, as all are here, and it would not open a
// port of that.
var publicAddr = netip.MustParseAddr("45.67.89.10")

// chains are those that miniupnpd puts its rules in.
func chains() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyINet})
	c.AddChain(&nftables.Chain{Name: "miniupnpd", Table: table})
	c.AddChain(&nftables.Chain{
		Name: "prerouting_miniupnpd", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	c.AddChain(&nftables.Chain{Name: "postrouting_miniupnpd", Table: table})
	return c.Flush()
}

func TestMiniupnpd(t *testing.T) {
	labtest.Need(t)
	if _, err := exec.LookPath("miniupnpd"); err != nil {
		labtest.Installed(t, errors.New("there is no miniupnpd here (apt-get install --no-install-recommends miniupnpd)"))
	}
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
			router := startMiniupnpd(t, nat, config)
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
			if s.Protocol != protocol || s.External.Addr() != publicAddr {
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
