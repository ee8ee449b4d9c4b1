package osnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// beyondA is configA with every feature that reaches beyond the mesh.
func beyondA() Config {
	c := configA()
	c.Routes = []netip.Prefix{prefix("10.33.0.0/16"), prefix("2001:db8:33::/48")}
	c.Exit = Exit{On: true, V4: true, V6: true, LAN: true}
	c.Serve = Serve{Routes: []netip.Prefix{prefix("10.44.0.0/16"), prefix("10.44.1.0/24"), prefix("2001:db8:44::/48")}, SNAT: true}
	return c
}

// kernelSettings returns the kernel settings of a host that Up may change.
func kernelSettings(t *testing.T, h *lab.Host) string {
	t.Helper()
	var out strings.Builder
	err := h.Do(func() error {
		for _, name := range append([]string{"net/ipv6/conf/eth0/accept_ra"}, settingNames...) {
			b, err := os.ReadFile("/proc/sys/" + name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, "%s=%s\n", name, strings.TrimSpace(string(b)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// from sends packets from the peer through the tunnel, as if the filter had passed them.
func (x *neighbours) from(t *testing.T, packets ...[]byte) {
	t.Helper()
	for _, p := range packets {
		if _, err := x.tun.file.Write(p); err != nil {
			t.Fatal(err)
		}
	}
}

func ask(src, dst netip.Addr) []byte {
	return lab.UDPPacket(netip.AddrPortFrom(src, 7777), netip.AddrPortFrom(dst, service), []byte("question"))
}

// router is configA for a router into the network of host v.
func (x *neighbours) router(snat bool) Config {
	c := configA()
	lan := x.v.Ports[0].LAN
	c.Serve = Serve{Routes: []netip.Prefix{lan.V4.Masked(), lan.V6.Masked()}, SNAT: snat}
	return c
}

// hears receives the next packet to a service, echoes it, and returns its source.
func hears(t *testing.T, c *net.UDPConn) netip.Addr {
	t.Helper()
	b := make([]byte, 100)
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteToUDPAddrPort(b[:n], from); err != nil {
		t.Fatal(err)
	}
	return from.Addr().Unmap()
}

func listen4and6(t *testing.T, h *lab.Host) []*net.UDPConn {
	t.Helper()
	var out []*net.UDPConn
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		c, err := h.ListenUDP(netip.AddrPortFrom(a, service))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		out = append(out, c)
	}
	return out
}

// TestServedNetworksAreReached checks that packets to a served network arrive there from the router's own address and are
// answered, and that packets to other networks do not leave the host.
func TestServedNetworksAreReached(t *testing.T) {
	x := withNeighbour(t)
	before, set := state(t, x.a), kernelSettings(t, x.a)
	x.rpFilter(t, 0)
	up(t, x.a, x.n, x.router(true))
	services, elsewhere := listen4and6(t, x.v), listen4and6(t, x.m)
	for i, peer := range peerA.Slice() {
		v := []netip.Addr{x.v.V4(), x.v.V6()}[i]
		m, behind := []netip.Addr{x.m.V4(), x.m.V6()}[i], []netip.Addr{netip.MustParseAddr("10.55.0.1"), netip.MustParseAddr("2001:db8:55::1")}[i]
		x.from(t, ask(peer, m), ask(behind, m), ask(peer, v))
		if got, want := hears(t, services[i]), []netip.Addr{x.a.Ports[1].V4, x.a.Ports[1].V6}[i]; got != want {
			t.Errorf("%v came from %v, want %v", peer, got, want)
		}
		if got := x.tun.next(t, peer); got != v {
			t.Errorf("the answer came from %v, want %v", got, v)
		}
	}
	// A packet of the router itself is sent last; it must be the first to arrive.
	for i, m := range []netip.Addr{x.m.V4(), x.m.V6()} {
		c, err := x.a.Dial(t.Context(), "udp", netip.AddrPortFrom(m, service).String())
		if err == nil {
			_, err = c.Write([]byte("last"))
			err = errors.Join(err, c.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		if n, err := elsewhere[i].Read(b); err != nil || string(b[:n]) != "last" {
			t.Errorf("into a network that is not served: %q, %v", b[:n], err)
		}
	}
	if err := x.n.Down(); err != nil {
		t.Fatal(err)
	}
	same(t, "after Down", before, state(t, x.a))
	same(t, "after Down", set, kernelSettings(t, x.a))
}

// TestServedWithoutSNAT checks that hosts behind the router see mesh addresses and may talk to them, while the router's own
// overlay address stays closed.
func TestServedWithoutSNAT(t *testing.T) {
	x := withNeighbour(t)
	x.rpFilter(t, 0)
	up(t, x.a, x.n, x.router(false))
	services, own := listen4and6(t, x.v), listen4and6(t, x.a)
	for i, r := range []netip.Prefix{meshA.V4, meshA.V6} {
		gw := []netip.Addr{x.a.Ports[1].V4, x.a.Ports[1].V6}[i]
		link, err := x.v.Netlink().LinkByName("eth0")
		if err == nil {
			err = x.v.Netlink().RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netOf(r), Gw: gw.AsSlice()})
		}
		if err != nil {
			t.Fatal(err)
		}
		peer, v := peerA.Slice()[i], []netip.Addr{x.v.V4(), x.v.V6()}[i]
		x.from(t, ask(peer, v))
		if got := hears(t, services[i]); got != peer {
			t.Errorf("a packet from %v came from %v", peer, got)
		}
		if got := x.tun.next(t, peer); got != v {
			t.Errorf("the answer came from %v, want %v", got, v)
		}
		// Packets that it initiates are judged by the filter, unless they are for the router: those are dropped.
		for _, to := range []netip.Addr{ownA.Slice()[i], peer} {
			if err := send(x.v, to); err != nil {
				t.Fatal(err)
			}
		}
		if got := x.tun.next(t, peer); got != v {
			t.Errorf("what the host behind the router sent came from %v, want %v", got, v)
		}
		// From the other LAN, with a source of its own or of the served LAN.
		x.send(t, []netip.Addr{x.m.V4(), x.m.V6()}[i], peer)
		x.send(t, v, ownA.Slice()[i])
		if err := own[i].SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, from, err := own[i].ReadFromUDPAddrPort(make([]byte, 100)); err == nil {
			t.Errorf("%v reached the router's overlay address past the filter", from)
		}
	}
	for _, led := range x.tun.led(t) {
		if strings.HasPrefix(led, x.m.V4().String()) || strings.HasPrefix(led, x.m.V6().String()) {
			t.Errorf("led into the mesh from a network that is not served: %s", led)
		}
	}
}

// synWith returns the SYN of a connection whose sender announces an MSS of size.
func synWith(src, dst netip.Addr, size uint16) []byte {
	option := binary.BigEndian.AppendUint16([]byte{2, 4}, size)
	b := lab.TCPPacket(netip.AddrPortFrom(src, 7777), netip.AddrPortFrom(dst, service), lab.FlagSYN, 1, 0, option)
	// Turn what was built as payload into an option: the header is one word longer.
	b[32] += 0x10
	sum := uint32(binary.BigEndian.Uint16(b[36:])) + 0xffff - 0x1000
	binary.BigEndian.PutUint16(b[36:], uint16(sum>>16+sum&0xffff))
	return b
}

// TestForwardedTCPFits checks that the segments of forwarded connections fit the tunnel.
func TestForwardedTCPFits(t *testing.T) {
	x := withNeighbour(t)
	up(t, x.a, x.n, x.router(true))
	wire, err := x.v.Ports[0].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}
	x.from(t, synWith(peerA.V4, x.v.V4(), 8000))
	eventually(t, func() error {
		for _, f := range wire.Frames() {
			if _, dst, ok := f.Addrs(); ok && dst == x.v.V4() && len(f.Data) == 14+44 && f.Data[14+9] == unix.IPPROTO_TCP {
				if got, want := int(binary.BigEndian.Uint16(f.Data[14+42:])), 1280-40; got != want {
					t.Errorf("the greatest segment is %d, want %d", got, want)
				}
				return nil
			}
		}
		return errors.New("the connection was not forwarded")
	})
}

// TestForwardingIsPutBackAfterACrash checks that the note of a killed run suffices to restore the settings.
func TestForwardingIsPutBackAfterACrash(t *testing.T) {
	x := withNeighbour(t)
	before, set := state(t, x.a), kernelSettings(t, x.a)
	up(t, x.a, x.n, x.router(true))
	if kernelSettings(t, x.a) == set {
		t.Fatal("forwarding is not on, so the test proves nothing")
	}
	x.kill()
	x.tun.kill()

	// The next run serves nothing, and then serves again as if nothing had happened.
	tun := openTunnel(t, x.a, "redoubt0")
	n, kill := inNetwork(t, x.a)
	up(t, x.a, n, configA())
	same(t, "served no more", set, kernelSettings(t, x.a))
	up(t, x.a, n, x.router(true))
	kill()
	tun.kill()
	if err := cleanup(t, x.a); err != nil {
		t.Fatal(err)
	}
	same(t, "after the cleanup", withoutDevice(before), state(t, x.a))
	same(t, "after the cleanup", set, kernelSettings(t, x.a))
}

// TestForwardingOfTheHostsOwnStays checks that forwarding that was on before stays on.
func TestForwardingOfTheHostsOwnStays(t *testing.T) {
	x := withNeighbour(t)
	if err := errors.Join(x.a.Sysctl("net.ipv4.ip_forward", "1"), x.a.Sysctl("net.ipv6.conf.all.forwarding", "1")); err != nil {
		t.Fatal(err)
	}
	set := kernelSettings(t, x.a)
	up(t, x.a, x.n, x.router(true))
	if err := x.n.Down(); err != nil {
		t.Fatal(err)
	}
	same(t, "after Down", set, kernelSettings(t, x.a))
}

// marked exchanges a datagram with a service as an underlay socket does.
func marked(t *testing.T, h *lab.Host, to netip.Addr) error {
	t.Helper()
	return h.Do(func() error {
		d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, Mark)
			}), err)
		}}
		c, err := d.DialContext(t.Context(), "udp", netip.AddrPortFrom(to, service).String())
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("question")); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 100))
		return err
	})
}

