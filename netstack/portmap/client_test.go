package portmap_test

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// home is a laptop behind a NAT that lets nobody in, and a stranger outside who tries.
type home struct {
	t        *testing.T
	net      *sim.Internet
	nat      *sim.NAT
	gateway  *gateway
	laptop   *sim.Host
	sock     *sim.UDPConn
	stranger *sim.UDPConn
	client   *portmap.Client

	mu     sync.Mutex
	states []portmap.State
}

func (h *home) changed(s portmap.State) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.states = append(h.states, s)
}

// seen returns all states so far.
func (h *home) seen() []portmap.State {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.states)
}

func at(t *testing.T, speaks []portmap.Protocol, f func(t *testing.T, h *home)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := sim.New(1)
		h := &home{t: t, net: n}
		h.nat = n.NAT("home", sim.NATConfig{Mapping: sim.AddressAndPortDependent, Filtering: sim.AddressAndPortDependent}, outside)
		h.gateway = newGateway(t, h.nat, speaks...)
		h.laptop = h.nat.Host("laptop", laptopAddr)
		var err error
		if h.sock, err = h.laptop.ListenUDP(laptopPort); err != nil {
			t.Fatal(err)
		}
		if h.stranger, err = n.Host("stranger", addr("198.51.100.1")).ListenUDP(0); err != nil {
			t.Fatal(err)
		}
		h.client = portmap.New(portmap.Config{
			Gateway:       func() (netip.Addr, netip.Addr, error) { return gatewayAddr, laptopAddr, nil },
			Listen:        func(netip.Addr) (net.PacketConn, error) { return h.laptop.ListenUDP(0) },
			Announcements: func(netip.Addr) (net.PacketConn, error) { return h.laptop.ListenUDP(5350) },
			Dial:          h.laptop.DialContext,
			Changed:       h.changed,
		})
		h.client.Start(laptopPort)
		h.wait(10 * time.Second)
		f(t, h)
		if err := h.client.Close(); err != nil {
			t.Error(err)
		}
		h.gateway.close()
	})
}

// wait lets some time pass, and then waits until all goroutines are idle.
func (h *home) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// reached reports whether a stranger can reach the laptop at an external address.
func (h *home) reached(to netip.AddrPort) bool {
	h.t.Helper()
	if !to.IsValid() {
		return false
	}
	if _, err := h.stranger.WriteTo([]byte("x"), udp(to)); err != nil {
		h.t.Fatal(err)
	}
	if err := h.sock.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		h.t.Fatal(err)
	}
	_, _, err := h.sock.ReadFrom(make([]byte, 9))
	return err == nil
}

var protocols = []portmap.Protocol{portmap.PCP, portmap.NATPMP, portmap.UPnP}

func TestMapping(t *testing.T) {
	for _, p := range protocols {
		t.Run(string(p), func(t *testing.T) {
			at(t, []portmap.Protocol{p}, func(t *testing.T, h *home) {
				s := h.client.State()
				want := netip.AddrPortFrom(outside, laptopPort)
				if s.Protocol != p || s.External != want || s.Problem != "" || len(h.seen()) != 2 || h.seen()[1] != s {
					t.Fatalf("%+v", h.seen())
				}
				// It lasts for a day, renewed after each half of its lifetime.
				for range 24 {
					h.wait(time.Hour)
					if !h.reached(want) {
						t.Fatalf("not reached: %+v", h.client.State())
					}
				}
				renewals := map[portmap.Protocol]string{portmap.PCP: "PCP", portmap.NATPMP: "NAT-PMP", portmap.UPnP: "AddPortMapping"}
				if n := h.gateway.count(renewals[p]); n < 24 || n > 50 {
					t.Errorf("asked %d times in a day", n)
				}
				if n := len(h.seen()); n > 60 {
					t.Errorf("%d states", n)
				}
				h.client.Close()
				if h.reached(want) {
					t.Error("reached after it was deleted")
				}
			})
		})
	}
}

