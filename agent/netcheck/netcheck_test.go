package netcheck_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/agent/netcheck"
	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/stun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// world is an Internet with two relays, as far as a check can tell: STUN and a TCP port.
type world struct {
	t       *testing.T
	net     *sim.Internet
	targets []netcheck.Target
	ends    []func()
}

func (w *world) relay(name string, latency time.Duration, addrs ...netip.Addr) {
	w.t.Helper()
	nat := w.net.NAT("dc "+name, sim.NATConfig{Open: true, Uplink: sim.Link{Latency: latency}})
	h := nat.Host(name, addrs...)
	c, err := h.ListenUDP(3478)
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := h.Listen("tcp", ":443")
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		s, b := stun.NewServer(), make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if answer, ok := s.Answer(nil, b[:n], time.Now(), from.(*net.UDPAddr).AddrPort()); ok {
				_, _ = c.WriteTo(answer, from) // an error results in silence
			}
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	target := netcheck.Target{Name: name, Region: "eu", URLs: []string{"https://" + name}}
	for _, a := range addrs {
		target.UDP = append(target.UDP, netip.AddrPortFrom(a, 3478))
	}
	w.targets = append(w.targets, target)
	w.ends = append(w.ends, func() { c.Close(); l.Close(); <-done; <-done })
}

// check runs a check from a host.
func (w *world) check(h *sim.Host, router *portmap.State) netcheck.Report {
	return netcheck.Run(w.t.Context(), netcheck.Config{
		Targets: w.targets, Local: h.Addrs(), Router: router, Dial: h.DialContext,
		Listen: func(_ context.Context, network string) (net.PacketConn, error) {
			for _, a := range h.Addrs() {
				if a.Is6() == strings.HasSuffix(network, "6") {
					c, err := h.ListenUDP(0)
					if err == nil {
						c.Probe()
					}
					return c, err
				}
			}
			return nil, fmt.Errorf("no %s", network)
		},
	})
}

func with(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: sim.New(1)}
		w.relay("fra", 5*time.Millisecond, addr("198.51.100.1"), addr("2001:db8:1::1"))
		w.relay("nyc", 40*time.Millisecond, addr("198.51.100.2"))
		f(t, w)
		for _, end := range w.ends {
			end()
		}
	})
}

func text(r netcheck.Report) string {
	var b strings.Builder
	for _, l := range r.Words() {
		fmt.Fprintf(&b, "%s: %s\n", l.About, l.Text)
	}
	for _, a := range r.Advice() {
		fmt.Fprintf(&b, "! %s\n", a)
	}
	return ports.ReplaceAllString(b.String(), "$1:PORT")
}

// ports matches the ports that depend on the order of goroutines.
var ports = regexp.MustCompile(`([\d\]]):(10|491)\d\d\b`)

var opened = &portmap.State{Protocol: portmap.PCP, External: netip.MustParseAddrPort("203.0.113.1:41641")}

