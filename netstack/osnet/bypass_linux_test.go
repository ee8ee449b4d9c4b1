package osnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host a is in the mesh; host m is its hostile neighbour on the LAN; host v is on another LAN that a is on, too.
//
//	m ── lan1 ── a ── lan2 ── v
type neighbours struct {
	a, m, v *lab.Host
	tun     *tunnel
	n       *Host
	kill    func()
}

func withNeighbour(t *testing.T) *neighbours {
	t.Helper()
	w := labtest.World(t)
	lan1, lan2 := labtest.LAN(t, w, "lan1"), labtest.LAN(t, w, "lan2")
	x := &neighbours{
		m: labtest.Host(t, w, "m", lan1),
		a: labtest.Host(t, w, "a", lan1, lan2),
		v: labtest.Host(t, w, "v", lan2),
	}
	x.tun = openTunnel(t, x.a, "redoubt0")
	x.n, x.kill = inNetwork(t, x.a)
	return x
}

// rpFilter sets the reverse path filter: the kernel uses the maximum of the values for the device and for all.
func (x *neighbours) rpFilter(t *testing.T, mode int) {
	t.Helper()
	var errs []error
	for _, device := range []string{"all", "default", "eth0", "redoubt0"} {
		errs = append(errs, x.a.Sysctl("net.ipv4.conf."+device+".rp_filter", strconv.Itoa(mode)))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

const service = 4000

// attack is the source and destination of the packets that the neighbour sends to a's service.
type attack struct {
	name     string
	src, dst netip.Addr
}

func (x *neighbours) attacks() []attack {
	a, m := x.a.Ports[0], x.m.Ports[0]
	return []attack{
		{"overlay source to the overlay address", peerA.V4, ownA.V4},
		{"overlay source to the LAN address", peerA.V4, a.V4},
		{"LAN source to the overlay address", m.V4, ownA.V4},
		{"own overlay source to the LAN address", ownA.V4, a.V4},
		{"overlay source to the overlay address, IPv6", peerA.V6, ownA.V6},
		{"overlay source to the LAN address, IPv6", peerA.V6, a.V6},
		{"LAN source to the overlay address, IPv6", m.V6, ownA.V6},
		{"own overlay source to the LAN address, IPv6", ownA.V6, a.V6},
	}
}

// send makes the neighbour send one packet of each kind.
func (x *neighbours) send(t *testing.T, src, dst netip.Addr) {
	t.Helper()
	s, d := netip.AddrPortFrom(src, 5555), netip.AddrPortFrom(dst, service)
	for _, p := range [][]byte{
		lab.UDPPacket(s, d, []byte("harm")),
		lab.TCPPacket(s, d, lab.FlagSYN, 1, 0, nil),
		lab.EchoPacket(src, dst, 1, 1),
	} {
		if err := x.m.Ports[0].Inject(x.a.Ports[0].MAC, p); err != nil {
			t.Fatal(err)
		}
	}
}

// sockets are a's service on all addresses. A permitted packet sent last tells when everything sent before has been processed.
type sockets struct{ v4, v6 *net.UDPConn }

func (x *neighbours) serve(t *testing.T) sockets {
	t.Helper()
	open := func(any netip.Addr) *net.UDPConn {
		c, err := x.a.ListenUDP(netip.AddrPortFrom(any, service))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	return sockets{open(netip.IPv4Unspecified()), open(netip.IPv6Unspecified())}
}

// received returns the sources of what the service received before a permitted packet that it sends.
func (x *neighbours) received(t *testing.T, s sockets) []netip.Addr {
	t.Helper()
	a, m := x.a.Ports[0], x.m.Ports[0]
	var got []netip.Addr
	for _, c := range []struct {
		sock     *net.UDPConn
		src, dst netip.Addr
	}{{s.v4, m.V4, a.V4}, {s.v6, m.V6, a.V6}} {
		last := lab.UDPPacket(netip.AddrPortFrom(c.src, 6666), netip.AddrPortFrom(c.dst, service), []byte("last"))
		if err := m.Inject(a.MAC, last); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		for {
			if err := c.sock.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, from, err := c.sock.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatalf("the packet that is allowed did not arrive: %v", err)
			}
			if string(buf[:n]) == "last" {
				break
			}
			got = append(got, from.Addr().Unmap())
		}
	}
	return got
}

// overlayFrames describes the frames with overlay addresses that a port's host has sent.
func overlayFrames(t *testing.T, c *lab.Capture, from *lab.Port) []string {
	t.Helper()
	frames, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if len(frames) == 0 {
		t.Error("the capture saw nothing at all")
	}
	var out []string
	for _, f := range frames {
		if src, dst, ok := f.Addrs(); ok && f.From(from) && (meshA.Contains(src) || meshA.Contains(dst)) {
			out = append(out, fmt.Sprintf("%v to %v, %d bytes", src, dst, len(f.Data)))
		}
	}
	return out
}

func TestNeighbourCannotBypassTheFilter(t *testing.T) {
	for mode := range 3 {
		t.Run("rp_filter "+strconv.Itoa(mode), func(t *testing.T) {
			x := withNeighbour(t)
			up(t, x.a, x.n, configA())
			x.rpFilter(t, mode)
			s := x.serve(t)
			wire, err := x.a.Ports[0].CaptureWire()
			if err != nil {
				t.Fatal(err)
			}
			for _, at := range x.attacks() {
				x.send(t, at.src, at.dst)
				if got := x.received(t, s); len(got) != 0 {
					t.Errorf("%s: the service received packets from %v", at.name, got)
				}
			}
			x.askForMAC(t, wire)
			for _, f := range overlayFrames(t, wire, x.a.Ports[0]) {
				t.Errorf("a has answered: %s", f)
			}
		})
	}
}

// askForMAC asks for a's overlay address by ARP, and then waits for the answer to a request that a may answer.
func (x *neighbours) askForMAC(t *testing.T, wire *lab.Capture) {
	t.Helper()
	m, a := x.m.Ports[0], x.a.Ports[0]
	for _, target := range []netip.Addr{ownA.V4, a.V4} {
		frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, m.MAC...)
		frame = append(frame, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
		frame = append(append(frame, m.MAC...), m.V4.AsSlice()...)
		frame = append(append(frame, 0, 0, 0, 0, 0, 0), target.AsSlice()...)
		if err := m.InjectFrame(frame); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error {
		for _, f := range wire.Frames() {
			if src, _, ok := f.Addrs(); ok && f.From(a) && src == a.V4 && f.Data[12] == 8 && f.Data[13] == 6 {
				return nil
			}
		}
		return errors.New("a answers no question for its LAN address")
	})
}

// TestNeighbourWithoutTheGuard checks that the test above would notice a bypass: without the guard the same packets arrive.
func TestNeighbourWithoutTheGuard(t *testing.T) {
	x := withNeighbour(t)
	up(t, x.a, x.n, configA())
	x.rpFilter(t, 0)
	x.n.mu.Lock()
	x.n.keeper.close() // it would restore what is removed here
	err := x.n.guard.remove("redoubt0")
	x.n.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.n.keeper = nil })
	s := x.serve(t)
	wire, err := x.a.Ports[0].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range x.attacks() {
		x.send(t, at.src, at.dst)
		// The kernel itself drops packets with a's own address as their source.
		if got := x.received(t, s); len(got) == 0 && at.src != ownA.V4 && at.src != ownA.V6 {
			t.Errorf("%s: did not arrive without the guard, so the test proves nothing", at.name)
		}
	}
	x.askForMAC(t, wire)
	if len(overlayFrames(t, wire, x.a.Ports[0])) == 0 {
		t.Error("a has not answered without the guard, so the test proves nothing")
	}
}

