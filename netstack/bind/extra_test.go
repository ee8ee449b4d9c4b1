package bind_test

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
)

// idle is a Watcher that does nothing.
type idle struct{}

func (idle) Wanted(proto.NodeID, *bind.Course)  {}
func (idle) Heard(proto.NodeID, *bind.Endpoint) {}

// TestExtraSocket checks that packets sent from an extra socket leave from another port, and that their answers reach the engine through
// it, until it is closed.
func TestExtraSocket(t *testing.T) {
	n := sim.New(1)
	n.SetDefault(sim.Link{})
	for _, c := range []struct {
		name   string
		a, b   conn.Bind
		target string
	}{
		{"system", nil, nil, "127.0.0.1"},
		{"simulated", n.Host("a", netip.MustParseAddr("192.0.2.1")).Bind(), n.Host("b", netip.MustParseAddr("192.0.2.2")).Bind(), "192.0.2.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := bind.New(bind.Config{Inner: c.a, Bounds: path.Bounds{Loopback: true}}), bind.New(bind.Config{Inner: c.b})
			a.Serve(&listener{}, nil)
			if err := a.OpenExtra(7); !errors.Is(err, net.ErrClosed) {
				t.Errorf("before the others: %v", err)
			}
			fromA, own, err := a.Open(0)
			if err != nil {
				t.Fatal(err)
			}
			fromB, port, err := b.Open(0)
			if err != nil {
				t.Fatal(err)
			}
			for number := range uint32(3) {
				if err := a.OpenExtra(number + 6); err != nil {
					t.Fatal(err)
				}
			}
			course := a.NewCourse(2, idle{})
			course.SetRoute(path.Route{Main: path.Way{Addr: netip.AddrPortFrom(netip.MustParseAddr(c.target), port), Socket: 7}})
			answered := make(chan *bind.Endpoint, 1)
			var readers sync.WaitGroup
			pump(&readers, b, fromB, func(msg []byte, ep conn.Endpoint) {
				if e := ep.(*bind.Endpoint); e.Addr().Port() == own {
					t.Error("it came from the port of all")
				}
				if err := b.Send([][]byte{msg}, ep); err != nil {
					t.Error(err)
				}
			})
			pump(&readers, a, fromA, func(_ []byte, ep conn.Endpoint) { answered <- ep.(*bind.Endpoint) })
			send(t, a, course, message(4, 100))
			e := <-answered
			if e.Socket() != 7 || e.Addr().Port() != port {
				t.Errorf("answered by %s at socket %d", e.Addr(), e.Socket())
			}
			course.Heard(e)
			if _, heard, _ := course.Counts(); heard != 1 {
				t.Errorf("%d answers by the main way", heard)
			}
			if err := a.ShutExtra(7); err != nil || a.Extras() != 2 {
				t.Errorf("%d sockets are left, %v", a.Extras(), err)
			}
			if err := a.SendFrom(7, []byte("x"), e.Addr()); !errors.Is(err, net.ErrClosed) {
				t.Errorf("sent by a closed socket: %v", err)
			}
			if err := errors.Join(a.Close(), b.Close()); err != nil || a.Extras() != 0 {
				t.Errorf("%d sockets are left, %v", a.Extras(), err)
			}
			readers.Wait()
		})
	}
}

// TestExtraSocketsFragment checks that packets too large for a path that does not say so pass in fragments from extra sockets
// too, whether they were opened before or after that became known.
func TestExtraSocketsFragment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := sim.New(1)
		n.SetDefault(sim.Link{MTU: 1000, NoICMP: true})
		a := bind.New(bind.Config{Inner: n.Host("a", netip.MustParseAddr("192.0.2.1")).Bind()})
		b := bind.New(bind.Config{Inner: n.Host("b", netip.MustParseAddr("192.0.2.2")).Bind()})
		a.Serve(&listener{}, nil)
		fromA, _, err := a.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		fromB, port, err := b.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		came := make(chan struct{}, 9)
		var readers sync.WaitGroup
		pump(&readers, a, fromA, func([]byte, conn.Endpoint) {})
		pump(&readers, b, fromB, func([]byte, conn.Endpoint) { came <- struct{}{} })
		course, to := a.NewCourse(2, idle{}), netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), port)
		passes := func(number uint32) bool {
			course.SetRoute(path.Route{Main: path.Way{Addr: to, Socket: number}})
			send(t, a, course, message(4, 1400))
			select {
			case <-came:
				return true
			case <-time.After(time.Second):
				return false
			}
		}
		if err := a.OpenExtra(1); err != nil {
			t.Fatal(err)
		}
		if passes(0) || passes(1) {
			t.Fatal("the path is not narrow")
		}
		if err := errors.Join(a.Fragment(), a.OpenExtra(2)); err != nil {
			t.Fatal(err)
		}
		for number := range uint32(3) {
			if !passes(number) {
				t.Errorf("from socket %d nothing comes", number)
			}
		}
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			t.Error(err)
		}
		readers.Wait()
	})
}
