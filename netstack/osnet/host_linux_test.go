package osnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// oneHost returns a host on a LAN, with a tunnel.
func oneHost(t *testing.T) (*lab.Host, *tunnel) {
	t.Helper()
	w := labtest.World(t)
	h := labtest.Host(t, w, "a", labtest.LAN(t, w, "lan"))
	return h, openTunnel(t, h, "redoubt0")
}

// send sends a datagram from the host and returns the error of sending.
func send(h *lab.Host, to netip.Addr) error {
	c, err := h.Dial(context.Background(), "udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		return err
	}
	_, err = c.Write([]byte("x"))
	return errors.Join(err, c.Close())
}

func TestUpLeadsTheMeshToTheDevice(t *testing.T) {
	h, tun := oneHost(t)
	n, _ := inNetwork(t, h)
	up(t, h, n, configA())
	for i, to := range peerA.Slice() {
		if err := send(h, to); err != nil {
			t.Fatal(err)
		}
		if src := tun.next(t, to); src != ownA.Slice()[i] {
			t.Errorf("a packet to %v comes from %v", to, src)
		}
	}
	for _, own := range ownA.Slice() {
		if _, err := h.Ping(t.Context(), own); err != nil {
			t.Errorf("the host does not reach its own %v: %v", own, err)
		}
	}
	link, err := h.Netlink().LinkByName("redoubt0")
	if err != nil {
		t.Fatal(err)
	}
	if link.Attrs().MTU != 1280 {
		t.Errorf("MTU %d", link.Attrs().MTU)
	}
}

func TestUpAgainChangesNothing(t *testing.T) {
	for name, c := range map[string]Config{"alone": configA(), "with everything beyond the mesh": beyondA()} {
		h, _ := oneHost(t)
		n, _ := inNetwork(t, h)
		up(t, h, n, c)
		first, made := state(t, h), generation(t, h)
		up(t, h, n, c)
		same(t, name+": second Up", first, state(t, h))
		if again := generation(t, h); again != made {
			t.Errorf("%s: the guard was made again: generation %d, then %d", name, made, again)
		}
	}
}

// furnish gives the host the user's own rules, routes and tables, some of which resemble ours.
func furnish(t *testing.T, h *lab.Host) {
	t.Helper()
	rt := h.Netlink()
	eth0, err := rt.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	rule := netlink.NewRule()
	rule.Priority, rule.Table, rule.Dst = RulePriority, 100, netOf(netip.MustParsePrefix("198.51.100.0/24"))
	routes := []netlink.Route{
		{Dst: netOf(netip.MustParsePrefix("198.51.100.0/24")), LinkIndex: eth0.Attrs().Index, Table: DefaultTable},
		{Dst: netOf(netip.MustParsePrefix("203.0.113.0/24")), Type: unix.RTN_UNREACHABLE},
	}
	err = rt.RuleAdd(rule)
	for _, r := range routes {
		err = errors.Join(err, rt.RouteAdd(&r))
	}
	err = errors.Join(err, h.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		for _, name := range []string{"redoubt", "filter"} {
			table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
			chain := conn.AddChain(&nftables.Chain{
				Name: "input", Table: table, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
			})
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}}})
		}
		return conn.Flush()
	}))
	if err != nil {
		t.Fatal(err)
	}
}

func TestDownAndClosePutEverythingBack(t *testing.T) {
	h, _ := oneHost(t)
	furnish(t, h)
	before := state(t, h)
	n, _ := inNetwork(t, h)
	for range 2 {
		up(t, h, n, configA())
		if err := n.Down(); err != nil {
			t.Fatal(err)
		}
		same(t, "after Down", before, state(t, h))
		if err := n.Down(); err != nil {
			t.Errorf("Down again: %v", err)
		}
	}
	up(t, h, n, configA())
	for range 2 {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		same(t, "after Close", before, state(t, h))
	}
	if err := n.Up(configA()); err == nil {
		t.Error("Up after Close")
	}
	if _, err := n.Watch(t.Context()); err == nil {
		t.Error("Watch after Close")
	}
}

func TestGuardHoldsAfterACrash(t *testing.T) {
	h, tun := oneHost(t)
	furnish(t, h)
	n, kill := inNetwork(t, h)
	up(t, h, n, configA())
	whole := state(t, h)
	wire, err := h.Ports[0].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}
	kill()
	tun.kill()
	for _, to := range peerA.Slice() {
		err := send(h, to)
		if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("a packet to %v after the crash: %v, want unreachable", to, err)
		}
	}
	frames, err := wire.Stop()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if src, dst, ok := f.Addrs(); ok && (meshA.Contains(src) || meshA.Contains(dst)) {
			t.Errorf("on the wire: %v to %v", src, dst)
		}
	}

	openTunnel(t, h, "redoubt0")
	n, _ = inNetwork(t, h)
	up(t, h, n, configA())
	same(t, "Up after the crash", whole, state(t, h))
}