// The best protocol that the router speaks is chosen; what the router refuses by one it may grant by another.
func TestChoice(t *testing.T) {
	at(t, []portmap.Protocol{portmap.PCP, portmap.UPnP}, func(t *testing.T, h *home) {
		if s := h.client.State(); s.Protocol != portmap.PCP {
			t.Errorf("%+v", s)
		}
		h.gateway.change(func() { h.gateway.result = 2 })
		h.wait(2 * time.Hour)
		if s := h.client.State(); s.External.IsValid() || s.Problem != "the router refuses port mappings" {
			t.Errorf("%+v", s)
		}
		h.gateway.change(func() { h.gateway.result = 0; h.gateway.speaks[portmap.PCP] = false })
		h.wait(2 * time.Hour)
		if s := h.client.State(); s.Protocol != portmap.UPnP || !h.reached(s.External) {
			t.Errorf("%+v", s)
		}
	})
}

func TestNoRouter(t *testing.T) {
	at(t, nil, func(t *testing.T, h *home) {
		if s := h.client.State(); s.External.IsValid() || !strings.Contains(s.Problem, "does not answer") {
			t.Errorf("%+v", s)
		}
		h.gateway.change(func() { h.gateway.speaks[portmap.NATPMP] = true })
		h.wait(2 * time.Hour) // the next search is long after
		if s := h.client.State(); s.Protocol != portmap.NATPMP {
			t.Errorf("%+v", s)
		}
		h.gateway.change(func() { h.gateway.speaks[portmap.NATPMP] = false })
		h.wait(24 * time.Hour)
		if s := h.client.State(); s.External.IsValid() {
			t.Errorf("%+v", s)
		}
	})
}

// A router that lost its mappings is noticed by its announcement, or by its epoch in the next answer.
func TestReboot(t *testing.T) {
	for _, p := range protocols {
		t.Run(string(p), func(t *testing.T) {
			at(t, []portmap.Protocol{p}, func(t *testing.T, h *home) {
				was := h.client.State().External
				h.wait(10 * time.Minute)
				h.gateway.reboot()
				if h.reached(was) {
					t.Error("reached through a router that knows nothing of it")
				}
				told := netip.AddrPortFrom(laptopAddr, 5350)
				switch p {
				case portmap.PCP:
					if _, err := h.gateway.ctl.WriteTo(h.gateway.announcement(), udp(told)); err != nil {
						t.Fatal(err)
					}
				case portmap.NATPMP:
					b := append([]byte{0, 0x80, 0, 0, 0, 0, 0, 1}, outside.AsSlice()...)
					if _, err := h.gateway.ctl.WriteTo(b, udp(told)); err != nil {
						t.Fatal(err)
					}
				case portmap.UPnP:
					h.client.Start(laptopPort) // as the agent does after a network change
				}
				h.wait(time.Second)
				if !h.reached(h.client.State().External) {
					t.Errorf("%+v", h.client.State())
				}
			})
		})
	}
}

func TestUPnPRoutersWithManners(t *testing.T) {
	at(t, nil, func(t *testing.T, h *home) {
		h.gateway.change(func() { h.gateway.speaks[portmap.UPnP] = true; h.gateway.taken = 2; h.gateway.life = 0 })
		h.wait(2 * time.Hour)
		s := h.client.State()
		if s.External.Port() == laptopPort || !s.Until.IsZero() || !h.reached(s.External) {
			t.Errorf("a port that is another's, and no leases: %+v", s)
		}
	})
	at(t, nil, func(t *testing.T, h *home) {
		h.gateway.change(func() { h.gateway.speaks[portmap.UPnP] = true; h.gateway.result = 1 })
		h.wait(2 * time.Hour)
		if s := h.client.State(); s.External.IsValid() || s.Problem != "the router refuses port mappings" {
			t.Errorf("%+v", s)
		}
	})
}

// Each renewal asks for the public address, which the provider may have changed.
func TestUPnPAnotherPublicAddress(t *testing.T) {
	at(t, []portmap.Protocol{portmap.UPnP}, func(t *testing.T, h *home) {
		for i, look := range []func(){
			func() { h.wait(time.Hour) },
			func() { h.client.Start(laptopPort); h.wait(time.Second) }, // as the agent does after a network change
		} {
			want := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(50 + i)}), laptopPort)
			h.gateway.change(func() { h.gateway.public = want.Addr() })
			look()
			if s := h.client.State(); s.External != want {
				t.Errorf("%+v, want %s", s, want)
			}
		}
	})
}

