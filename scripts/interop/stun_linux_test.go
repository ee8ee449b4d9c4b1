package interop

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/redoubt-mesh/redoubt/netstack/stun"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

// coturn is an independent STUN server, with two addresses and two ports on each.
type coturn struct {
	addrs [2]netip.Addr
	ports [2]uint16
}

func startCoturn(t *testing.T, h *lab.Host) coturn {
	t.Helper()
	second := h.V4().As4()
	second[3] += 100
	c := coturn{[2]netip.Addr{h.V4(), netip.AddrFrom4(second)}, [2]uint16{3478, 3479}}
	link, err := h.Netlink().LinkByName("eth0")
	if err == nil {
		n := &net.IPNet{IP: c.addrs[1].AsSlice(), Mask: net.CIDRMask(24, 32)}
		err = h.Netlink().AddrAdd(link, &netlink.Addr{IPNet: n})
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p, err := h.Start(lab.Command{Path: "turnserver", Args: []string{
		"-n", "--stun-only", "--no-cli", "--no-tls", "--no-dtls", "--no-tcp", "--log-file=stdout",
		"--userdb=" + filepath.Join(dir, "db"), "--pidfile=" + filepath.Join(dir, "pid"),
		"-L", c.addrs[0].String(), "-L", c.addrs[1].String(), "-p", "3478", "--alt-listening-port=3479",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c coturn) at(addr, port int) netip.AddrPort {
	return netip.AddrPortFrom(c.addrs[addr], c.ports[port])
}

// probe probes from a socket of a host and returns the result.
func probe(ctx context.Context, t *testing.T, h *lab.Host, begin stun.Begin) (last stun.Report) {
	t.Helper()
	var sock *net.UDPConn
	err := h.Do(func() (err error) {
		sock, err = net.ListenUDP("udp4", nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	begin.Local = []netip.AddrPort{netip.AddrPortFrom(h.V4(), sock.LocalAddr().(*net.UDPAddr).AddrPort().Port())}
	var seed [32]byte
	_, _ = rand.Read(seed[:])
	p, buf := stun.NewProber(seed), make([]byte, 2048)
	effects := p.Step(time.Now(), begin)
	for {
		for _, f := range effects {
			switch f := f.(type) {
			case stun.Send:
				_, err = sock.WriteToUDPAddrPort(f.Msg, f.To)
			case stun.Wake:
				err = sock.SetReadDeadline(f.At)
			case stun.Found:
				last = f.Report
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if last.Done || ctx.Err() != nil {
			return last
		}
		var e stun.Event = stun.Tick{}
		n, from, err := sock.ReadFromUDPAddrPort(buf)
		if err == nil {
			e = stun.Received{From: from, Msg: buf[:n]}
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		effects = p.Step(time.Now(), e)
	}
}

// The prober learns the same from coturn as from the simulated servers, and classifies the kernel's NATs correctly.
func TestCoturn(t *testing.T) {
	t.Parallel()
	labtest.Need(t)
	if _, err := exec.LookPath("turnserver"); err != nil {
		labtest.Installed(t, errors.New("there is no turnserver here (apt-get install --no-install-recommends coturn)"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	w := labtest.World(t)
	lan := labtest.LAN(t, w, "internet")
	server := startCoturn(t, labtest.Host(t, w, "coturn", lan))
	open := labtest.Host(t, w, "open", lan)
	for {
		r := probe(ctx, t, open, stun.Begin{Servers: []netip.AddrPort{server.at(0, 0)}})
		if ctx.Err() != nil {
			t.Fatal("coturn does not answer")
		}
		if len(r.Mapped()) > 0 {
			break
		}
	}
	hosts := map[string]*lab.Host{"open": open}
	for name, cfg := range map[string]lab.NATConfig{"easy": {}, "hard": {Hard: true}} {
		nat, err := w.AddNAT(name, lan, cfg)
		if err != nil {
			t.Fatal(err)
		}
		hosts[name] = labtest.Host(t, w, "behind "+name, nat.Inside)
	}
	for name, want := range map[string]stun.Family{
		"open": {Mapping: stun.Untranslated, Filtering: stun.EndpointIndependent},
		"easy": {Mapping: stun.EndpointIndependent, Filtering: stun.AddressAndPortDependent},
		"hard": {Mapping: stun.AddressAndPortDependent, Filtering: stun.AddressAndPortDependent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := probe(ctx, t, hosts[name], stun.Begin{Servers: []netip.AddrPort{server.at(0, 0)}, Full: true}).V4
			if got.Mapping != want.Mapping || got.Filtering != want.Filtering {
				t.Errorf("mapping %s, filtering %s, want %s and %s", got.Mapping, got.Filtering, want.Mapping, want.Filtering)
			}
			if len(got.Mapped()) != 1 || slices.Contains(got.Mapped(), netip.AddrPort{}) {
				t.Errorf("mapped %s", got.Mapped())
			}
		})
	}
}