func TestCleanupAfterACrash(t *testing.T) {
	h, tun := oneHost(t)
	furnish(t, h)
	withTunnel := state(t, h)
	n, kill := inNetwork(t, h)
	up(t, h, n, configA())
	running := state(t, h)
	if err := cleanup(t, h); err == nil || !strings.Contains(err.Error(), "redoubt0") {
		t.Errorf("cleanup beside a running agent: %v", err)
	}
	same(t, "after the refused cleanup", running, state(t, h))
	kill()
	tun.kill()
	if err := cleanup(t, h); err != nil {
		t.Fatal(err)
	}
	var without []string
	for line := range strings.Lines(withTunnel) {
		if !strings.Contains(line, "redoubt0 ") {
			without = append(without, strings.TrimSuffix(line, "\n"))
		}
	}
	same(t, "after the cleanup", strings.Join(without, "\n"), state(t, h))
	if err := cleanup(t, h); err != nil {
		t.Errorf("cleanup of nothing: %v", err)
	}
}

func TestAnotherMeshAfterACrash(t *testing.T) {
	h, tun := oneHost(t)
	n, kill := inNetwork(t, h)
	up(t, h, n, configA())
	kill()
	// The tunnel stays: the agent starts again with another mesh before the device has gone.
	c := configA()
	c.Mesh.V4, c.Mesh.V6 = netip.MustParsePrefix("100.96.0.0/16"), netip.MustParsePrefix("fd99::/48")
	c.Addrs.V4, c.Addrs.V6 = netip.MustParseAddr("100.96.0.1"), netip.MustParseAddr("fd99::1")
	n, _ = inNetwork(t, h)
	up(t, h, n, c)
	for line := range strings.Lines(state(t, h)) {
		if strings.Contains(line, "100.80.") || strings.Contains(line, "fd12:") {
			t.Errorf("left of the mesh before: %s", line)
		}
	}
	if err := send(h, netip.MustParseAddr("100.96.7.7")); err != nil {
		t.Fatal(err)
	}
	tun.next(t, netip.MustParseAddr("100.96.7.7"))
}

func TestChangedConfigIsBroughtAbout(t *testing.T) {
	h, tun := oneHost(t)
	before := state(t, h)
	n, _ := inNetwork(t, h)
	up(t, h, n, configA())
	c := configA()
	c.Addrs.V4, c.Addrs.V6 = netip.MustParseAddr("100.80.1.1"), netip.MustParseAddr("fd12:3456:789a::1:1")
	c.MTU, c.Table = 1420, 7708
	up(t, h, n, c)
	now := state(t, h)
	for _, old := range []string{"100.80.0.5", "fd12:3456:789a::5/", "table 7707"} {
		if strings.Contains(now, old) {
			t.Errorf("%s is still there:\n%s", old, now)
		}
	}
	if err := send(h, peerA.V4); err != nil {
		t.Fatal(err)
	}
	if src := tun.next(t, peerA.V4); src != c.Addrs.V4 {
		t.Errorf("packets come from %v", src)
	}
	if err := n.Down(); err != nil {
		t.Fatal(err)
	}
	same(t, "after Down", before, state(t, h))
}

func TestMarkedSocketsNeverLoop(t *testing.T) {
	h, _ := oneHost(t)
	n, _ := inNetwork(t, h)
	up(t, h, n, configA())
	for _, to := range peerA.Slice() {
		err := h.Do(func() error {
			d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
				var err error
				return errors.Join(c.Control(func(fd uintptr) {
					err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, Mark)
				}), err)
			}}
			c, err := d.Dial("udp", netip.AddrPortFrom(to, 9).String())
			if err != nil {
				return err
			}
			_, err = c.Write([]byte("x"))
			return errors.Join(err, c.Close())
		})
		if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("an underlay socket sends to %v: %v", to, err)
		}
	}
}

