package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	randv2 "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// bulk is how much is sent in each direction.
const bulk = 16 << 20

// TestMuchData sends data both ways at once over one connection, and datagrams that need several packets each.
func TestMuchData(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("a", "ann@example.com", "b", "tag:b")
	a, b := nodes[0], nodes[1]
	r.echo(b.Host, 9)
	for _, to := range b.addrs() {
		r.await("a reaches b", func() error { return a.Host.TryUDP(r.ctx, netip.AddrPortFrom(to, 9)) })
		if err := r.exchangeBulk(a, b, netip.AddrPortFrom(to, 80)); err != nil {
			t.Errorf("%v: %v", to, err)
		}
		for _, size := range []int{1, 1200, 1392, 1393, 3000, 9000, 20000, 60000} {
			if err := r.exchangeDatagram(a.Host, netip.AddrPortFrom(to, 9), size); err != nil {
				t.Errorf("%v: a datagram of %d bytes: %v", to, size, err)
			}
		}
	}
	for _, to := range b.addrs() {
		if err := r.exchangeZero(a.Host, netip.AddrPortFrom(to, 9)); err != nil {
			t.Errorf("%v: a datagram with a checksum of zero: %v", to, err)
		}
	}
	if st := a.status(); len(st.Peers) != 1 || st.Peers[0].TxBytes < 2*bulk || st.Peers[0].RxBytes < 2*bulk {
		t.Errorf("the counters of a: %+v", st.Peers)
	}
}

// exchangeZero exchanges a datagram with an echo server such that the checksums of both directions come out as zero.
func (r *rig) exchangeZero(from *lab.Host, to netip.AddrPort) error {
	c, err := from.Dial(r.ctx, "udp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	local := c.LocalAddr().(*net.UDPAddr).AddrPort()
	const length = 8 + 2
	summed := binary.BigEndian.AppendUint16(slices.Concat(local.Addr().AsSlice(), to.Addr().AsSlice()), unix.IPPROTO_UDP)
	for _, n := range []uint16{length, local.Port(), to.Port(), length} {
		summed = binary.BigEndian.AppendUint16(summed, n)
	}
	var sum uint32
	for i := 0; i < len(summed); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(summed[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	payload := binary.BigEndian.AppendUint16(nil, ^uint16(sum))
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write(payload); err != nil {
		return err
	}
	got := make([]byte, len(payload))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, payload) {
		return fmt.Errorf("%x came back for %x", got, payload)
	}
	return nil
}

// exchangeBulk sends random data both ways and checks that it arrives unchanged.
func (r *rig) exchangeBulk(from, to *member, at netip.AddrPort) error {
	l, err := to.Host.Listen(at)
	if err != nil {
		return err
	}
	defer l.Close()
	client, err := from.Host.Dial(r.ctx, "tcp", at.String())
	if err != nil {
		return err
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		return err
	}
	defer server.Close()
	var wg sync.WaitGroup
	var errs [4]error
	var sums [4][32]byte
	for i, c := range []io.ReadWriter{client, server} {
		wg.Go(func() {
			sum := sha256.New()
			_, errs[i] = io.CopyN(io.MultiWriter(c, sum), randv2.NewChaCha8([32]byte{byte(i)}), bulk)
			sums[i] = [32]byte(sum.Sum(nil))
		})
		wg.Go(func() {
			sum := sha256.New()
			_, errs[2+i] = io.CopyN(sum, c, bulk)
			sums[3-i] = [32]byte(sum.Sum(nil))
		})
	}
	stop := context.AfterFunc(r.ctx, func() { client.Close(); server.Close() })
	defer stop()
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	if sums[0] != sums[2] || sums[1] != sums[3] {
		return errors.New("what arrived is not what was sent")
	}
	return nil
}

// exchangeDatagram exchanges a datagram with an echo server; one may be lost.
func (r *rig) exchangeDatagram(h *lab.Host, to netip.AddrPort, size int) error {
	c, err := h.Dial(r.ctx, "udp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	sent, got := bytes.Repeat([]byte{byte(size)}, size), make([]byte, 65536)
	for range 3 {
		if _, err = c.Write(sent); err != nil {
			continue
		}
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		var n int
		if n, err = c.Read(got); err == nil {
			if !bytes.Equal(got[:n], sent) {
				return fmt.Errorf("%d other bytes came back", n)
			}
			return nil
		}
	}
	return err
}

// TestHostMoves checks that a connection survives when a host gets other addresses, and then another network.
func TestHostMoves(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	home, err := r.World.LAN("home")
	if err != nil {
		t.Fatal(err)
	}
	h, err := r.World.AddHost("laptop", r.LAN, home)
	if err != nil {
		t.Fatal(err)
	}
	laptop := r.agentOn(h)
	laptop.join(r.token("--user", "ann@example.com"))
	far, err := r.World.AddHost("far", home)
	if err != nil {
		t.Fatal(err)
	}
	b := r.agentOn(far)
	b.join(r.token("--tag", "tag:b"))
	r.settle()
	out := r.tcpFlow(laptop.Host, b.Host, netip.AddrPortFrom(b.v4, 80))
	in := r.tcpFlow(b.Host, laptop.Host, netip.AddrPortFrom(laptop.v6, 80))
	for _, f := range []*tcpFlow{out, in} {
		r.lives(f, 20)
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"renumbered", func() error { return h.Ports[0].Renumber(77) }},
		{"the second cable pulled", func() error { return errors.Join(h.Ports[1].Unplug(), readdress(h, h.Ports[1], h.Netlink().AddrDel)) }},
		{"the second cable back", func() error { return errors.Join(h.Ports[1].Heal(), readdress(h, h.Ports[1], h.Netlink().AddrAdd)) }},
	} {
		began := time.Now()
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		for _, f := range []*tcpFlow{out, in} {
			r.lives(f, 20)
		}
		t.Logf("%s: both connections go on %v later", step.what, time.Since(began).Round(time.Millisecond))
		laptop.awaitStatus(step.what+", and in contact", func(st mesh.Status) bool { return st.Coordinator.Connected && len(st.Problems) == 0 })
	}
}

// readdress removes or restores a port's addresses, as a host's network manager does when a cable is pulled.
func readdress(h *lab.Host, p *lab.Port, do func(netlink.Link, *netlink.Addr) error) error {
	link, err := h.Netlink().LinkByName(p.Device)
	if err != nil {
		return err
	}
	return errors.Join(
		do(link, &netlink.Addr{IPNet: &net.IPNet{IP: p.V4.AsSlice(), Mask: net.CIDRMask(p.LAN.V4.Bits(), 32)}}),
		do(link, &netlink.Addr{IPNet: &net.IPNet{IP: p.V6.AsSlice(), Mask: net.CIDRMask(p.LAN.V6.Bits(), 128)}, Flags: unix.IFA_F_NODAD}))
}

// TestDeviceVanishes removes the tunnel device while the agent runs. It checks that nothing leaves unencrypted, and that the
// agent creates another device.
func TestDeviceVanishes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("a", "ann@example.com", "b", "tag:b")
	a, b := nodes[0], nodes[1]
	packets := r.udpFlow(a.Host, b.Host, netip.AddrPortFrom(b.v4, 80))
	r.arrives(packets, 20)
	whole := r.network(a.Host)
	wire, err := a.Host.Ports[0].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}
	link, err := a.Host.Netlink().LinkByName("redoubt0")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Host.Netlink().LinkDel(link); err != nil {
		t.Fatal(err)
	}
	a.awaitStatus("says so", func(st mesh.Status) bool {
		return strings.Contains(fmt.Sprint(st.Problems), "redoubt0") || st.State == "starting"
	})
	r.arrives(packets, 20)
	a.awaitState("running")
	r.same("made again", whole, a.Host)
	packets.close()
	frames, err := wire.Stop()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if bytes.Contains(f.Data, []byte(payload)) {
			src, dst, _ := f.Addrs()
			t.Fatalf("in clear on the wire: %v to %v", src, dst)
		}
	}
}