// TestExitNode checks that everything but the underlay goes through the tunnel, the LAN only if configured, and that nothing
// leaves in the clear without the tunnel.
func TestExitNode(t *testing.T) {
	x := withNeighbour(t)
	before, set := state(t, x.a), kernelSettings(t, x.a)
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if err := x.m.Echo(netip.AddrPortFrom(a, service)); err != nil {
			t.Fatal(err)
		}
	}
	far := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8:ffff::1")}
	lan := []netip.Addr{x.m.V4(), x.m.V6()}
	c := configA()
	c.Exit = Exit{On: true, V4: true, V6: true}
	x.rpFilter(t, 1)
	up(t, x.a, x.n, c)
	for i := range far {
		for _, to := range []netip.Addr{far[i], lan[i]} {
			if err := send(x.a, to); err != nil {
				t.Fatal(err)
			}
			if got := x.tun.next(t, to); got != ownA.Slice()[i] {
				t.Errorf("to %v from %v", to, got)
			}
		}
		if err := marked(t, x.a, lan[i]); err != nil {
			t.Errorf("an underlay socket does not reach %v: %v", lan[i], err)
		}
	}

	c.Exit.LAN = true
	up(t, x.a, x.n, c)
	for i := range far {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := x.a.TryUDP(ctx, netip.AddrPortFrom(lan[i], service)); err != nil {
			t.Errorf("the LAN is not left alone: %v", err)
		}
		cancel()
		if err := send(x.a, far[i]); err != nil {
			t.Fatal(err)
		}
		x.tun.next(t, far[i])
	}

	// The exit node stops carrying IPv6, and then everything.
	c.Exit = Exit{On: true, V4: true}
	up(t, x.a, x.n, c)
	if err := send(x.a, far[1]); err == nil {
		t.Error("IPv6 found a way past the exit node")
	}
	c.Exit = Exit{On: true}
	up(t, x.a, x.n, c)
	closed := func(when string) {
		t.Helper()
		for _, to := range append(far, lan...) {
			if err := send(x.a, to); err == nil {
				t.Errorf("%s: a packet to %v was sent", when, to)
			}
		}
		if err := marked(t, x.a, lan[0]); err != nil {
			t.Errorf("%s: an underlay socket is closed: %v", when, err)
		}
	}
	closed("without an exit node")
	c.Exit.V4 = true
	up(t, x.a, x.n, c)
	x.kill()
	x.tun.kill()
	closed("after a crash")
	if err := cleanup(t, x.a); err != nil {
		t.Fatal(err)
	}
	same(t, "after the cleanup", withoutDevice(before), state(t, x.a))
	same(t, "after the cleanup", set, kernelSettings(t, x.a))
}