func TestKeeperRestoresWhatOthersRemove(t *testing.T) {
	h, tun := oneHost(t)
	n, _ := inNetwork(t, h)
	up(t, h, n, configA())
	whole := state(t, h)
	rt := h.Netlink()
	link, err := rt.LinkByName("redoubt0")
	if err != nil {
		t.Fatal(err)
	}
	nft := func(f func(*nftables.Conn)) func() error {
		return func() error {
			return h.Do(func() error {
				conn, err := nftables.New()
				if err != nil {
					return err
				}
				f(conn)
				return conn.Flush()
			})
		}
	}
	table, arp := inetTable("redoubt0"), arpTable("redoubt0")
	for name, damage := range map[string]func() error{
		"flush ruleset": nft((*nftables.Conn).FlushRuleset),
		"flush table":   nft(func(c *nftables.Conn) { c.FlushTable(table) }),
		"accepting rule": nft(func(c *nftables.Conn) {
			c.InsertRule(&nftables.Rule{
				Table: table, Chain: &nftables.Chain{Name: drops, Table: table},
				Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}},
			})
		}),
		"ARP":           nft(func(c *nftables.Conn) { c.DelTable(arp) }),
		"rules for ARP": nft(func(c *nftables.Conn) { c.FlushTable(arp) }),
		"address": func() error {
			return rt.AddrDel(link, &netlink.Addr{IPNet: netOf(netip.PrefixFrom(ownA.V4, 32))})
		},
		"routes": func() error {
			var errs []error
			for _, r := range append(ways(configA().withDefaults(), link.Attrs().Index), unreachables(configA().withDefaults())...) {
				errs = append(errs, rt.RouteDel(&r))
			}
			return errors.Join(errs...)
		},
		"rules": func() error {
			var errs []error
			for _, r := range rules(configA().withDefaults()) {
				errs = append(errs, rt.RuleDel(&r))
			}
			return errors.Join(errs...)
		},
		"device down and up": func() error { return errors.Join(rt.LinkSetDown(link), rt.LinkSetUp(link)) },
	} {
		if err := damage(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		eventually(t, func() error {
			if state(t, h) != whole {
				return fmt.Errorf("%s: not restored:\n%s", name, state(t, h))
			}
			return nil
		})
	}
	if got := n.Problems(); len(got) != 0 {
		t.Errorf("problems: %q", got)
	}

	if err := rt.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	eventually(t, problem(n, "taken down"))
	tun.kill()
	eventually(t, problem(n, "is gone"))
	if err := send(h, peerA.V4); err == nil {
		t.Error("a packet found a way without the device")
	}
}

func problem(n *Host, text string) func() error {
	return func() error {
		if got := n.Problems(); !strings.Contains(strings.Join(got, "\n"), text) {
			return fmt.Errorf("problems %q, want one with %q", got, text)
		}
		return nil
	}
}

