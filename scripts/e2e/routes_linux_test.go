package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// Networks behind the router that nobody else has a route to: a site, and a corner of the Internet.
var (
	site     = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("fd77:77::/64")}
	behind   = []netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77:77::1")}
	outThere = []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::fe")}
)

// routed is a mesh with a client and a router, and a host behind the router:
//
//	client ── lan ── router ── lan of the site ── host, which has the addresses of behind and outThere as well
type routed struct {
	*rig
	client, router *member
	host           *lab.Host
}

// routedPolicy lets ann into the site and onto the Internet, but not to port 81.
const routedPolicy = `{
	"tagOwners": {"tag:router": []},
	"grants": [
		{"src": ["ann@example.com"], "dst": ["10.77.0.0/24", "fd77:77::/64", "autogroup:internet"], "ip": ["tcp:80", "tcp:8080", "udp:80", "icmp:*", "ipv6-icmp:*"]},
	],
}`

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func newRouted(t testing.TB) *routed {
	t.Helper()
	r := &routed{rig: newRig(t)}
	r.apply(routedPolicy)
	lan, err := r.World.LAN("site")
	if err != nil {
		t.Fatal(err)
	}
	if r.host, err = r.World.AddHost("host", lan); err != nil {
		t.Fatal(err)
	}
	h, err := r.World.AddHost("router", r.LAN, lan)
	if err != nil {
		t.Fatal(err)
	}
	near, err := r.host.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	toHost, err := h.Netlink().LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	for i, addrs := range [][]netip.Addr{{behind[0], outThere[0]}, {behind[1], outThere[1]}} {
		gw := []netip.Addr{r.host.V4(), r.host.V6()}[i]
		for _, a := range addrs {
			one := netip.PrefixFrom(a, a.BitLen())
			err = errors.Join(err,
				r.host.Netlink().AddrAdd(near, &netlink.Addr{IPNet: ipNet(one), Flags: 0x02 /* no duplicate detection */}),
				h.Netlink().RouteAdd(&netlink.Route{LinkIndex: toHost.Attrs().Index, Dst: ipNet(one), Gw: gw.AsSlice()}))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range slices.Concat(behind, outThere) {
		for _, port := range []uint16{80, 81} {
			if err := r.host.Echo(netip.AddrPortFrom(a, port)); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.router, r.client = r.agentOn(h), r.machine("client")
	return r
}

// reaches and misses try an address behind the router.
func (r *routed) reaches(to ...netip.Addr) {
	r.Helper()
	for _, a := range to {
		r.await("the client reaches "+a.String(), func() error { return r.try(a, 80) })
	}
}

func (r *routed) misses(to ...netip.Addr) {
	r.Helper()
	for _, a := range to {
		if err := r.try(a, 80); err == nil {
			r.Errorf("the client reaches %v", a)
		}
	}
}

func (r *routed) try(a netip.Addr, port uint16) error {
	ctx, cancel := context.WithTimeout(r.ctx, 3*time.Second)
	defer cancel()
	return errors.Join(r.client.Host.TryTCP(ctx, netip.AddrPortFrom(a, port)), r.client.Host.TryUDP(ctx, netip.AddrPortFrom(a, port)))
}

// joinAsRouter and joinAsClient run the commands that people type.
func (r *routed) joinAsRouter(flags ...string) {
	r.Helper()
	if _, err := r.router.Up(r.ctx, r.token("--tag", "tag:router"), flags...); err != nil {
		r.Fatal(err)
	}
	r.known(r.router)
}

func (r *routed) joinAsClient(flags ...string) {
	r.Helper()
	if _, err := r.client.Up(r.ctx, r.token("--user", "ann@example.com"), flags...); err != nil {
		r.Fatal(err)
	}
	r.known(r.client)
}

func (r *routed) known(m *member) {
	st := m.status()
	m.id, m.v4, m.v6 = st.Node.ID, st.V4(), st.V6()
}

// forwarding returns whether the router's host forwards IPv4 and IPv6.
func (r *routed) forwarding() (out string) {
	r.Helper()
	err := r.router.Host.Do(func() error {
		for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			b, err := os.ReadFile("/proc/sys/net/" + name)
			if err != nil {
				return err
			}
			out += strings.TrimSpace(string(b))
		}
		return nil
	})
	if err != nil {
		r.Fatal(err)
	}
	return out
}

// TestSubnetRouter checks that a network can be advertised, approved, accepted and used, that revoking the approval ends an
// open connection, that router and client survive being killed, and that everything is restored in the end.
func TestSubnetRouter(t *testing.T) {
	t.Parallel()
	r := newRouted(t)
	before, clientBefore := r.network(r.router.Host), r.network(r.client.Host)
	advertised := site[0].String() + "," + site[1].String()
	r.joinAsRouter("--advertise-routes", advertised)
	r.joinAsClient()
	r.settle()
	r.contains(r.router.do("status"), "offers", site[0].String(), "not approved")
	if got := r.forwarding(); got != "00" {
		t.Errorf("the router forwards %s before anything is approved", got)
	}
	r.misses(behind...)

	r.admin("node", "approve-routes", "router", site[0].String(), site[1].String())
	r.settle()
	r.router.awaitStatus("serves both networks", func(st mesh.Status) bool {
		return len(st.Routing.Offered) == 2 && st.Routing.Offered[0].Served && st.Routing.Offered[1].Served
	})
	r.contains(r.router.do("status"), "serves", site[0].String())
	r.contains(r.client.do("status"), "none of the 2 that peers serve")
	r.misses(behind...)
	r.contains(r.client.do("up", "--accept-routes"), "client")
	r.reaches(behind...)
	r.contains(r.client.do("status"), "routes", site[0].String()+" by router", site[1].String()+" by router")
	r.narrow(r.client.do("status"))
	if err := r.try(behind[0], 81); err == nil {
		t.Error("a port that no rule is about is reached behind the router")
	}
	r.contains(r.client.do("why", behind[0].String()+":80"), "allowed")
	if got := r.forwarding(); got != "11" {
		t.Errorf("the router forwards %s", got)
	}

	// An open connection ends with the approval, and nothing leaves unencrypted instead.
	f := r.tcpFlow(r.client.Host, r.host, netip.AddrPortFrom(behind[0], 8080))
	r.lives(f, 20)
	r.admin("node", "approve-routes", "router", site[1].String())
	r.reset(f)
	r.settle()
	r.misses(behind[0])
	r.reaches(behind[1])
	r.admin("node", "approve-routes", "router", site[0].String(), site[1].String())
	r.settle()
	r.reaches(behind...)

	// Killed and restarted, both are as before.
	whole, clientWhole := r.network(r.router.Host), r.network(r.client.Host)
	for _, m := range []*member{r.router, r.client} {
		if err := m.Agent.Kill(); err != nil {
			t.Fatal(err)
		}
		r.misses(behind...)
		m.start()
		m.awaitState("running")
		r.reaches(behind...)
	}
	r.same("after a restart", whole, r.router.Host)
	r.same("after a restart", clientWhole, r.client.Host)

	// A later up can offer less; without flags it changes nothing.
	r.router.do("up")
	r.router.do("up", "--advertise-routes="+site[0].String())
	r.client.awaitStatus("has one route left", func(st mesh.Status) bool { return len(st.Routing.Routes) == 1 })
	r.reaches(behind[0])
	r.misses(behind[1])
	r.contains(r.router.fails(2, "up", "--advertise-routes", "10.77.0.1/24"), "did you mean 10.77.0.0/24?")
	r.contains(r.router.fails(2, "up", "--advertise-routes", "0.0.0.0/0"), "--advertise-exit-node")
	r.contains(r.router.fails(1, "up", "--advertise-routes", r.client.v4.String()+"/32"), "the mesh's own addresses")

	r.router.do("down")
	r.client.do("down")
	r.same("down", before, r.router.Host)
	r.same("down", clientBefore, r.client.Host)
	if got := r.forwarding(); got != "00" {
		t.Errorf("the router forwards %s in the end", got)
	}
}

// TestSubnetRouterWithoutSNAT checks that the host behind the router sees the client's address.
func TestSubnetRouterWithoutSNAT(t *testing.T) {
	t.Parallel()
	r := newRouted(t)
	r.joinAsRouter("--advertise-routes", site[0].String(), "--snat-subnet-routes=false")
	r.joinAsClient("--accept-routes")
	r.admin("node", "approve-routes", "router", site[0].String())
	r.settle()
	near, err := r.host.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.host.Netlink().RouteAdd(&netlink.Route{
		LinkIndex: near.Attrs().Index, Dst: ipNet(netip.PrefixFrom(r.client.v4, 32)), Gw: r.router.Host.Ports[1].V4.AsSlice(),
	}); err != nil {
		t.Fatal(err)
	}
	r.reaches(behind[0])
	f := r.tcpFlow(r.client.Host, r.host, netip.AddrPortFrom(behind[0], 8080))
	if from := f.server.RemoteAddr().String(); !strings.HasPrefix(from, r.client.v4.String()+":") {
		t.Errorf("the host behind the router sees %s, not the client", from)
	}
	r.lives(f, 20)
}

// TestExitNode checks that everything goes through the exit node, and nothing leaves unencrypted when it is gone, for
// whatever reason.
func TestExitNode(t *testing.T) {
	t.Parallel()
	r := newRouted(t)
	before := r.network(r.client.Host)
	r.joinAsRouter("--advertise-exit-node")
	r.joinAsClient()
	wire, err := r.client.Host.Ports[0].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}
	r.contains(r.client.fails(1, "up", "--exit-node", "nobody"), "not a node that this one knows")
	r.admin("node", "approve-routes", "router", "0.0.0.0/0", "::/0")
	r.settle()
	r.contains(r.router.do("status"), "serves", "the Internet")
	r.client.do("up", "--exit-node", "router")
	r.reaches(outThere...)
	r.contains(r.client.do("status"), "exit node", "router, the local network is cut off")
	r.narrow(r.client.do("status"))
	closed := func(when string) {
		t.Helper()
		for _, a := range outThere {
			if err := r.try(a, 80); err == nil {
				t.Errorf("%s: the client reaches %v", when, a)
			}
		}
	}
	if _, err := r.client.Host.Ping(r.ctx, r.router.Host.V4()); err == nil {
		t.Error("the local network is reached")
	}
	r.client.do("up", "--exit-node-allow-lan")
	if _, err := r.client.Host.Ping(r.ctx, r.router.Host.V4()); err != nil {
		t.Errorf("the local network is not left alone: %v", err)
	}
	r.reaches(outThere...)

	// The client is killed and comes back.
	if err := r.client.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	closed("the agent was killed")
	r.client.start()
	r.client.awaitState("running")
	r.reaches(outThere...)

	// The exit node loses its approval, and then its place in the mesh.
	r.admin("node", "approve-routes", "router", "--none")
	r.client.awaitStatus("has lost its exit node", func(st mesh.Status) bool {
		return st.Routing.ExitNode != nil && st.Routing.ExitNode.Peer == "" && strings.Contains(strings.Join(st.Problems, "\n"), "exit node router is not reachable")
	})
	closed("the approval was taken back")
	r.contains(r.client.do("status"), "router is not reachable, Internet traffic is blocked")
	r.admin("node", "approve-routes", "router", "0.0.0.0/0", "::/0")
	r.reaches(outThere...)
	r.admin("node", "revoke", "router")
	r.client.awaitStatus("has lost its exit node", func(st mesh.Status) bool {
		return st.Routing.ExitNode != nil && st.Routing.ExitNode.Peer == ""
	})
	closed("the exit node was revoked")
	if err := r.client.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	closed("and the agent was killed")
	r.client.start()
	r.client.awaitState("running")
	closed("and it was started again")
	for _, f := range wire.Frames() {
		if src, dst, ok := f.Addrs(); ok && f.From(r.client.Host.Ports[0]) && (dst == outThere[0] || dst == outThere[1]) {
			t.Errorf("in clear: from %v to %v", src, dst)
		}
	}
	r.client.do("up", "--exit-node=")
	r.client.do("down")
	r.same("down", before, r.client.Host)
	if len(wire.Frames()) == 0 {
		t.Error("nothing at all was on the wire, so the test proves nothing")
	}
}