// withoutDevice returns a state as it is once the device has disappeared with its agent.
func withoutDevice(state string) string {
	lines := slices.DeleteFunc(strings.Split(state, "\n"), func(l string) bool { return strings.HasPrefix(l, "link redoubt0 ") })
	return strings.Join(lines, "\n")
}

// TestRoutesFollow checks that networks behind peers can be added and removed, and that networks that the host itself is on take
// precedence.
func TestRoutesFollow(t *testing.T) {
	x := withNeighbour(t)
	up(t, x.a, x.n, configA())
	plain := state(t, x.a)
	c := configA()
	office := netip.MustParseAddr("10.33.0.9")
	lan := x.m.Ports[0].LAN.V4.Masked()
	c.Routes = []netip.Prefix{prefix("10.33.0.0/16"), prefix("10.0.0.0/8")}
	up(t, x.a, x.n, c)
	if err := send(x.a, office); err != nil {
		t.Fatal(err)
	}
	if got := x.tun.next(t, office); got != ownA.V4 {
		t.Errorf("from %v", got)
	}
	if !prefix("10.0.0.0/8").Overlaps(lan) {
		t.Fatalf("the LAN is %v, so the test proves nothing", lan)
	}
	if _, err := x.a.Ping(t.Context(), x.m.V4()); err != nil {
		t.Errorf("a neighbour is not reached while a route covers the LAN: %v", err)
	}
	c.Routes = append(c.Routes, lan)
	if err := x.a.Do(func() error { return x.n.Up(c) }); err != nil {
		t.Fatal(err)
	}
	eventually(t, problem(x.n, lan.String()))
	if _, err := x.a.Ping(t.Context(), x.m.V4()); err != nil {
		t.Errorf("a neighbour is not reached while a route is that of the LAN: %v", err)
	}

	// The keeper restores what somebody removes, and Up removes what is no longer wanted.
	link, err := x.a.Netlink().LinkByName("redoubt0")
	if err != nil {
		t.Fatal(err)
	}
	whole := state(t, x.a)
	for _, r := range ways(c.withDefaults(), link.Attrs().Index)[2:] {
		if err := x.a.Netlink().RouteDel(&r); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range rules(c.withDefaults())[4:] {
		if err := x.a.Netlink().RuleDel(&r); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error {
		if state(t, x.a) != whole {
			return errors.New("not restored")
		}
		return nil
	})
	up(t, x.a, x.n, configA())
	same(t, "without routes", plain, state(t, x.a))
}

// TestWhatCannotBeLedIsRefused checks that invalid networks are rejected before anything is changed.
func TestWhatCannotBeLedIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"a route into the mesh":        func(c *Config) { c.Routes = []netip.Prefix{prefix("100.80.1.0/24")} },
		"a route of everything":        func(c *Config) { c.Routes = []netip.Prefix{prefix("0.0.0.0/0")} },
		"a route with more bits":       func(c *Config) { c.Routes = []netip.Prefix{prefix("10.0.0.1/8")} },
		"no route":                     func(c *Config) { c.Routes = make([]netip.Prefix, 1) },
		"too many routes":              func(c *Config) { c.Routes = make([]netip.Prefix, MaxRoutes+1) },
		"a served network in the mesh": func(c *Config) { c.Serve.Routes = []netip.Prefix{prefix("fd12:3456::/32")} },
		"too many served":              func(c *Config) { c.Serve.Routes = make([]netip.Prefix, MaxServed+1) },
	} {
		c := configA().withDefaults()
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestNotes(t *testing.T) {
	for text, want := range map[string]bool{
		"net/ipv4/ip_forward=0": true, "net/ipv6/conf/eth0.7/accept_ra=1": true,
		"net/ipv4/ip_forward=": false, "net/ipv4/ip_forward=x": false, "net/ipv6/conf/../accept_ra=1": false,
		"net/ipv6/conf/a/b/accept_ra=1": false, "kernel/core_pattern=1": false, "": false, "net/ipv6/conf//accept_ra=1": false,
	} {
		if s, got := parseSetting(text); got != want || got && s.String() != text {
			t.Errorf("%q: %v, %v", text, s, got)
		}
	}
}

// TestRouterListensToRouters checks that a host whose IPv6 default route comes from router advertisements keeps it when it
// starts to forward.
func TestRouterListensToRouters(t *testing.T) {
	x := withNeighbour(t)
	link, err := x.a.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		x.a.Sysctl("net.ipv6.conf.eth0.accept_ra", "1"),
		x.a.Netlink().RouteReplace(&netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: netOf(everything6), Gw: x.m.V6().AsSlice(), Protocol: unix.RTPROT_RA, Priority: 2000,
		}),
	); err != nil {
		t.Fatal(err)
	}
	set := kernelSettings(t, x.a)
	up(t, x.a, x.n, x.router(true))
	if got := kernelSettings(t, x.a); !strings.Contains(got, "eth0/accept_ra=2") || !strings.Contains(got, forward6+"=1") {
		t.Errorf("while it serves: %s", got)
	}
	x.kill()
	n, _ := inNetwork(t, x.a)
	up(t, x.a, n, configA())
	same(t, "served no more", set, kernelSettings(t, x.a))
}