// ruleset adds a chain of the user's own firewall.
func ruleset(t *testing.T, h *lab.Host, chain nftables.Chain, rules ...[]expr.Any) {
	t.Helper()
	err := h.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "user-" + chain.Name})
		chain.Table = table
		c := conn.AddChain(&chain)
		for _, r := range rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: r})
		}
		return conn.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// translate returns a rule that changes the destination of packets to an address.
func translate(from, to netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from.AsSlice()},
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}
}

func TestTranslatedPacketsCannotBypassTheFilter(t *testing.T) {
	x := withNeighbour(t)
	up(t, x.a, x.n, configA())
	a := x.a.Ports[0]
	viaA, peer := netip.MustParseAddr("10.99.1.200"), peerA.V4
	dnat := nftables.Chain{
		Name: "prerouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityNATDest,
	}
	ruleset(t, x.a, dnat, translate(viaA, ownA.V4), translate(netip.MustParseAddr("10.99.1.201"), peer))
	masquerade := nftables.Chain{
		Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityNATSource,
	}
	ruleset(t, x.a, masquerade, []expr.Any{&expr.Masq{}})
	if err := x.a.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	s := x.serve(t)
	x.send(t, x.m.V4(), viaA)
	x.send(t, x.m.V4(), netip.MustParseAddr("10.99.1.201"))
	if got := x.received(t, s); len(got) != 0 {
		t.Errorf("a service got packets that were translated to its overlay address, from %v", got)
	}
	if led := x.tun.led(t); len(led) != 0 {
		t.Errorf("a neighbour's packets were led into the mesh: %q", led)
	}
	// The rules are in effect: packets translated to another address arrive.
	ruleset(t, x.a, nftables.Chain{
		Name: "other", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityRef(-101),
	}, translate(netip.MustParseAddr("10.99.1.202"), a.V4))
	x.send(t, x.m.V4(), netip.MustParseAddr("10.99.1.202"))
	if got := x.received(t, s); len(got) != 1 {
		t.Errorf("the service got %v: translation does not work here, so the test proves nothing", got)
	}
}

