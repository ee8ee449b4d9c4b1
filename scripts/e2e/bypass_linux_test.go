package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// service is a port of host a, open to anyone whom a's filter lets in.
const service = 4000

// neighbourhood is a mesh with nodes a and p, and a malicious neighbour m on their LAN that is in no mesh. p may use a's
// service; m may use it at a's LAN address, like everyone there.
type neighbourhood struct {
	*rig
	a, p     *member
	m        *lab.Host
	sock     [2]*net.UDPConn // a's service, IPv4 and IPv6, on all addresses
	attempts int
}

func newNeighbourhood(t testing.TB) *neighbourhood {
	t.Helper()
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("a", "ann@example.com", "p", "tag:p")
	m, err := r.World.AddHost("m", r.LAN)
	if err != nil {
		t.Fatal(err)
	}
	x := &neighbourhood{rig: r, a: nodes[0], p: nodes[1], m: m}
	for i, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if x.sock[i], err = x.a.Host.ListenUDP(netip.AddrPortFrom(a, service)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { x.sock[i].Close() })
	}
	return x
}

// rpFilter sets a's reverse path filter, also for future devices: the kernel uses the larger of the device's value and that
// of all.
func (x *neighbourhood) rpFilter(mode int) {
	x.Helper()
	var errs []error
	for _, device := range []string{"all", "default", "eth0", "redoubt0"} {
		errs = append(errs, x.a.Host.Sysctl("net.ipv4.conf."+device+".rp_filter", strconv.Itoa(mode)))
	}
	if err := errors.Join(errs[:3]...); err != nil { // redoubt0 may not exist
		x.Fatal(err)
	}
}

// attack sends every kind of packet with an overlay address in it from m to a, and checks what arrives.
func (x *neighbourhood) attack(when string) {
	x.Helper()
	a, m := x.a.Host.Ports[0], x.m.Ports[0]
	for i := range 2 {
		own, peer := x.a.addrs()[i], x.p.addrs()[i]
		lan, from := []netip.Addr{a.V4, a.V6}[i], []netip.Addr{m.V4, m.V6}[i]
		for _, at := range []struct {
			what     string
			src, dst netip.Addr
		}{
			{"a peer's overlay source to the overlay address", peer, own},
			{"a peer's overlay source to the LAN address", peer, lan},
			{"a LAN source to the overlay address", from, own},
			{"a's own overlay source to the LAN address", own, lan},
			{"another overlay source to the overlay address", own.Next(), own},
		} {
			src, dst := netip.AddrPortFrom(at.src, 5555), netip.AddrPortFrom(at.dst, service)
			for _, packet := range [][]byte{
				lab.UDPPacket(src, dst, []byte("harm: "+at.what)),
				lab.TCPPacket(src, dst, lab.FlagSYN, 1, 0, nil),
				lab.TCPPacket(src, dst, lab.FlagACK, 1, 1, []byte("harm")),
				lab.EchoPacket(at.src, at.dst, 1, 1),
			} {
				if err := m.Inject(a.MAC, packet); err != nil {
					x.Fatal(err)
				}
			}
			x.attempts++
		}
		x.lookForHarm(when, x.sock[i], from, lan)
	}
}

// lookForHarm checks what a's service has received, up to a final packet that is allowed.
func (x *neighbourhood) lookForHarm(when string, sock *net.UDPConn, from, lan netip.Addr) {
	x.Helper()
	a, m := x.a.Host.Ports[0], x.m.Ports[0]
	last := fmt.Sprintf("last %d", x.attempts)
	packet := lab.UDPPacket(netip.AddrPortFrom(from, 6666), netip.AddrPortFrom(lan, service), []byte(last))
	if err := m.Inject(a.MAC, packet); err != nil {
		x.Fatal(err)
	}
	buf := make([]byte, 2000)
	for {
		if err := sock.SetReadDeadline(time.Now().Add(patience)); err != nil {
			x.Fatal(err)
		}
		n, who, err := sock.ReadFromUDPAddrPort(buf)
		switch {
		case err != nil:
			x.Fatalf("%s: what is allowed does not arrive: %v", when, err)
		case string(buf[:n]) == last:
			return
		case bytes.HasPrefix(buf[:n], []byte("harm")):
			x.Errorf("%s: the service received %q from %v", when, buf[:n], who)
		}
	}
}

