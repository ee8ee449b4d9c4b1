package tun_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

func TestMain(m *testing.M) {
	code := labtest.Main(m)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// end is a host with a device that has the addresses 10.9.0.n and fd99::n.
type end struct {
	t     *testing.T
	host  *lab.Host
	dev   tun.Device
	v4    netip.Addr
	v6    netip.Addr
	most  atomic.Int64 // largest number of packets received in one super-packet
	wires sync.WaitGroup
}

func newEnd(t *testing.T, w *lab.World, number byte, queues int) *end {
	t.Helper()
	e := &end{
		t: t, host: labtest.Host(t, w, fmt.Sprintf("h%d", number)), v4: netip.AddrFrom4([4]byte{10, 9, 0, number}),
		v6: netip.AddrFrom16([16]byte{0xfd, 0x99, 15: number}),
	}
	if err := e.host.Do(func() (err error) {
		e.dev, err = tun.OpenQueues("mesh0", 1420, queues)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	link := e.link()
	rt := e.host.Netlink()
	for _, a := range []netip.Prefix{netip.PrefixFrom(e.v4, 24), netip.PrefixFrom(e.v6, 64)} {
		n := &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}
		if err := rt.AddrAdd(link, &netlink.Addr{IPNet: n, Flags: syscall.IFA_F_NODAD}); err != nil {
			t.Fatal(err)
		}
	}
	if err := rt.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *end) link() netlink.Link {
	e.t.Helper()
	l, err := e.host.Netlink().LinkByName("mesh0")
	if err != nil {
		e.t.Fatal(err)
	}
	return l
}

// wire carries packets from the host to the other end, one by one, until the device is closed.
func (e *end) wire(to *end) {
	for _, q := range tun.Supers(e.dev) {
		e.wires.Go(func() {
			s := tun.NewSuper()
			room := make([][]byte, 128)
			for i := range room {
				room[i] = make([]byte, 65536)
			}
			for {
				ok, err := q.ReadSuper(s, true)
				if errors.Is(err, os.ErrClosed) {
					return
				}
				if err != nil || !ok {
					e.t.Errorf("read: %t, %v", ok, err)
					return
				}
				e.most.Store(max(e.most.Load(), int64(s.Count())))
				var out [][]byte
				for p := s.Next(); p != nil; p = s.Next() {
					out = append(out, room[len(out)][:16+copy(room[len(out)][16:], p)])
				}
				if _, err := to.dev.Write(out, 16); err != nil && !errors.Is(err, os.ErrClosed) {
					e.t.Errorf("write: %v", err)
				}
			}
		})
	}
}

// words drains the events, and signals each event of a kind.
func (e *end) words(kind tun.Event) <-chan struct{} {
	got := make(chan struct{}, 100)
	e.wires.Go(func() {
		for ev := range e.dev.Events() {
			if ev&kind != 0 {
				got <- struct{}{}
			}
		}
	})
	return got
}

func twoEnds(t *testing.T, queues int) (a, b *end) {
	t.Helper()
	labtest.TUN(t)
	w := labtest.World(t)
	a, b = newEnd(t, w, 1, queues), newEnd(t, w, 2, queues)
	t.Cleanup(func() {
		for _, e := range []*end{a, b} {
			if err := e.dev.Close(); err != nil {
				t.Error(err)
			}
		}
		a.wires.Wait()
		b.wires.Wait()
	})
	return a, b
}

// TestNative moves real TCP and UDP data through two real devices: what they split and join must be what the kernels sent.
func TestNative(t *testing.T) {
	for _, queues := range []int{1, 3} {
		t.Run(fmt.Sprintf("queues %d", queues), func(t *testing.T) { native(t, queues) })
	}
}

func native(t *testing.T, queues int) {
	a, b := twoEnds(t, queues)
	if n := len(tun.Supers(a.dev)); n != queues {
		t.Fatalf("%d queues", n)
	}
	<-a.words(tun.EventMTUUpdate)
	b.words(0)
	a.wire(b)
	b.wire(a)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, c := range []struct {
		name string
		to   netip.Addr
	}{{"IPv4", b.v4}, {"IPv6", b.v6}} {
		if err := transfer(ctx, a, b, netip.AddrPortFrom(c.to, 80)); err != nil {
			t.Errorf("TCP over %s: %v", c.name, err)
		}
		if err := datagrams(ctx, a, b, netip.AddrPortFrom(c.to, 80)); err != nil {
			t.Errorf("UDP over %s: %v", c.name, err)
		}
	}
	if n := a.most.Load(); n < 10 || n > 64 {
		t.Errorf("the largest super-packet had %d packets", n)
	}
}

// transfer sends random bytes over TCP, and back again.
func transfer(ctx context.Context, from, to *end, addr netip.AddrPort) error {
	l, err := to.host.Listen(addr)
	if err != nil {
		return err
	}
	var others sync.WaitGroup
	defer others.Wait()
	defer l.Close()
	others.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	})
	c, err := from.host.Dial(ctx, "tcp", addr.String())
	if err != nil {
		return err
	}
	defer c.Close()
	want := make([]byte, 8<<20)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	others.Go(func() { _, _ = c.Write(want) })
	got := make([]byte, len(want))
	end, _ := ctx.Deadline()
	c.SetDeadline(end)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("other bytes came back")
	}
	return nil
}