func TestTwoAgentsInOneNamespace(t *testing.T) {
	h, tunA := oneHost(t)
	tunB := openTunnel(t, h, "redoubt1")
	before := state(t, h)
	a, killA := inNetwork(t, h)
	b, _ := inNetwork(t, h)
	up(t, h, a, configA())
	onlyA := state(t, h)

	c := configA()
	c.Interface = "redoubt1"
	if err := h.Do(func() error { return b.Up(c) }); err == nil || !strings.Contains(err.Error(), "redoubt0") {
		t.Fatalf("the same range on a second device: %v", err)
	}
	same(t, "after the refusal", onlyA, state(t, h))

	c.Mesh.V4, c.Mesh.V6 = netip.MustParsePrefix("100.96.0.0/16"), netip.MustParsePrefix("fd99::/48")
	c.Addrs.V4, c.Addrs.V6 = netip.MustParseAddr("100.96.0.1"), netip.MustParseAddr("fd99::1")
	up(t, h, b, c)
	up(t, h, a, configA())
	for _, x := range []struct {
		tun *tunnel
		to  string
	}{{tunA, "100.80.0.9"}, {tunB, "100.96.0.9"}, {tunA, "fd12:3456:789a::9"}, {tunB, "fd99::9"}} {
		to := netip.MustParseAddr(x.to)
		if err := send(h, to); err != nil {
			t.Fatal(err)
		}
		x.tun.next(t, to)
	}
	if err := b.Down(); err != nil {
		t.Fatal(err)
	}
	same(t, "after the second's Down", onlyA, state(t, h))

	// The first crashes; the next agent with the same range takes over its guard.
	killA()
	tunA.kill()
	c = configA()
	c.Interface = "redoubt1"
	up(t, h, b, c)
	if s := state(t, h); strings.Contains(s, TablePrefix+"redoubt0") {
		t.Errorf("the crashed guard is still there:\n%s", s)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	var without []string
	for line := range strings.Lines(before) {
		if !strings.Contains(line, "redoubt0 ") {
			without = append(without, strings.TrimSuffix(line, "\n"))
		}
	}
	same(t, "at the end", strings.Join(without, "\n"), state(t, h))
}

// TestARefusedDeviceIsLeftAlone checks that Down restores the device that Up used, and not one that it refused before.
func TestARefusedDeviceIsLeftAlone(t *testing.T) {
	h, _ := oneHost(t)
	openTunnel(t, h, "redoubt1")
	openTunnel(t, h, "redoubt2")
	a, _ := inNetwork(t, h)
	b, _ := inNetwork(t, h)
	up(t, h, a, configA())

	c := configA()
	c.Interface = "redoubt1"
	if err := h.Do(func() error { return b.Up(c) }); err == nil {
		t.Fatal("the same range on a second device was taken")
	}
	refused, err := h.Netlink().LinkByName("redoubt1")
	if err == nil {
		err = errors.Join(h.Netlink().LinkSetMTU(refused, 1400), h.Netlink().LinkSetUp(refused))
	}
	if err != nil {
		t.Fatal(err)
	}
	before := state(t, h)
	c.Interface = "redoubt2"
	c.Mesh.V4, c.Mesh.V6 = netip.MustParsePrefix("100.96.0.0/16"), netip.MustParsePrefix("fd99::/48")
	c.Addrs.V4, c.Addrs.V6 = netip.MustParseAddr("100.96.0.1"), netip.MustParseAddr("fd99::1")
	up(t, h, b, c)
	if err := b.Down(); err != nil {
		t.Fatal(err)
	}
	same(t, "after Down", before, state(t, h))
}

func TestWithoutIPv6(t *testing.T) {
	for _, where := range []string{"redoubt0", "all"} {
		h, tun := oneHost(t)
		if err := h.Sysctl("net.ipv6.conf."+where+".disable_ipv6", "1"); err != nil {
			t.Fatal(err)
		}
		before := state(t, h)
		n, _ := inNetwork(t, h)
		if err := h.Do(func() error { return n.Up(configA()) }); err != nil {
			t.Fatal(err)
		}
		if err := problem(n, "IPv6 is disabled on redoubt0")(); err != nil {
			t.Error(err)
		}
		if err := send(h, peerA.V4); err != nil {
			t.Fatal(err)
		}
		tun.next(t, peerA.V4)
		if err := send(h, peerA.V6); err == nil {
			t.Errorf("%s: a packet to the mesh's IPv6 range found a way", where)
		}
		if where == "redoubt0" {
			// Once IPv6 is enabled, the next Up configures what was left out.
			if err := h.Sysctl("net.ipv6.conf.redoubt0.disable_ipv6", "0"); err != nil {
				t.Fatal(err)
			}
			up(t, h, n, configA())
			if err := send(h, peerA.V6); err != nil {
				t.Fatal(err)
			}
			tun.next(t, peerA.V6)
		}
		if err := n.Down(); err != nil {
			t.Fatal(err)
		}
		same(t, "after Down", before, state(t, h))
	}
}

// noGuard acts like a kernel without nftables as far as set is concerned.
type noGuard struct{ guard }

func (noGuard) set(instance, duty) error { return guardError("set the guard", unix.EOPNOTSUPP) }

func TestWithoutNFTablesNothingPasses(t *testing.T) {
	h, _ := oneHost(t)
	before := state(t, h)
	n, _ := inNetwork(t, h)
	n.guard = noGuard{n.guard}
	err := h.Do(func() error { return n.Up(configA()) })
	if err == nil || !strings.Contains(err.Error(), "CONFIG_NF_TABLES") {
		t.Errorf("Up without nftables: %v", err)
	}
	same(t, "after the failure", before, state(t, h))

	// Likewise a kernel that does not even have a socket for it.
	n.guard, n.guardErr = nil, guardError("open a socket to nftables", unix.EPROTONOSUPPORT)
	if err := h.Do(func() error { return n.Up(configA()) }); err == nil || !strings.Contains(err.Error(), "nf_tables") {
		t.Errorf("Up without nftables: %v", err)
	}
}

func TestGuardThatCannotBeRestoredClosesTheWay(t *testing.T) {
	h, _ := oneHost(t)
	n, _ := inNetwork(t, h)
	up(t, h, n, configA())
	n.mu.Lock()
	real := n.guard
	n.guard = noGuard{real}
	n.mu.Unlock()
	err := h.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.FlushRuleset()
		return conn.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, problem(n, "could not be restored"))
	if s := state(t, h); strings.Contains(s, "addr redoubt0 100.80.0.5") || strings.Contains(s, "dev redoubt0 table 7707") {
		t.Errorf("the way into the mesh is open without a guard:\n%s", s)
	}
	n.mu.Lock()
	n.guard = real
	n.mu.Unlock()
	eventually(t, func() error {
		if got := n.Problems(); len(got) != 0 {
			return fmt.Errorf("problems: %q", got)
		}
		return nil
	})
	if s := state(t, h); !strings.Contains(s, "addr redoubt0 100.80.0.5") {
		t.Errorf("the way did not open again:\n%s", s)
	}
}