// A router that serves UPnP at another port than before is found again by the next renewal. Until then nobody is told that the
// mapping is gone, since it may live on.
func TestUPnPAnotherPort(t *testing.T) {
	at(t, []portmap.Protocol{portmap.UPnP}, func(t *testing.T, h *home) {
		was, states := h.client.State(), len(h.seen())
		h.gateway.restart("192.168.1.1:5001")
		h.wait(30 * time.Minute)
		s := h.client.State()
		if s.External != was.External || !s.Until.After(was.Until) || !h.reached(s.External) {
			t.Errorf("%+v", h.seen())
		}
		if n := len(h.seen()) - states; n != 1 {
			t.Errorf("%d states: %+v", n, h.seen())
		}
		// The next renewals need no search.
		searches := h.gateway.count("M-SEARCH")
		h.wait(6 * time.Hour)
		if n := h.gateway.count("M-SEARCH"); n != searches || !h.reached(s.External) {
			t.Errorf("%d searches after %d, %+v", n, searches, h.client.State())
		}
	})
}

// A router that refuses renewals is not asked all the time.
func TestUPnPRenewalsRefused(t *testing.T) {
	at(t, []portmap.Protocol{portmap.UPnP}, func(t *testing.T, h *home) {
		h.gateway.change(func() { h.gateway.result = 1 })
		h.wait(59 * time.Minute)
		if s := h.client.State(); !s.External.IsValid() {
			t.Errorf("%+v", s)
		}
		if n := h.gateway.count("AddPortMapping"); n > 20 {
			t.Errorf("asked %d times", n)
		}
		h.wait(2 * time.Minute)
		if s := h.client.State(); s.External.IsValid() || s.Problem != "the router refuses port mappings" {
			t.Errorf("%+v", s)
		}
	})
}

// Answers from other hosts on the LAN, and URLs that point elsewhere, are ignored.
func TestWrongAddress(t *testing.T) {
	at(t, nil, func(t *testing.T, h *home) {
		thief := h.nat.Host("thief", addr("192.168.1.66"))
		thief5351, err := thief.ListenUDP(5351)
		if err != nil {
			t.Fatal(err)
		}
		defer thief5351.Close()
		for _, msg := range [][]byte{
			append([]byte{0, 0x80, 0, 0, 0, 0, 0, 1}, 6, 6, 6, 6),
			[]byte("HTTP/1.1 200 OK\r\nLocation: http://192.168.1.66/\r\n\r\n"),
			[]byte("HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1:5000/\r\n\r\n"),
		} {
			for port := uint16(49152); port < 49160; port++ {
				if _, err := thief5351.WriteTo(msg, udp(netip.AddrPortFrom(laptopAddr, port))); err != nil {
					t.Fatal(err)
				}
			}
		}
		h.wait(10 * time.Second)
		if s := h.client.State(); s.External.IsValid() || h.gateway.count("GetExternalIPAddress") != 0 {
			t.Errorf("%+v", s)
		}
	})
	for _, moved := range []string{"http://192.168.1.66/", "http://localhost/", "https://192.168.1.1/", "//198.51.100.1/x", "http://u:p@192.168.1.1/"} {
		at(t, nil, func(t *testing.T, h *home) {
			h.gateway.change(func() { h.gateway.speaks[portmap.UPnP] = true; h.gateway.moved = moved })
			h.wait(2 * time.Hour)
			if s := h.client.State(); s.External.IsValid() || !strings.Contains(s.Problem, "description") {
				t.Errorf("%s: %+v", moved, s)
			}
		})
	}
}

func TestNowhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last portmap.State
		c := portmap.New(portmap.Config{
			Gateway: func() (a, b netip.Addr, err error) { return a, b, nil },
			Changed: func(s portmap.State) { last = s },
		})
		c.Start(1)
		c.Start(2)
		synctest.Wait()
		if last.Problem != "there is no router" || c.State() != last {
			t.Errorf("%+v", last)
		}
		c.Close()
		c.Close()
	})
}
