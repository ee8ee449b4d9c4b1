package stun_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/stun"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// place is a server with two addresses and two ports on each, as RFC 5780 requires.
type place struct {
	addrs [2]netip.Addr
	socks [2][2]*sim.UDPConn
	ended chan struct{}
}

var serverPorts = [2]uint16{3478, 3479}

func newPlace(t *testing.T, n *sim.Internet, name string, addrs ...netip.Addr) *place {
	t.Helper()
	p := &place{addrs: [2]netip.Addr(addrs), ended: make(chan struct{}, 4)}
	for i, a := range addrs {
		h := n.Host(fmt.Sprint(name, i), a)
		for j, port := range serverPorts {
			c, err := h.ListenUDP(port)
			if err != nil {
				t.Fatal(err)
			}
			p.socks[i][j] = c
			go p.serve(i, j)
		}
	}
	return p
}

func (p *place) at(i, j int) netip.AddrPort { return netip.AddrPortFrom(p.addrs[i], serverPorts[j]) }

func (p *place) serve(i, j int) {
	defer func() { p.ended <- struct{}{} }()
	b := make([]byte, 2048)
	for {
		n, from, err := p.socks[i][j].ReadFrom(b)
		if err != nil {
			return
		}
		m, err := stun.Parse(b[:n])
		if err != nil || m.Kind != stun.Request {
			continue
		}
		x, y := i, j
		if m.Change&stun.ChangeAddr != 0 {
			x = 1 - x
		}
		if m.Change&stun.ChangePort != 0 {
			y = 1 - y
		}
		m.Mapped, m.Origin, m.Other = from.(*net.UDPAddr).AddrPort(), p.at(x, y), p.at(1-i, 1-j)
		_, _ = p.socks[x][y].WriteTo(stun.AppendResponse(nil, m), from) // an error means silence
	}
}

func (p *place) close() {
	for _, socks := range p.socks {
		for _, c := range socks {
			_ = c.Close()
			<-p.ended
		}
	}
}

