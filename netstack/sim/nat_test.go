package sim_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

var (
	natAddr    = addr("203.0.113.1")
	behaviours = []sim.Behaviour{sim.EndpointIndependent, sim.AddressDependent, sim.AddressAndPortDependent}
	policies   = []sim.PortPolicy{sim.Preserve, sim.Sequential, sim.Random}
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// port is a socket with helpers for tests.
type port struct {
	*sim.UDPConn
	t *testing.T
}

func open(t *testing.T, h *sim.Host, number uint16) port {
	t.Helper()
	c, err := h.ListenUDP(number)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return port{c, t}
}

func (p port) send(to netip.AddrPort, msg string) {
	p.t.Helper()
	if _, err := p.WriteTo([]byte(msg), net.UDPAddrFromAddrPort(to)); err != nil {
		p.t.Fatal(err)
	}
}

// recv returns the next datagram within a second and its source; zero values if there is none.
func (p port) recv() (string, netip.AddrPort) {
	p.t.Helper()
	if err := p.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		p.t.Fatal(err)
	}
	b := make([]byte, 65536)
	n, from, err := p.ReadFrom(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "", netip.AddrPort{}
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b[:n]), from.(*net.UDPAddr).AddrPort()
}

// reach sends a datagram and returns the source with which it arrives; invalid if it does not arrive.
func (p port) reach(to port, at string) netip.AddrPort {
	p.t.Helper()
	msg := fmt.Sprint("to ", at)
	p.send(ap(at), msg)
	got, from := to.recv()
	if got != msg && got != "" {
		p.t.Fatalf("got %q, want %q", got, msg)
	}
	return from
}

func in(t *testing.T, f func(t *testing.T)) { t.Helper(); synctest.Test(t, f) }

// Every combination behaves as RFC 4787 says, seen from outside as by STUN.
func TestNATBehaviours(t *testing.T) {
	for _, mapping := range behaviours {
		for _, filtering := range behaviours {
			for _, ports := range policies {
				t.Run(fmt.Sprintf("%s/%s/%s", mapping, filtering, ports), func(t *testing.T) {
					in(t, func(t *testing.T) { behaves(t, sim.NATConfig{Mapping: mapping, Filtering: filtering, Ports: ports}) })
				})
			}
		}
	}
}

func behaves(t *testing.T, cfg sim.NATConfig) {
	n := sim.New(7)
	laptop := open(t, n.NAT("home", cfg, natAddr).Host("laptop", addr("192.168.1.2")), 40000)
	one, two := n.Host("one", addr("198.51.100.1")), n.Host("two", addr("198.51.100.2"))
	one1, one2, two1 := open(t, one, 1), open(t, one, 2), open(t, two, 1)
	seen := laptop.reach(one1, "198.51.100.1:1")
	if seen.Addr() != natAddr || seen != laptop.reach(one1, "198.51.100.1:1") {
		t.Fatalf("seen as %s, and then otherwise", seen)
	}
	if kept := seen.Port() == 40000; kept != (cfg.Ports == sim.Preserve) {
		t.Errorf("outside port %d", seen.Port())
	}
	// Filtering: which remotes may send to the mapping without having been contacted?
	for _, try := range []struct {
		from  port
		needs sim.Behaviour // at most
	}{{one1, sim.AddressAndPortDependent}, {one2, sim.AddressDependent}, {two1, sim.EndpointIndependent}} {
		try.from.send(seen, "unasked")
		if got, _ := laptop.recv(); (got != "") != (cfg.Filtering <= try.needs) {
			t.Errorf("filter for %s: got %q", try.needs, got)
		}
	}
	// Mapping: does another remote see the same address?
	if same := laptop.reach(one2, "198.51.100.1:2") == seen; same != (cfg.Mapping != sim.AddressAndPortDependent) {
		t.Errorf("same mapping for another port: %v", same)
	}
	third := laptop.reach(two1, "198.51.100.2:1")
	if same := third == seen; same != (cfg.Mapping == sim.EndpointIndependent) {
		t.Errorf("same mapping for another address: %v", same)
	}
	two1.send(third, "answer")
	if got, from := laptop.recv(); got != "answer" || from != ap("198.51.100.2:1") {
		t.Errorf("an answer: %q from %s", got, from)
	}
}