func TestReports(t *testing.T) {
	lan := addr("192.168.1.2")
	for _, c := range []struct {
		name   string
		cfg    sim.NATConfig
		addrs  []netip.Addr
		router *portmap.State
		kind   netcheck.Kind
		want   string
	}{
		{"easy", sim.NATConfig{Ports: sim.Sequential}, []netip.Addr{lan}, &portmap.State{Problem: "the router refuses port mappings"}, netcheck.Easy, `UDP: gets out
IPv4: 203.0.113.1:PORT, behind an easy NAT: same external port for all peers
IPv6: this machine has no global address
Port mapping: none: the router refuses port mappings
MTU: 1500 bytes to relay fra
Relays: fra (eu)  UDP 20.0 ms  TCP 20.0 ms  MTU 1500
: nyc (eu)  UDP 90.0 ms  TCP 90.0 ms  MTU 1500
`},
		{"hard", sim.NATConfig{Ports: sim.Sequential, Mapping: sim.AddressDependent, Hairpin: true, Uplink: sim.Link{MTU: 1320, NoICMP: true}}, []netip.Addr{lan, addr("2001:db8:9::2")}, nil, netcheck.Hard, `UDP: gets out
IPv4: 203.0.113.1:PORT, 203.0.113.1:PORT, behind a hard NAT: different external port for each peer; hairpinning works
IPv6: [2001:db8:9::2]:PORT, no NAT
Port mapping: not looked at
MTU: 1300 bytes to relay fra
Relays: fra (eu)  UDP 20.0 ms  TCP 20.0 ms  MTU 1300
: nyc (eu)  UDP 90.0 ms  TCP 90.0 ms  MTU 1300
! Behind this NAT, only peers with easy NATs or none can be reached directly. Turn on UPnP, NAT-PMP or PCP in the router, or forward a UDP port to this machine (redoubt agent --listen-port).
! Packets of more than 1300 bytes do not get through: something on the path, such as another tunnel, has a smaller MTU.
`},
		{"mapped", sim.NATConfig{Ports: sim.Sequential, Mapping: sim.AddressDependent}, []netip.Addr{lan}, opened, netcheck.Hard, ""},
		{"blocked", sim.NATConfig{BlockUDP: true}, []netip.Addr{lan}, nil, netcheck.Blocked, `UDP: blocked: no relay answers
IPv4: no answer
IPv6: this machine has no global address
Port mapping: not looked at
MTU: unknown
Relays: fra (eu)  UDP no answer  TCP 20.0 ms
: nyc (eu)  UDP no answer  TCP 90.0 ms
! Allow outbound UDP: all traffic goes through relays by TCP now, which is slow. UDP port 3478 to the relays helps; all UDP helps more.
`},
		{"shut", sim.NATConfig{BlockUDP: true, TCPPorts: []uint16{80}}, []netip.Addr{lan}, nil, netcheck.Blocked, ""},
		{"open", sim.NATConfig{Open: true}, []netip.Addr{addr("192.0.2.7")}, nil, netcheck.Open, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			with(t, func(t *testing.T, w *world) {
				h := w.net.NAT("home", c.cfg, addr("203.0.113.1")).Host("laptop", c.addrs...)
				r := w.check(h, c.router)
				if r.Kind != c.kind {
					t.Errorf("kind %s, want %s", r.Kind, c.kind)
				}
				if got := text(r); c.want != "" && got != c.want {
					t.Error(cmp.Diff(c.want, got))
				}
				switch advice := strings.Join(r.Advice(), "\n"); c.name {
				case "mapped", "open":
					if advice != "" {
						t.Errorf("advice: %s", advice)
					}
				case "shut":
					if !strings.HasPrefix(advice, "No relay answers") {
						t.Errorf("advice: %s", advice)
					}
				}
			})
		})
	}
}

// TestCarrier checks that behind a carrier's NAT the router's port is not enough.
func TestCarrier(t *testing.T) {
	with(t, func(t *testing.T, w *world) {
		home := w.net.NAT("carrier", sim.NATConfig{}, addr("203.0.113.1")).NAT("home", sim.NATConfig{}, addr("100.64.0.1"))
		r := w.check(home.Host("laptop", addr("192.168.1.2")), &portmap.State{Protocol: portmap.UPnP, External: netip.MustParseAddrPort("100.64.0.1:7")})
		if got := text(r); !strings.Contains(got, "100.64.0.1:7 by UPnP; but there is another NAT") || !strings.Contains(got, "! The provider shares") {
			t.Error(got)
		}
	})
}

func TestNobodyToAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: sim.New(1)}
		r := w.check(w.net.Host("vm", addr("192.0.2.7")), nil)
		if r.Kind != netcheck.Unknown || len(r.Advice()) != 1 || r.Words()[0].Text != "unknown: there is no relay or STUN server to ask" {
			t.Errorf("%+v\n%s", r, text(r))
		}
		w.relay("one", time.Millisecond, addr("198.51.100.1"))
		h := w.net.NAT("home", sim.NATConfig{}, addr("203.0.113.1")).Host("laptop", addr("10.0.0.1"))
		if r := w.check(h, nil); r.Kind != netcheck.Some || !strings.Contains(text(r), "A second relay would") {
			t.Errorf("%+v\n%s", r, text(r))
		}
		w.ends[0]()
	})
}