// TestFirewallsThatDropAreNamed checks that a firewall that drops forwarded packets is reported, until one of its rules names
// the device.
func TestFirewallsThatDropAreNamed(t *testing.T) {
	x := withNeighbour(t)
	drop := nftables.ChainPolicyDrop
	chain := nftables.Chain{
		Name: "FORWARD", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &drop,
	}
	ruleset(t, x.a, chain)
	up(t, x.a, x.n, configA())
	if err := x.a.Do(func() error { return x.n.Up(x.router(true)) }); err != nil {
		t.Fatal(err)
	}
	if err := problem(x.n, "ip user-FORWARD FORWARD")(); err != nil {
		t.Error(err)
	}
	ruleset(t, x.a, chain, append(is(expr.MetaKeyIIFNAME, "redoubt0"), &expr.Verdict{Kind: expr.VerdictAccept}))
	up(t, x.a, x.n, x.router(true))
}

func TestPrivateServersAreCutOff(t *testing.T) {
	servers := []netip.Addr{
		netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("10.33.0.53"),
		ownA.V4,
	}
	c := configA()
	if got := c.unreachable(servers); len(got) != 0 {
		t.Errorf("without an exit node: %v", got)
	}
	c.Exit, c.Routes = Exit{On: true, V4: true}, []netip.Prefix{prefix("10.33.0.0/16")}
	if got := c.unreachable(servers); !slices.Equal(got, servers[:1]) {
		t.Errorf("with an exit node: %v", got)
	}
	c.Exit.LAN = true
	if got := c.unreachable(servers); len(got) != 0 {
		t.Errorf("with the LAN left alone: %v", got)
	}
}