// probe runs a Prober over a socket, and returns its last report and the destinations of what it sent.
func probe(t *testing.T, c *sim.UDPConn, begin stun.Begin) (last stun.Report, sent []netip.AddrPort) {
	t.Helper()
	p := stun.NewProber([32]byte{1})
	b := make([]byte, 2048)
	effects := p.Step(time.Now(), begin)
	for {
		for _, f := range effects {
			var err error
			switch f := f.(type) {
			case stun.Send:
				sent = append(sent, f.To)
				_, err = c.WriteTo(f.Msg, net.UDPAddrFromAddrPort(f.To))
			case stun.Wake:
				err = c.SetReadDeadline(f.At)
			case stun.Found:
				last = f.Report
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if last.Done {
			return last, sent
		}
		var e stun.Event = stun.Tick{}
		if n, from, err := c.ReadFrom(b); err == nil {
			e = stun.Received{From: from.(*net.UDPAddr).AddrPort(), Msg: b[:n]}
		}
		effects = p.Step(time.Now(), e)
	}
}

type world struct {
	net      *sim.Internet
	one, two *place
	home     *sim.NAT
	laptop   *sim.UDPConn
}

func with(t *testing.T, cfg sim.NATConfig, f func(t *testing.T, w world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := sim.New(3)
		w := world{net: n, one: newPlace(t, n, "one", addr("198.51.100.1"), addr("198.51.100.2"))}
		w.two = newPlace(t, n, "two", addr("198.51.100.3"), addr("198.51.100.4"))
		defer w.one.close()
		defer w.two.close()
		w.home = n.NAT("home", cfg, addr("203.0.113.1"))
		var err error
		if w.laptop, err = w.home.Host("laptop", addr("10.0.0.1")).ListenUDP(41641); err != nil {
			t.Fatal(err)
		}
		defer w.laptop.Close()
		f(t, w)
	})
}

// Every kind of NAT is distinguished from every other.
func TestEveryNAT(t *testing.T) {
	all := []sim.Behaviour{sim.EndpointIndependent, sim.AddressDependent, sim.AddressAndPortDependent}
	names := map[sim.Behaviour]stun.Behaviour{
		sim.EndpointIndependent: stun.EndpointIndependent, sim.AddressDependent: stun.AddressDependent,
		sim.AddressAndPortDependent: stun.AddressAndPortDependent,
	}
	for _, mapping := range all {
		for _, filtering := range all {
			for _, hairpin := range []bool{false, true} {
				cfg := sim.NATConfig{Mapping: mapping, Filtering: filtering, Hairpin: hairpin, Ports: sim.Random}
				t.Run(fmt.Sprintf("%s/%s/%v", mapping, filtering, hairpin), func(t *testing.T) {
					with(t, cfg, func(t *testing.T, w world) {
						servers := []netip.AddrPort{w.one.at(0, 0), w.two.at(0, 0), w.two.at(0, 1)}
						for i, ask := range [][]netip.AddrPort{servers, servers[:1]} {
							got, _ := probe(t, w.laptop, stun.Begin{Servers: ask, Full: true})
							if f := got.V4; f.Mapping != names[mapping] || f.Filtering != names[filtering] {
								t.Errorf("%d servers: mapping %s, filtering %s", len(f.Answers), f.Mapping, f.Filtering)
							}
							if f := got.V4.Hairpin; (f == stun.Yes) != hairpinSeen(cfg) {
								t.Errorf("hairpin %s", f)
							}
							if len(got.V4.Mapped()) == 0 || got.V4.Mapped()[0].Addr() != addr("203.0.113.1") || len(got.V6.Answers) != 0 {
								t.Errorf("mapped %s", got.Mapped())
							}
							if i == 0 {
								w.home.Reboot() // it forgets which remotes it has permitted
							}
						}
					})
				})
			}
		}
	}
}

// hairpinSeen reports whether a packet to ourselves should come back: with a separate mapping towards ourselves, its source is
// that mapping.
func hairpinSeen(cfg sim.NATConfig) bool {
	return cfg.Hairpin && cfg.Filtering == sim.EndpointIndependent || cfg.Hairpin && cfg.Mapping == sim.EndpointIndependent
}

// In the short run, two servers reveal in one round trip whether the mapping depends on the server.
func TestShortRun(t *testing.T) {
	for mapping, want := range map[sim.Behaviour]stun.Behaviour{
		sim.EndpointIndependent: stun.EndpointIndependent, sim.AddressDependent: stun.Dependent, sim.AddressAndPortDependent: stun.Dependent,
	} {
		with(t, sim.NATConfig{Mapping: mapping}, func(t *testing.T, w world) {
			begun := time.Now()
			servers := []netip.AddrPort{w.one.at(0, 0), w.two.at(0, 0)}
			got, sent := probe(t, w.laptop, stun.Begin{Servers: servers})
			if got.V4.Mapping != want || got.V4.Filtering != stun.Untold || time.Since(begun) != 10*time.Millisecond {
				t.Errorf("%+v after %s", got, time.Since(begun))
			}
			if !slices.Equal(sent, servers) {
				t.Errorf("sent to %s", sent)
			}
			if a := got.V4.Answers[0]; a.RTT != 10*time.Millisecond || a.Server != servers[0] {
				t.Errorf("%+v", a)
			}
		})
	}
}

func TestNoNAT(t *testing.T) {
	with(t, sim.NATConfig{}, func(t *testing.T, w world) {
		local := []netip.AddrPort{ap("192.0.2.1:7"), ap("[2001:db8:9::1]:7")}
		h := w.net.Host("vm", local[0].Addr(), local[1].Addr())
		six := newPlace(t, w.net, "six", addr("2001:db8::1"), addr("2001:db8::2"))
		defer six.close()
		c, err := h.ListenUDP(7)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		got, _ := probe(t, c, stun.Begin{Servers: []netip.AddrPort{w.one.at(0, 0), six.at(0, 0)}, Local: local, Full: true})
		for _, f := range []stun.Family{got.V4, got.V6} {
			if f.Mapping != stun.Untranslated || f.Filtering != stun.EndpointIndependent || f.Hairpin != stun.Untested {
				t.Errorf("%+v", f)
			}
		}
		if !slices.Equal(got.Mapped(), local) {
			t.Errorf("mapped %s", got.Mapped())
		}
	})
}

// Losses are compensated for, and silence ends the run.
func TestLossAndSilence(t *testing.T) {
	with(t, sim.NATConfig{}, func(t *testing.T, w world) {
		servers := []netip.AddrPort{w.one.at(0, 0), w.two.at(0, 0)}
		w.net.SetDefault(sim.Link{Latency: 5 * time.Millisecond, Loss: 0.4})
		if got, _ := probe(t, w.laptop, stun.Begin{Servers: servers}); got.V4.Mapping != stun.EndpointIndependent {
			t.Errorf("%+v", got)
		}
		w.home.Configure(func(cfg *sim.NATConfig) { cfg.BlockUDP = true })
		begun := time.Now()
		got, sent := probe(t, w.laptop, stun.Begin{Servers: servers, Full: true})
		if len(got.Mapped()) != 0 || len(got.V4.Answers) != 2 || time.Since(begun) != 3*time.Second || len(sent) != 10 {
			t.Errorf("%+v after %s and %d packets", got, time.Since(begun), len(sent))
		}
		if got, sent := probe(t, w.laptop, stun.Begin{}); !got.Done || len(sent) != 0 {
			t.Errorf("nobody to ask: %+v", got)
		}
	})
}

// Answers without the random ID or from another endpoint are ignored, and so are addresses that cannot be ours.
func TestForgedAnswers(t *testing.T) {
	p := stun.NewProber([32]byte{1})
	server := ap("198.51.100.1:3478")
	var id stun.TxID
	for _, f := range p.Step(now, stun.Begin{Servers: []netip.AddrPort{server}}) {
		if s, ok := f.(stun.Send); ok {
			m, err := stun.Parse(s.Msg)
			if err != nil {
				t.Fatal(err)
			}
			id = m.ID
		}
	}
	answer := func(id stun.TxID, mapped string) []byte {
		return stun.AppendResponse(nil, stun.Message{ID: id, Mapped: ap(mapped)})
	}
	other := id
	other[0]++
	for _, e := range []stun.Received{
		{server, answer(other, "192.0.2.1:1")},
		{ap("198.51.100.1:3479"), answer(id, "192.0.2.1:1")},
		{ap("198.51.100.2:3478"), answer(id, "192.0.2.1:1")},
		{server, answer(id, "192.0.2.1:0")},
		{server, answer(id, "0.0.0.0:1")},
		{server, answer(id, "239.0.0.1:1")},
		{server, answer(id, "[2001:db8::1]:1")},
		{server, stun.AppendRequest(nil, id)},
		{server, nil},
	} {
		if got := p.Step(now, e); got != nil {
			t.Errorf("%x from %s: %+v", e.Msg, e.From, got)
		}
	}
	if got := p.Step(now, stun.Received{server, answer(id, "192.0.2.1:1")}); len(got) != 2 {
		t.Errorf("the true answer: %+v", got)
	}
	if got := p.Step(now, stun.Received{server, answer(id, "192.0.2.2:1")}); got != nil {
		t.Errorf("a second answer: %+v", got)
	}
}

// If a server refuses a request or ignores what it asks for, the result stays unknown.
func TestServerThatCannot(t *testing.T) {
	for _, refuses := range []bool{true, false} {
		with(t, sim.NATConfig{}, func(t *testing.T, w world) {
			h := w.net.Host("plain", addr("198.51.100.9"))
			c, err := h.ListenUDP(3478)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				s, b := stun.NewServer(), make([]byte, 2048)
				for {
					n, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					a := from.(*net.UDPAddr).AddrPort()
					m, _ := stun.Parse(b[:n])
					answer, _ := s.Answer(nil, b[:n], time.Now(), a)
					if m.Change == 0 || !refuses {
						m.Mapped, m.Other = a, ap("198.51.100.8:3479")
						answer = stun.AppendResponse(nil, m)
					}
					_, _ = c.WriteTo(answer, from)
				}
			}()
			got, _ := probe(t, w.laptop, stun.Begin{Servers: []netip.AddrPort{ap("198.51.100.9:3478")}, Full: true})
			if got.V4.Filtering != stun.Untold || got.V4.Mapping != stun.Untold || got.V4.Hairpin != stun.No {
				t.Errorf("%+v", got.V4)
			}
			c.Close()
			<-ended
		})
	}
}

