package wg_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
	"github.com/redoubt-mesh/redoubt/netstack/wg/wgtest"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// flood sends initiations of strangers, each with a valid mac1, until stop is closed.
func flood(t *testing.T, from *sim.Host, to net.Addr, target key.NodePublic, each time.Duration, stop chan struct{}) {
	t.Helper()
	r, err := noise.NewRemote(target.Array())
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := noise.NewLocal([32]byte{8: 99})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := noise.NewPair(stranger, r)
	if err != nil {
		t.Fatal(err)
	}
	var msg [noise.InitiationSize]byte
	if _, err := pair.Initiate(&msg, [32]byte{8: 5}, 0, noise.Stamp(time.Now())); err != nil {
		t.Fatal(err)
	}
	sock, err := from.ListenUDP(0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer sock.Close()
		var jar noise.Jar
		for n := uint32(0); ; n++ {
			binary.LittleEndian.PutUint32(msg[4:], n)
			jar.Sign(time.Now(), r, msg[:])
			if _, err := sock.WriteTo(msg[:], to); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(each):
			}
		}
	}()
}

// TestFlood checks that a node that is flooded with handshakes keeps its session, and that another can begin one by proving its
// address with a cookie.
func TestFlood(t *testing.T) {
	for name, second := range map[string]wgtest.Make{"inline": inline, "reference": reference} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := sim.New(1)
				a := wgtest.NewNode(t, inline, n.Host("a", netip.MustParseAddr("192.0.2.1")), 1)
				b := wgtest.NewNode(t, second, n.Host("b", netip.MustParseAddr("192.0.2.2")), 2)
				c := wgtest.NewNode(t, second, n.Host("c", netip.MustParseAddr("192.0.2.3")), 3)
				for _, x := range [][2]*wgtest.Node{{a, b}, {b, a}, {a, c}, {c, a}} {
					if err := x[0].Engine.SetPeer(x[1].Config()); err != nil {
						t.Fatal(err)
					}
				}
				if err := b.Ping(a.Addrs.V4); err != nil {
					t.Fatal(err)
				}
				stop := make(chan struct{})
				to := net.UDPAddrFromAddrPort(a.Config().Endpoints[0])
				flood(t, n.Host("stranger", netip.MustParseAddr("203.0.113.66")), to, a.Key.Public(), 2*time.Millisecond, stop)
				time.Sleep(2 * time.Second)
				if err := c.Ping(a.Addrs.V4); err == nil {
					t.Error("a handshake passed without a cookie: there is no load")
				}
				time.Sleep(4 * time.Second) // the second attempt has a cookie
				for range 10 {
					for _, x := range []*wgtest.Node{b, c} {
						if err := x.Ping(a.Addrs.V4); err != nil {
							t.Fatalf("node %d: %v", x.ID, err)
						}
					}
				}
				close(stop)
				synctest.Wait()
				for _, x := range []*wgtest.Node{a, b, c} {
					if err := x.Engine.Close(); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
	runtime.GC()
}