func TestNATPorts(t *testing.T) {
	in(t, func(t *testing.T) {
		seen := func(seed uint64, policy sim.PortPolicy) (out []netip.AddrPort) {
			n := sim.New(seed)
			home := n.NAT("home", sim.NATConfig{Ports: policy}, natAddr)
			server := open(t, n.Host("server", addr("198.51.100.1")), 1)
			for i := range 4 {
				h := home.Host(fmt.Sprint("h", i), netip.AddrFrom4([4]byte{192, 168, 1, byte(i + 2)}))
				out = append(out, open(t, h, 40000).reach(server, "198.51.100.1:1"))
			}
			return out
		}
		for policy, first := range map[sim.PortPolicy]uint16{sim.Preserve: 40000, sim.Sequential: 1024} {
			for i, a := range seen(1, policy) {
				if a.Port() != first+uint16(i) {
					t.Errorf("%s: port %d", policy, a.Port())
				}
			}
		}
		random := seen(1, sim.Random)
		if !slices.Equal(random, seen(1, sim.Random)) || slices.Equal(random, seen(2, sim.Random)) {
			t.Error("random ports do not follow from the seed")
		}
		slices.SortFunc(random, netip.AddrPort.Compare)
		if len(slices.Compact(random)) != 4 {
			t.Errorf("a port was given twice: %s", random)
		}
	})
}

// A host keeps the same external address if the NAT has several.
func TestNATPairsAddresses(t *testing.T) {
	in(t, func(t *testing.T) {
		n := sim.New(1)
		home := n.NAT("home", sim.NATConfig{}, natAddr, addr("203.0.113.2"))
		server := open(t, n.Host("server", addr("198.51.100.1")), 1)
		a, b := home.Host("a", addr("10.0.0.1")), home.Host("b", addr("10.0.0.2"))
		for p := range uint16(3) {
			x := open(t, a, 1000+p).reach(server, "198.51.100.1:1")
			y := open(t, b, 1000+p).reach(server, "198.51.100.1:1")
			if x.Addr() != natAddr || y.Addr() == natAddr {
				t.Errorf("seen as %s and %s", x, y)
			}
		}
	})
}

func TestNATTimeout(t *testing.T) {
	for _, refresh := range []bool{false, true} {
		t.Run(fmt.Sprint("inbound refresh ", refresh), func(t *testing.T) {
			in(t, func(t *testing.T) {
				n := sim.New(1)
				cfg := sim.NATConfig{Ports: sim.Sequential, Timeout: 30 * time.Second, InboundRefresh: refresh}
				home := n.NAT("home", cfg, natAddr)
				laptop := open(t, home.Host("laptop", addr("10.0.0.1")), 1)
				server := open(t, n.Host("server", addr("198.51.100.1")), 1)
				seen := laptop.reach(server, "198.51.100.1:1")
				for range 3 {
					time.Sleep(20 * time.Second)
					if laptop.reach(server, "198.51.100.1:1") != seen {
						t.Error("a mapping in use changed")
					}
				}
				for range 3 {
					time.Sleep(20 * time.Second)
					server.send(seen, "hello")
					laptop.recv()
				}
				if _, ok := home.Mapped(ap("10.0.0.1:1"), ap("198.51.100.1:1")); ok != refresh {
					t.Errorf("mapped still: %v", ok)
				}
				if same := laptop.reach(server, "198.51.100.1:1") == seen; same != refresh {
					t.Errorf("the same mapping after packets from outside only: %v", same)
				}
			})
		})
	}
}

func TestNATHairpin(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		in(t, func(t *testing.T) {
			n := sim.New(1)
			home := n.NAT("home", sim.NATConfig{Hairpin: hairpin}, natAddr)
			a, b := open(t, home.Host("a", addr("10.0.0.1")), 11), open(t, home.Host("b", addr("10.0.0.2")), 22)
			server := open(t, n.Host("server", addr("198.51.100.1")), 1)
			begun := time.Now()
			if got := a.reach(b, "10.0.0.2:22"); got != ap("10.0.0.1:11") || time.Since(begun) > time.Millisecond {
				t.Errorf("on the LAN: from %s after %s", got, time.Since(begun))
			}
			out := b.reach(server, "198.51.100.1:1")
			want := netip.AddrPort{}
			if hairpin {
				want = netip.AddrPortFrom(natAddr, 11)
			}
			if got := a.reach(b, out.String()); got != want {
				t.Errorf("hairpin %v: from %q", hairpin, got)
			}
		})
	}
}