func TestHostForwardsNothingOfTheOverlay(t *testing.T) {
	x := withNeighbour(t)
	up(t, x.a, x.n, configA())
	x.rpFilter(t, 0)
	if err := errors.Join(
		x.a.Sysctl("net.ipv4.ip_forward", "1"),
		x.a.Sysctl("net.ipv6.conf.all.forwarding", "1"),
	); err != nil {
		t.Fatal(err)
	}
	wire, err := x.a.Ports[1].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}
	// From the LAN with overlay sources through the host, from the LAN into the mesh, and from the mesh to the LAN.
	x.send(t, peerA.V4, x.v.V4())
	x.send(t, peerA.V6, x.v.V6())
	x.send(t, x.m.V4(), peerA.V4)
	x.send(t, x.m.V6(), peerA.V6)
	if led := x.tun.led(t); len(led) != 0 {
		t.Errorf("a neighbour's packets were led into the mesh: %q", led)
	}
	for _, p := range [][]byte{
		lab.UDPPacket(netip.AddrPortFrom(peerA.V4, 1), netip.AddrPortFrom(x.v.V4(), service), nil),
		lab.UDPPacket(netip.AddrPortFrom(peerA.V6, 1), netip.AddrPortFrom(x.v.V6(), service), nil),
	} {
		if _, err := x.tun.file.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	// A packet without overlay addresses is forwarded, and comes last.
	x.send(t, x.m.V4(), x.v.V4())
	eventually(t, func() error {
		for _, f := range wire.Frames() {
			if src, dst, ok := f.Addrs(); ok && src == x.m.V4() && dst == x.v.V4() {
				return nil
			}
		}
		return errors.New("the host forwards nothing at all, so the test proves nothing")
	})
	for _, f := range overlayFrames(t, wire, x.a.Ports[1]) {
		t.Errorf("a has forwarded: %s", f)
	}
}

// TestNothingLeavesInClear checks that the guard alone suffices on a host whose own routing rules precede ours and lead
// everything to the LAN, both while the agent runs and after it crashed.
func TestNothingLeavesInClear(t *testing.T) {
	x := withNeighbour(t)
	up(t, x.a, x.n, configA())
	for _, f := range families {
		rule := netlink.NewRule()
		rule.Priority, rule.Table, rule.Family = 1000, unix.RT_TABLE_MAIN, f
		if err := x.a.Netlink().RuleAdd(rule); err != nil {
			t.Fatal(err)
		}
	}
	wire, err := x.a.Ports[0].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}
	try := func(when string, from proto.Addrs) {
		t.Helper()
		for i, to := range peerA.Slice() {
			if err := send(x.a, to); err == nil {
				t.Errorf("%s: a packet to %v was sent", when, to)
			}
			// And with an overlay address as the source, to a host on the LAN.
			err := x.a.Do(func() error {
				d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.Slice()[i], 0))}
				c, err := d.Dial("udp", netip.AddrPortFrom([]netip.Addr{x.m.V4(), x.m.V6()}[i], service).String())
				if err != nil {
					return err
				}
				_, err = c.Write([]byte("x"))
				return errors.Join(err, c.Close())
			})
			if err == nil {
				t.Errorf("%s: a packet from %v was sent", when, from.Slice()[i])
			}
		}
	}
	try("up", ownA)
	x.kill()
	x.tun.kill()
	// Programs that may bind to non-local addresses, as proxies do, are stopped as well.
	if err := errors.Join(
		x.a.Sysctl("net.ipv4.ip_nonlocal_bind", "1"),
		x.a.Sysctl("net.ipv6.ip_nonlocal_bind", "1"),
	); err != nil {
		t.Fatal(err)
	}
	try("after the crash", ownA)
	if _, err := x.a.Ping(t.Context(), x.m.V4()); err != nil { // the wire works
		t.Fatal(err)
	}
	for _, f := range overlayFrames(t, wire, x.a.Ports[0]) {
		t.Errorf("in clear on the wire: %s", f)
	}
}