// datagrams sends datagrams of different sizes, one of them fragmented, and waits for each.
func datagrams(ctx context.Context, from, to *end, addr netip.AddrPort) error {
	u, err := to.host.ListenUDP(addr)
	if err != nil {
		return err
	}
	defer u.Close()
	c, err := from.host.Dial(ctx, "udp", addr.String())
	if err != nil {
		return err
	}
	defer c.Close()
	end, _ := ctx.Deadline()
	u.SetReadDeadline(end)
	buf := make([]byte, 65536)
	for i := range 200 {
		want := bytes.Repeat([]byte{byte(i)}, i*13%1372)
		if i == 100 {
			want = bytes.Repeat([]byte{7}, 5000)
		}
		if _, err := c.Write(want); err != nil {
			return err
		}
		n, err := u.Read(buf)
		if err != nil {
			return fmt.Errorf("datagram %d: %w", i, err)
		}
		if !bytes.Equal(buf[:n], want) {
			return fmt.Errorf("datagram %d of %d bytes came as %d others", i, len(want), n)
		}
	}
	return nil
}

// TestNativeLink checks that interface changes are reported, and that a super-packet is no longer than one call can send.
func TestNativeLink(t *testing.T) {
	a, b := twoEnds(t, 2)
	b.words(0)
	changed := a.words(tun.EventMTUUpdate)
	<-changed
	if mtu, err := a.dev.MTU(); mtu != 1420 || err != nil {
		t.Errorf("MTU %d, %v", mtu, err)
	}
	if name, err := a.dev.Name(); name != "mesh0" || err != nil {
		t.Errorf("name %q, %v", name, err)
	}
	if err := a.host.Netlink().LinkSetMTU(a.link(), 1280); err != nil {
		t.Fatal(err)
	}
	<-changed
	if mtu, err := a.dev.MTU(); mtu != 1280 || err != nil {
		t.Errorf("MTU %d, %v", mtu, err)
	}
	if most := a.link().Attrs().GSOMaxSize; most < 50000 || most > 62000 {
		t.Errorf("super-packets of %d bytes", most)
	}
	if err := a.host.Do(func() error {
		d, err := tun.Open("mesh0", 1420)
		if err == nil {
			d.Close()
		}
		return err
	}); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("opened twice: %v", err)
	}
	done := make(chan error)
	go func() {
		bufs, sizes := buffers(1)
		for {
			if _, err := a.dev.Read(bufs, sizes, 16); err != nil {
				done <- err
				return
			}
		}
	}()
	if err := a.host.Netlink().LinkDel(a.link()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("read a device that is gone: %v", err)
	}
}

// TestNativeOneByOne uses the device like an engine that reads packets one by one.
func TestNativeOneByOne(t *testing.T) {
	a, b := twoEnds(t, 2)
	for _, x := range [][2]*end{{a, b}, {b, a}} {
		from, to := x[0], x[1]
		from.words(0)
		from.wires.Go(func() {
			bufs, sizes := buffers(from.dev.BatchSize())
			for {
				n, err := from.dev.Read(bufs, sizes, 16)
				if errors.Is(err, os.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				var out [][]byte
				for i := range n {
					out = append(out, bufs[i][:16+sizes[i]])
				}
				if _, err := to.dev.Write(out, 16); err != nil && !errors.Is(err, os.ErrClosed) {
					t.Error(err)
				}
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := transfer(ctx, a, b, netip.AddrPortFrom(b.v4, 80)); err != nil {
		t.Error(err)
	}
	if _, err := a.dev.Write([][]byte{make([]byte, 60)}, 4); err == nil {
		t.Error("written without room for a virtio header")
	}
}
