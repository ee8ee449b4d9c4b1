package pilot_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

// A host in front of a black hole without ICMP is told how large packets may be, and packets of that size arrive.
func TestHoleBetweenNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, b := w.addNode(w.net.Host("a", addr("192.0.2.1")), 1), w.addNode(w.net.Host("b", addr("198.51.100.1")), 2)
		w.net.SetLink(a.Host, b.Host, sim.Link{Latency: 10 * time.Millisecond, MTU: 1400, NoICMP: true})
		w.meet()
		a.talk(b, 2*time.Second)
		if v := a.view(b); v.MTU != 1340 || v.Fragments || !v.Way.Direct() {
			t.Fatalf("%+v, want an MTU of 1340", v)
		}
		arrived, told := make(chan int, 8), make(chan uint32, 8)
		b.TUN.Handle(func(p []byte) { arrived <- len(p) })
		a.TUN.Handle(func(p []byte) {
			if len(p) >= 48 && p[0]>>4 == 6 && p[6] == 58 && p[40] == 2 {
				told <- binary.BigEndian.Uint32(p[44:])
			}
		})
		big := func(size int) []byte {
			return sim.UDP(netip.AddrPortFrom(a.Addrs.V6, 9), netip.AddrPortFrom(b.Addrs.V6, 9), make([]byte, size-48)).Bytes()
		}
		a.TUN.Send(big(1341))
		if mtu := <-told; mtu != 1340 {
			t.Errorf("told of %d", mtu)
		}
		a.TUN.Send(big(1340))
		if n := <-arrived; n != 1340 {
			t.Errorf("%d bytes arrived", n)
		}
		if s, err := a.Engine.Peer(b.ID); err != nil || s.Drops.Map()["too big"] != 1 {
			t.Errorf("dropped %v, %v", s.Drops.Map(), err)
		}
	})
}