// asks makes p use a's service through the tunnel.
func (x *neighbourhood) asks() {
	x.Helper()
	buf := make([]byte, 2000)
	for i, sock := range x.sock {
		x.await("p reaches a's service", func() error {
			c, err := x.p.Host.Dial(x.ctx, "udp", netip.AddrPortFrom(x.a.addrs()[i], service).String())
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.Write([]byte("hello")); err != nil {
				return err
			}
			if err := sock.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			n, who, err := sock.ReadFromUDPAddrPort(buf)
			if err == nil && (string(buf[:n]) != "hello" || who.Addr().Unmap() != x.p.addrs()[i]) {
				err = fmt.Errorf("%q from %v", buf[:n], who)
			}
			return err
		})
	}
}

// TestNobodyPassesTheFilterBy makes a neighbour send to and from overlay addresses, with each reverse path filter, both while
// the agent runs and after it was killed with -9, while a client on the host keeps sending. It checks that nothing from the
// neighbour arrives or is answered, and that nothing from the client leaves unencrypted.
func TestNobodyPassesTheFilterBy(t *testing.T) {
	t.Parallel()
	x := newNeighbourhood(t)
	x.asks()
	wire, err := x.a.Host.Ports[0].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}
	var flows []*udpFlow
	for _, to := range x.p.addrs() {
		flows = append(flows, x.udpFlow(x.a.Host, x.p.Host, netip.AddrPortFrom(to, service)))
	}
	for _, f := range flows {
		x.arrives(f, 20)
	}
	for mode := range 3 {
		x.rpFilter(mode)
		x.attack(fmt.Sprintf("rp_filter %d, agent running", mode))
	}
	if err := x.a.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	for mode := range 3 {
		x.rpFilter(mode)
		x.attack(fmt.Sprintf("rp_filter %d, agent killed", mode))
		for _, f := range flows {
			x.silent(f)
		}
	}
	x.a.start()
	for mode := range 3 {
		x.rpFilter(mode)
		x.attack(fmt.Sprintf("rp_filter %d, agent back", mode))
	}
	for _, f := range flows {
		x.arrives(f, 20)
		f.close()
	}
	x.asks()
	x.lookAtWire(wire)
}

// lookAtWire checks everything that a has sent and received: no overlay address, and nothing of what the client sent.
func (x *neighbourhood) lookAtWire(wire *lab.Capture) {
	x.Helper()
	frames, err := wire.Stop()
	if err != nil {
		x.Fatal(err)
	}
	sent := 0
	for _, f := range frames {
		if !f.From(x.a.Host.Ports[0]) {
			continue
		}
		sent++
		src, dst, ok := f.Addrs()
		for _, overlay := range append(x.a.addrs(), x.p.addrs()...) {
			if ok && (src == overlay || dst == overlay) {
				x.Errorf("a has sent %d bytes from %v to %v", len(f.Data), src, dst)
			}
		}
		if bytes.Contains(f.Data, []byte(payload)) {
			x.Errorf("a has sent in clear, from %v to %v", src, dst)
		}
	}
	if sent < 100 {
		x.Errorf("the wire has only %d frames of a: the test looks at the wrong thing", sent)
	}
}

// TestNeighbourWithoutAgent shows that the test above would notice a bypass: after `down`, the same packets arrive if their
// destination is an address of a.
func TestNeighbourWithoutAgent(t *testing.T) {
	t.Parallel()
	x := newNeighbourhood(t)
	x.rpFilter(0)
	x.a.do("down")
	a, m := x.a.Host.Ports[0], x.m.Ports[0]
	harm := lab.UDPPacket(netip.AddrPortFrom(x.p.v4, 5555), netip.AddrPortFrom(a.V4, service), []byte("harm"))
	if err := m.Inject(a.MAC, harm); err != nil {
		t.Fatal(err)
	}
	if err := x.sock[0].SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, _, err := x.sock[0].ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "harm" {
		t.Errorf("%q did not arrive without the agent, so the other test proves nothing: %v", buf[:n], err)
	}
}