// With a NAT behind a NAT, the stricter behaviour of the two applies, and neighbours reach each other only if the carrier
// hairpins.
func TestCarrierNAT(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		in(t, func(t *testing.T) {
			n := sim.New(1)
			cgn := n.NAT("carrier", sim.NATConfig{Filtering: sim.AddressAndPortDependent, Hairpin: hairpin, Ports: sim.Random}, natAddr)
			home := cgn.NAT("home", sim.NATConfig{Filtering: sim.AddressDependent}, addr("100.64.0.1"))
			flat := cgn.NAT("flat", sim.NATConfig{}, addr("100.64.0.2"))
			a, b := open(t, home.Host("a", addr("192.168.1.2")), 11), open(t, flat.Host("b", addr("192.168.1.2")), 22)
			server := n.Host("server", addr("198.51.100.1"))
			one, two := open(t, server, 1), open(t, server, 2)
			seen := a.reach(one, "198.51.100.1:1")
			if seen.Addr() != natAddr {
				t.Errorf("seen as %s", seen)
			}
			if one.reach(a, seen.String()) != ap("198.51.100.1:1") || two.reach(a, seen.String()).IsValid() {
				t.Error("the way back")
			}
			if got := b.reach(a, "100.64.0.1:11"); got.IsValid() {
				t.Errorf("through the home's filter: from %s", got)
			}
			theirs := b.reach(one, "198.51.100.1:1")
			a.send(theirs, "punch")
			b.send(seen, "punch")
			got, _ := a.recv()
			if (got != "") != hairpin {
				t.Errorf("neighbours, hairpin %v: %q", hairpin, got)
			}
		})
	}
}

// Packets are judged on arrival: if two hosts send to each other at the same time, both open their own filter in time.
func TestPunching(t *testing.T) {
	in(t, func(t *testing.T) {
		n := sim.New(1)
		n.SetDefault(sim.Link{Latency: 20 * time.Millisecond})
		hard := sim.NATConfig{Filtering: sim.AddressAndPortDependent}
		a := open(t, n.NAT("left", hard, natAddr).Host("a", addr("10.0.0.1")), 11)
		b := open(t, n.NAT("right", hard, addr("203.0.113.2")).Host("b", addr("10.0.0.1")), 22)
		a.send(ap("203.0.113.2:22"), "a1")
		time.Sleep(10 * time.Millisecond)
		b.send(ap("203.0.113.1:11"), "b1")
		begun := time.Now()
		if got, from := b.recv(); got != "a1" || from != ap("203.0.113.1:11") || time.Since(begun) != 10*time.Millisecond {
			t.Errorf("b got %q from %s after %s", got, from, time.Since(begun))
		}
		if got, _ := a.recv(); got != "b1" || time.Since(begun) != 20*time.Millisecond {
			t.Errorf("a got %q after %s", got, time.Since(begun))
		}
		// If b had sent 20 ms later, it would have been too late.
		c := open(t, n.NAT("late", hard, addr("203.0.113.3")).Host("c", addr("10.0.0.1")), 33)
		a.send(ap("203.0.113.3:33"), "a2")
		time.Sleep(25 * time.Millisecond)
		c.send(ap("203.0.113.1:11"), "c1")
		if got, _ := c.recv(); got != "" {
			t.Errorf("c got %q", got)
		}
		if got, _ := a.recv(); got != "c1" {
			t.Errorf("a got %q", got)
		}
	})
}

