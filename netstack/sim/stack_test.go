package sim_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
)

// cable connects two hosts behind TUNs, and drops every nth packet; 0 drops none.
func cable(t *testing.T, nth int, f func(t *testing.T, a, b *sim.Stack, aTUN *sim.TUN)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		x, y := sim.NewTUN("x", 1420), sim.NewTUN("y", 1420)
		a := sim.NewStack(x, addr("100.64.0.1"), addr("fd00:1::1"))
		b := sim.NewStack(y, addr("100.64.0.2"), addr("fd00:1::2"))
		var pumps sync.WaitGroup
		carry := func(from, to *sim.TUN) {
			bufs, sizes := [][]byte{make([]byte, 2048)}, make([]int, 1)
			for count := 1; ; count++ {
				if _, err := from.Read(bufs, sizes, 0); err != nil {
					return
				}
				if nth > 0 && count%nth == 0 {
					continue
				}
				if _, err := to.Write([][]byte{bufs[0][:sizes[0]]}, 0); err != nil {
					return
				}
			}
		}
		pumps.Go(func() { carry(x, y) })
		pumps.Go(func() { carry(y, x) })
		f(t, a, b, x)
		x.Close()
		y.Close()
		pumps.Wait()
	})
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

var bothFamilies = []netip.Addr{addr("100.64.0.2"), addr("fd00:1::2")}

func TestStack(t *testing.T) {
	cable(t, 0, func(t *testing.T, a, b *sim.Stack, _ *sim.TUN) {
		b.Listen(7)
		for _, to := range bothFamilies {
			if _, err := a.Ping(within(t, time.Second), to); err != nil {
				t.Error(err)
			}
			got, err := a.Exchange(within(t, time.Second), netip.AddrPortFrom(to, 7), []byte("hello"))
			if err != nil || string(got) != "hello" {
				t.Errorf("got %q, %v", got, err)
			}
			if _, err := a.DialTCP(within(t, time.Second), netip.AddrPortFrom(to, 8)); !errors.Is(err, sim.ErrReset) {
				t.Errorf("a closed port: %v", err)
			}
			c, err := a.DialTCP(within(t, time.Second), netip.AddrPortFrom(to, 7))
			if err != nil {
				t.Fatal(err)
			}
			data := bytes.Repeat([]byte("0123456789"), 500)
			if got, err := c.Echo(within(t, time.Second), data); err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			other := b.Accepted()
			if len(other) != 1 {
				t.Fatalf("%d connections at the other end", len(other))
			}
			c.Close()
			<-other[0].Ended()
			if !errors.Is(other[0].Err(), io.EOF) || len(b.Accepted()) != 0 {
				t.Errorf("after closing: %v", other[0].Err())
			}
		}
		if _, err := a.Ping(within(t, time.Second), addr("fd00:1::2").WithZone("")); err != nil {
			t.Error(err)
		}
		if _, bad := a.Received(); bad != 0 {
			t.Errorf("%d bad packets", bad)
		}
		a.SetAddrs()
		if _, err := a.Ping(within(t, time.Second), bothFamilies[0]); err == nil {
			t.Error("a ping without an address")
		}
	})
}

func TestStackOverLossyCable(t *testing.T) {
	cable(t, 4, func(t *testing.T, a, b *sim.Stack, _ *sim.TUN) {
		b.Listen(7)
		c, err := a.DialTCP(within(t, time.Minute), netip.AddrPortFrom(bothFamilies[0], 7))
		if err != nil {
			t.Fatal(err)
		}
		for n := range 50 {
			data := bytes.Repeat([]byte{byte(n)}, 100+n*50)
			if got, err := c.Echo(within(t, time.Minute), data); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("got %d bytes of %d, %v", len(got), len(data), err)
			}
		}
	})
}

func TestOnlyExactResetsCount(t *testing.T) {
	cable(t, 0, func(t *testing.T, a, b *sim.Stack, aTUN *sim.TUN) {
		b.Listen(7)
		var last sim.Packet
		a.Watch(func(p sim.Packet) { last = p })
		c, err := a.DialTCP(within(t, time.Second), netip.AddrPortFrom(bothFamilies[0], 7))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Echo(within(t, time.Second), []byte("x")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		next := last.Seq + uint32(len(last.Payload))
		reset := func(seq uint32) {
			p := sim.TCP(last.Src, last.Dst, sim.RST, seq, 0, nil).Bytes()
			if _, err := aTUN.Write([][]byte{p}, 0); err != nil {
				t.Fatal(err)
			}
		}
		reset(next + 1)
		reset(next - 1)
		if err := c.Err(); err != nil {
			t.Fatalf("an inexact reset: %v", err)
		}
		reset(next)
		if err := c.Err(); !errors.Is(err, sim.ErrReset) {
			t.Errorf("an exact reset: %v", err)
		}
		if _, err := c.Echo(within(t, time.Second), []byte("x")); !errors.Is(err, sim.ErrReset) {
			t.Errorf("after it: %v", err)
		}
	})
}

// samples returns packets of every kind, in both families.
func samples() []sim.Packet {
	var out []sim.Packet
	for _, x := range [][2]string{{"100.64.0.1", "100.64.0.2"}, {"fd00:1::1", "fd00:1::2"}} {
		src, dst := netip.AddrPortFrom(addr(x[0]), 1234), netip.AddrPortFrom(addr(x[1]), 443)
		unreachable := sim.Echo(src.Addr(), dst.Addr(), 0, 0, []byte("quote"))
		unreachable.Type, unreachable.Code = sim.Unreachable, sim.Prohibited
		out = append(out,
			sim.Echo(src.Addr(), dst.Addr(), 7, 9, []byte("odd")), unreachable,
			sim.UDP(src, dst, []byte("data")), sim.UDP(src, dst, nil),
			sim.TCP(src, dst, sim.SYN, 1, 0, nil), sim.TCP(src, dst, sim.ACK|sim.PSH, 1<<31, 5, []byte("data!")))
	}
	return out
}

func TestPackets(t *testing.T) {
	for _, p := range samples() {
		b := p.Bytes()
		got, err := sim.Parse(b)
		if err != nil || !bytes.Equal(got.Bytes(), b) || got.Src != p.Src || got.Type != p.Type || got.Flags != p.Flags {
			t.Errorf("%+v became %+v, %v", p, got, err)
		}
		// The filter's own parser agrees.
		var q packet.Packet
		if fault := packet.Parse(b, &q); fault != packet.OK || q.Proto != p.Proto || q.Src.Netip() != p.Src.Addr() {
			t.Errorf("%+v: the filter says %v", p, fault)
		}
		for i := range b {
			if i < 12 && b[0]>>4 == 6 {
				continue // the IPv6 header has no checksum of its own
			}
			spoilt := bytes.Clone(b)
			spoilt[i] ^= 0x55
			if r, err := sim.Parse(spoilt); err == nil && known(r.Proto) && known(p.Proto) {
				t.Errorf("%+v with byte %d spoilt is %+v", p, i, r)
			}
		}
	}
}

func known(protocol uint8) bool {
	return protocol == proto.ProtoTCP || protocol == proto.ProtoUDP || protocol == proto.ProtoICMP || protocol == proto.ProtoICMPv6
}

func FuzzParse(f *testing.F) {
	for _, p := range samples() {
		f.Add(p.Bytes())
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		if p, err := sim.Parse(b); err == nil && len(b) < 1<<15 {
			_ = p.Bytes()
		}
	})
}