func TestUpRefusesBeforeItTouches(t *testing.T) {
	h, _ := oneHost(t)
	before := state(t, h)
	n, _ := inNetwork(t, h)
	for name, change := range map[string]func(*Config){
		"no device":     func(c *Config) { c.Interface = "redoubt9" },
		"bad name":      func(c *Config) { c.Interface = "a b" },
		"foreign":       func(c *Config) { c.Addrs.V4 = netip.MustParseAddr("10.0.0.1") },
		"no addresses":  func(c *Config) { c.Addrs = proto.Addrs{} },
		"no mesh":       func(c *Config) { c.Mesh = proto.Mesh{} },
		"everything":    func(c *Config) { c.Mesh.V4 = netip.MustParsePrefix("0.0.0.0/0") },
		"small MTU":     func(c *Config) { c.MTU = 500 },
		"kernel tables": func(c *Config) { c.Table = 254 },
	} {
		c := configA()
		change(&c)
		if err := h.Do(func() error { return n.Up(c) }); err == nil {
			t.Errorf("%s: Up succeeded", name)
		}
		same(t, name, before, state(t, h))
	}
}

func TestEndpointsAndClashesOfAHost(t *testing.T) {
	h, _ := oneHost(t)
	n, _ := inNetwork(t, h)
	up(t, h, n, configA())
	got, err := n.Endpoints(meshA)
	if err != nil {
		t.Fatal(err)
	}
	if want := []netip.Addr{h.V4(), h.V6()}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("endpoints %v, want %v", got, want)
	}
	if texts, err := n.Clashes(meshA); err != nil || len(texts) != 0 {
		t.Errorf("clashes with itself: %q, %v", texts, err)
	}
	openTunnel(t, h, "tailscale0")
	ts, err := h.Netlink().LinkByName("tailscale0")
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		h.Netlink().AddrAdd(ts, &netlink.Addr{IPNet: netOf(netip.MustParsePrefix("100.80.7.7/32"))}),
		h.Netlink().LinkSetUp(ts),
		h.Netlink().RouteAdd(&netlink.Route{
			LinkIndex: ts.Attrs().Index, Table: 52, Dst: netOf(netip.MustParsePrefix("100.80.9.0/24")),
		}))
	if err != nil {
		t.Fatal(err)
	}
	texts, err := n.Clashes(meshA)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(texts, "\n")
	for _, want := range []string{"tailscale0 (Tailscale) has the address 100.80.7.7/32", "100.80.9.0/24 on tailscale0", "table 52"} {
		if !strings.Contains(all, want) {
			t.Errorf("no clash says %q:\n%s", want, all)
		}
	}
}

func TestWatchReportsChanges(t *testing.T) {
	h, _ := oneHost(t)
	n, _ := inNetwork(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var changes <-chan struct{}
	err := h.Do(func() error {
		var err error
		changes, err = n.Watch(ctx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Ports[0].Renumber(99); err != nil {
		t.Fatal(err)
	}
	<-changes
	eventually(t, func() error {
		got, err := n.Endpoints(meshA)
		if err != nil || len(got) != 2 || got[0] != h.V4() {
			return errors.Join(fmt.Errorf("endpoints %v", got), err)
		}
		return nil
	})
	if err := h.Ports[0].Unplug(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got, err := n.Endpoints(meshA); err != nil || len(got) != 0 {
			return errors.Join(fmt.Errorf("endpoints of an unplugged host: %v", got), err)
		}
		return nil
	})
	cancel()
	for range changes { // ends when the watch does
	}
}

// TestInAUserNamespace runs the tests again as root of a user namespace, where the demo runs for unprivileged users.
func TestInAUserNamespace(t *testing.T) {
	labtest.World(t)
	labtest.TUN(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.count=1", "-test.skip=^TestInAUserNamespace$")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: unix.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: unix.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestHostKeepsTheContract(t *testing.T) {
	contract(t, func(t *testing.T) network {
		h, _ := oneHost(t)
		n, _ := inNetwork(t, h)
		return network{
			Network: n, config: configA(), addrs: []netip.Addr{h.V4(), h.V6()}, enter: h.Do,
			router: h.Ports[0].LAN.V4.Addr(), router6: h.Ports[0].LAN.V6.Addr(),
			change: func(t *testing.T) {
				if err := h.Ports[0].Renumber(99); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}