func TestBlocked(t *testing.T) {
	in(t, func(t *testing.T) {
		n := sim.New(1)
		hotel := n.NAT("hotel", sim.NATConfig{BlockUDP: true, TCPPorts: []uint16{443}}, natAddr)
		guest := hotel.Host("guest", addr("10.0.0.1"))
		server := n.Host("server", addr("198.51.100.1"))
		udp := open(t, server, 443)
		if got := open(t, guest, 1).reach(udp, "198.51.100.1:443"); got.IsValid() {
			t.Errorf("UDP from %s", got)
		}
		for _, service := range []string{"443", "80"} {
			l, err := server.Listen("tcp", ":"+service)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			c, err := guest.DialContext(ctx, "tcp", "server:"+service)
			cancel()
			if (err == nil) != (service == "443") {
				t.Errorf("port %s: %v", service, err)
			}
			if err == nil {
				c.Close()
			}
			l.Close()
		}
		hotel.Configure(func(cfg *sim.NATConfig) { cfg.BlockUDP = false })
		if got := open(t, guest, 2).reach(udp, "198.51.100.1:443"); !got.IsValid() {
			t.Error("UDP does not get out after it was allowed")
		}
	})
}

// connected returns a stream from a host to a server.
func connected(t *testing.T, h, server *sim.Host) (near, far net.Conn) {
	t.Helper()
	l, err := server.Listen("tcp", ":443")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = h.DialContext(t.Context(), "tcp", "198.51.100.1:443"); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// passes reports whether a byte gets from one end to the other.
func passes(t *testing.T, from, to net.Conn) bool {
	t.Helper()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := to.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := io.ReadFull(to, make([]byte, 1))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil
}

func TestStreamsThroughNAT(t *testing.T) {
	in(t, func(t *testing.T) {
		n := sim.New(1)
		home := n.NAT("home", sim.NATConfig{Uplink: sim.Link{Latency: 10 * time.Millisecond}}, natAddr)
		a, server := home.Host("a", addr("10.0.0.1")), n.Host("server", addr("198.51.100.1"))
		begun := time.Now()
		near, far := connected(t, a, server)
		if d := time.Since(begun); d != 30*time.Millisecond {
			t.Errorf("connected after %s", d)
		}
		if got := far.RemoteAddr().(*net.TCPAddr).AddrPort(); got.Addr() != natAddr {
			t.Errorf("comes from %s", got)
		}
		if !passes(t, near, far) || !passes(t, far, near) {
			t.Error("nothing passes")
		}
		home.Reboot()
		if passes(t, near, far) || passes(t, far, near) {
			t.Error("it passes a NAT that knows nothing of it")
		}
		near, far = connected(t, a, server)
		home.SetAddrs(addr("203.0.113.9"))
		if passes(t, near, far) {
			t.Error("it passes a NAT with another address")
		}
		_, far = connected(t, a, server)
		if got := far.RemoteAddr().(*net.TCPAddr).AddrPort(); got.Addr() != addr("203.0.113.9") {
			t.Errorf("comes from %s", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := server.DialContext(ctx, "tcp", "203.0.113.9:1"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("into the NAT: %v", err)
		}
	})
}

func TestReboot(t *testing.T) {
	in(t, func(t *testing.T) {
		n := sim.New(1)
		home := n.NAT("home", sim.NATConfig{Ports: sim.Random}, natAddr)
		a := open(t, home.Host("a", addr("10.0.0.1")), 1)
		server := open(t, n.Host("server", addr("198.51.100.1")), 1)
		seen := a.reach(server, "198.51.100.1:1")
		server.send(seen, "on its way")
		home.Reboot()
		if got, _ := a.recv(); got != "" {
			t.Errorf("got %q by a mapping that is gone", got)
		}
		if again := a.reach(server, "198.51.100.1:1"); !again.IsValid() || again == seen {
			t.Errorf("seen as %s, before as %s", again, seen)
		}
		home.SetAddrs(addr("203.0.113.9"))
		if got := a.reach(server, "198.51.100.1:1"); got.Addr() != addr("203.0.113.9") {
			t.Errorf("seen as %s", got)
		}
		server.send(seen, "to the old address")
		if got, _ := a.recv(); got != "" {
			t.Errorf("got %q", got)
		}
	})
}

func TestForward(t *testing.T) {
	in(t, func(t *testing.T) {
		n := sim.New(1)
		home := n.NAT("home", sim.NATConfig{Filtering: sim.AddressAndPortDependent, Mapping: sim.AddressAndPortDependent}, natAddr)
		a, b := open(t, home.Host("a", addr("10.0.0.1")), 7), open(t, home.Host("b", addr("10.0.0.2")), 7)
		server := open(t, n.Host("server", addr("198.51.100.1")), 1)
		out, ok := home.Forward(ap("10.0.0.1:7"), 7000, time.Minute)
		if !ok || out != ap("203.0.113.1:7000") || !server.reach(a, "203.0.113.1:7000").IsValid() {
			t.Errorf("forwarded %s, %v", out, ok)
		}
		if _, ok := home.Forward(ap("10.0.0.2:7"), 7000, time.Minute); ok {
			t.Error("a port for two")
		}
		time.Sleep(50 * time.Second)
		if again, ok := home.Forward(ap("10.0.0.1:7"), 0, time.Minute); !ok || again != out {
			t.Errorf("renewed as %s, %v", again, ok)
		}
		time.Sleep(50 * time.Second)
		if !server.reach(a, "203.0.113.1:7000").IsValid() {
			t.Error("it was renewed")
		}
		time.Sleep(20 * time.Second)
		if server.reach(a, "203.0.113.1:7000").IsValid() {
			t.Error("it is over")
		}
		if out, ok = home.Forward(ap("10.0.0.2:7"), 0, time.Minute); !ok || !server.reach(b, out.String()).IsValid() {
			t.Errorf("any port: %s, %v", out, ok)
		}
		if _, ok = home.Forward(ap("10.0.0.2:7"), 0, 0); !ok || server.reach(b, out.String()).IsValid() {
			t.Error("it was ended")
		}
	})
}

// Global addresses are not translated; the router admits solicited packets, or everything if it is open.
func TestRoutedAddresses(t *testing.T) {
	for _, isOpen := range []bool{false, true} {
		in(t, func(t *testing.T) {
			n := sim.New(1)
			isp := n.NAT("carrier", sim.NATConfig{Mapping: sim.AddressAndPortDependent, Open: true}, natAddr)
			home := isp.NAT("home", sim.NATConfig{Filtering: sim.AddressDependent, Open: isOpen}, addr("100.64.0.1"))
			a := home.Host("a", addr("192.168.1.2"), addr("2001:db8:a::2"))
			server := n.Host("server", addr("198.51.100.1"), addr("2001:db8::1"))
			x, y := open(t, a, 7), open(t, server, 1)
			if got := y.reach(x, "[2001:db8:a::2]:7"); got.IsValid() != isOpen {
				t.Errorf("unasked, open %v: from %s", isOpen, got)
			}
			if got := x.reach(y, "[2001:db8::1]:1"); got != ap("[2001:db8:a::2]:7") {
				t.Errorf("seen as %s", got)
			}
			if got := y.reach(x, "[2001:db8:a::2]:7"); got != ap("[2001:db8::1]:1") {
				t.Errorf("answered by %s", got)
			}
			if got := x.reach(y, "198.51.100.1:1"); got.Addr() != natAddr {
				t.Errorf("IPv4: seen as %s", got)
			}
			l, err := a.Listen("tcp", ":1")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			c, err := server.DialContext(ctx, "tcp", "[2001:db8:a::2]:1")
			if (err == nil) != isOpen {
				t.Errorf("stream, open %v: %v", isOpen, err)
			}
			if err == nil {
				c.Close()
			}
			a.SetAddrs(addr("192.168.1.2"))
			if y.reach(x, "[2001:db8:a::2]:7").IsValid() {
				t.Error("reached by an address that it has no more")
			}
			// Without an external address of the family nothing gets out.
			a.SetAddrs(addr("fd00::2"))
			if x.reach(y, "[2001:db8::1]:1").IsValid() {
				t.Error("a private IPv6 address got out")
			}
		})
	}
}

func TestMovingBetweenNetworks(t *testing.T) {
	in(t, func(t *testing.T) {
		n := sim.New(1)
		home := n.NAT("home", sim.NATConfig{}, natAddr)
		cafe := n.NAT("cafe", sim.NATConfig{}, addr("203.0.113.2"))
		laptop, server := home.Host("laptop", addr("192.168.1.2")), n.Host("server", addr("198.51.100.1"))
		x, y := open(t, laptop, 7), open(t, server, 1)
		near, far := connected(t, laptop, server)
		for _, step := range []struct {
			to   *sim.NAT
			addr string
			seen string
		}{{home, "192.168.1.2", "203.0.113.1"}, {cafe, "192.168.1.2", "203.0.113.2"}, {nil, "192.0.2.1", "192.0.2.1"}} {
			laptop.MoveTo(step.to, addr(step.addr))
			if got := x.reach(y, "198.51.100.1:1"); got.Addr() != addr(step.seen) {
				t.Errorf("seen as %s, want %s", got, step.seen)
			}
			if passes(t, near, far) != (step.to == home) {
				t.Errorf("at %s: the stream from home", step.seen)
			}
		}
	})
}

func TestSleep(t *testing.T) {
	in(t, func(t *testing.T) {
		n := sim.New(1)
		home := n.NAT("home", sim.NATConfig{}, natAddr)
		laptop, server := home.Host("laptop", addr("10.0.0.1")), n.Host("server", addr("198.51.100.1"))
		x, y := open(t, laptop, 7), open(t, server, 1)
		near, far := connected(t, laptop, server)
		seen := x.reach(y, "198.51.100.1:1")
		laptop.Sleep()
		if y.reach(x, seen.String()).IsValid() || x.reach(y, "198.51.100.1:1").IsValid() || passes(t, far, near) {
			t.Error("it sleeps")
		}
		laptop.Wake()
		if got, _ := x.recv(); got != "" {
			t.Errorf("kept %q for it", got)
		}
		if !y.reach(x, seen.String()).IsValid() || !x.reach(y, "198.51.100.1:1").IsValid() || !passes(t, far, near) {
			t.Error("it is awake")
		}
	})
}

func TestMTU(t *testing.T) {
	for _, hole := range []bool{false, true} {
		in(t, func(t *testing.T) {
			n := sim.New(1)
			home := n.NAT("home", sim.NATConfig{Uplink: sim.Link{MTU: 1400, NoICMP: hole}}, natAddr)
			a, b := home.Host("a", addr("10.0.0.1")), n.Host("b", addr("192.0.2.2"))
			dst, x, probe := open(t, b, 1), open(t, a, 0), open(t, a, 0)
			probe.Probe()
			fits := func(from port, size int) bool {
				from.send(ap("192.0.2.2:1"), string(make([]byte, size)))
				got, _ := dst.recv()
				return len(got) == size
			}
			if !fits(x, 1372) || fits(x, 1373) {
				t.Errorf("hole %v: the largest is not 1400 with its headers", hole)
			}
			if fits(x, 1373) == hole {
				t.Errorf("hole %v: the host was told, or not", hole)
			}
			if fits(probe, 1373) || fits(probe, 1400) || !fits(probe, 1372) {
				t.Errorf("hole %v: probes are never in fragments", hole)
			}
			home.Configure(func(cfg *sim.NATConfig) { cfg.Uplink.NoFragments = true })
			if fits(x, 1373) || !fits(x, 1372) {
				t.Errorf("hole %v: fragments are lost", hole)
			}
		})
	}
}

func TestReorderAndDuplicate(t *testing.T) {
	in(t, func(t *testing.T) {
		n := sim.New(1)
		a := open(t, n.NAT("home", sim.NATConfig{}, natAddr).Host("a", addr("10.0.0.1")), 1)
		b := open(t, n.Host("b", addr("192.0.2.2")), 1)
		seen := a.reach(b, "192.0.2.2:1")
		n.SetDefault(sim.Link{Latency: 10 * time.Millisecond, Reorder: 0.3, Duplicate: 0.2})
		for _, way := range []struct {
			from, to port
			at       netip.AddrPort
		}{{a, b, ap("192.0.2.2:1")}, {b, a, seen}} {
			for i := range 100 {
				way.from.send(way.at, string(rune('0'+i)))
			}
			overtaken, twice := 0, 0
			last := map[string]bool{}
			for before, got := "", "x"; got != ""; before = got {
				if got, _ = way.to.recv(); got != "" && got < before {
					overtaken++
				}
				if last[got] {
					twice++
				}
				last[got] = true
			}
			if overtaken == 0 || twice < 5 || twice > 50 || len(last) != 101 {
				t.Errorf("%d different, %d overtaken, %d twice", len(last), overtaken, twice)
			}
		}
	})
}