// Whatever it receives, a Prober finishes, and sends a bounded number of packets.
func FuzzProber(f *testing.F) {
	f.Add(uint64(1), []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Fuzz(func(t *testing.T, seed uint64, script []byte) {
		script = script[:min(len(script), 256)]
		rnd := rand.New(rand.NewPCG(seed, 0))
		p := stun.NewProber([32]byte{byte(seed)})
		at, done, sends := now, false, 0
		var last stun.Send
		servers := []netip.AddrPort{ap("192.0.2.1:1"), ap("192.0.2.2:2"), ap("[2001:db8::1]:1")}
		step := func(e stun.Event) {
			for _, f := range p.Step(at, e) {
				switch f := f.(type) {
				case stun.Send:
					last = f
					sends++
				case stun.Wake:
					if f.At.Before(at) {
						t.Fatalf("wake at %s, before %s", f.At, at)
					}
				case stun.Found:
					done = f.Report.Done
				}
			}
		}
		step(stun.Begin{Servers: servers, Full: true})
		for _, b := range script {
			m, err := stun.Parse(last.Msg)
			if err != nil {
				t.Fatal(err)
			}
			m.Mapped, m.Other = ap(fmt.Sprintf("203.0.113.%d:%d", b, 1+rnd.IntN(3))), ap("192.0.2.9:9")
			from := last.To
			if b&1 != 0 {
				from = ap("192.0.2.9:9")
			}
			if b&2 != 0 {
				at = at.Add(time.Duration(rnd.IntN(1000)) * time.Millisecond)
				step(stun.Tick{})
			}
			step(stun.Received{From: from, Msg: stun.AppendResponse(nil, m)})
		}
		for range 60 {
			at = at.Add(time.Second)
			step(stun.Tick{})
		}
		if !done || sends > 60 {
			t.Fatalf("done %v after %d packets", done, sends)
		}
	})
}