// TestWhoDoesNotEnforceYet checks the report about a policy that one node has not received.
func TestWhoDoesNotEnforceYet(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("a", "ann@example.com", "away", "tag:b")
	if err := nodes[1].Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	said, err := r.Apply(r.ctx, rules, "--wait=1s")
	if err == nil {
		t.Errorf("a node that is away enforces it: %s", said)
	}
	r.contains(said, "1 of 2 nodes", "away")
	r.contains(r.admin("policy", "status"), "1 of 2 nodes", "away")
	nodes[1].start()
	r.settle()
	r.contains(r.admin("policy", "status"), "2 of 2 nodes")
	// Whoever revokes a node learns how long nodes out of reach may still trust it.
	r.apply(open)
	if err := nodes[1].Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	r.contains(r.admin("node", "revoke", "a"), "0 of 1 nodes", "at the latest")
}

// TestIPv6Alone uses a network without IPv4. The join code lists an unreachable address first; the tunnel carries both
// families.
func TestIPv6Alone(t *testing.T) {
	t.Parallel()
	r := emptyRig(t)
	r.startCoordinator("--url", "https://"+netip.AddrPortFrom(r.VM.V6(), 443).String())
	r.apply(open)
	var nodes []*member
	for _, name := range []string{"a", "b"} {
		m := r.machine(name)
		p := m.Host.Ports[0]
		link, err := m.Host.Netlink().LinkByName(p.Device)
		if err == nil {
			err = m.Host.Netlink().AddrDel(link, &netlink.Addr{IPNet: &net.IPNet{IP: p.V4.AsSlice(), Mask: net.CIDRMask(p.LAN.V4.Bits(), 32)}})
		}
		if err != nil {
			t.Fatal(err)
		}
		m.join(r.token("--user", "ann@example.com"))
		nodes = append(nodes, m)
	}
	r.settle()
	a, b := nodes[0], nodes[1]
	for _, to := range b.addrs() {
		r.await("a reaches b", func() error {
			_, err := a.Host.Ping(r.ctx, to)
			return err
		})
	}
	if st := a.status(); st.Peers[0].Endpoint == "" || !strings.Contains(st.Peers[0].Endpoint, b.Host.V6().String()) {
		t.Errorf("a sends to b at %q", st.Peers[0].Endpoint)
	}
}
