package scout_test

import (
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/netstack/scout"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/stun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// serve answers STUN requests on a host until the socket is closed.
func serve(t *testing.T, h *sim.Host) (at netip.AddrPort, end func()) {
	t.Helper()
	c, err := h.ListenUDP(3478)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s, b := stun.NewServer(), make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if answer, ok := s.Answer(nil, b[:n], time.Now(), from.(*net.UDPAddr).AddrPort()); ok {
				_, _ = c.WriteTo(answer, from) // an error means silence
			}
		}
	}()
	return netip.AddrPortFrom(h.Addrs()[0], 3478), func() { c.Close(); <-done }
}

func TestScout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := sim.New(1)
		one, end1 := serve(t, n.Host("one", addr("198.51.100.1")))
		two, end2 := serve(t, n.Host("two", addr("198.51.100.2")))
		defer end1()
		defer end2()
		home := n.NAT("home", sim.NATConfig{Ports: sim.Random, Timeout: time.Hour}, addr("203.0.113.1"))
		c, err := home.Host("laptop", addr("10.0.0.1")).ListenUDP(7)
		if err != nil {
			t.Fatal(err)
		}
		var changes, sent atomic.Int32
		s := scout.New(scout.Config{
			Send: func(msg []byte, to netip.AddrPort) error {
				sent.Add(1)
				_, err := c.WriteTo(msg, net.UDPAddrFromAddrPort(to))
				return err
			},
			Changed: func() { changes.Add(1) },
		})
		read := make(chan struct{})
		go func() {
			defer close(read)
			b := make([]byte, 2048)
			for {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				s.STUN(from.(*net.UDPAddr).AddrPort(), b[:n])
			}
		}()
		settle := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		settle(time.Hour)
		if sent.Load() != 0 || len(s.Report().Outside()) != 0 {
			t.Error("it looks without being told to")
		}
		s.Look(scout.Ground{Servers: []netip.AddrPort{one, two}, Local: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:7")}, Port: 7})
		settle(time.Second)
		r := s.Report()
		if !r.STUN.Done || r.STUN.V4.Mapping != stun.EndpointIndependent || len(r.Outside()) != 1 || changes.Load() == 0 {
			t.Errorf("%+v", r)
		}
		// A rebooted NAT is noticed without being told, and the earlier results stand until then.
		home.Reboot()
		settle(lookAgain)
		again := s.Report()
		if len(again.Outside()) != 1 || slices.Equal(again.Outside(), r.Outside()) {
			t.Errorf("%+v", again)
		}
		before := sent.Load()
		settle(time.Hour)
		if n := sent.Load() - before; n > 4 {
			t.Errorf("%d packets an hour", n)
		}
		s.Close()
		s.Close()
		c.Close()
		<-read
	})
}

const lookAgain = 30 * time.Minute
