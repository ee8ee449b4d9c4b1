package relay_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/stun"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// pairOf returns a world with a relay and two nodes that know it.
func pairOf(t *testing.T) (*world, *station, *node, *node) {
	w := newWorld(t)
	s := w.addRelay(100)
	a, b := w.addNode(1), w.addNode(2)
	w.know(s)
	return w, s, a, b
}

func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, a, b := pairOf(t)
		defer w.close()
		settle(time.Second)
		for _, n := range []*node{a, b} {
			if x := n.state(s); x.Transport != relay.UDP || !x.Home || x.RTT != 20*time.Millisecond || x.Seen.Addr() != n.host.Addrs()[0] {
				t.Errorf("node %d: %+v", n.id, x)
			}
		}
		begin := time.Now()
		a.send(s, b, "one")
		b.gets(a, "one")
		if d := time.Since(begin); d != 20*time.Millisecond {
			t.Errorf("the first packet took %v", d)
		}
		for i := range 5 {
			text := fmt.Sprint(i)
			b.send(s, a, text)
			a.gets(b, text)
			a.send(s, b, text)
			b.gets(a, text)
		}
	})
}

// TestCold checks that a packet sent without a session waits for one: two round trips, plus its own trip.
func TestCold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		s, other := w.addRelay(100), w.addRelay(101)
		a, b := w.addNode(1), w.addNode(2)
		w.net.SetLink(a.host, s.host, sim.Link{Latency: 40 * time.Millisecond})
		w.net.SetLink(b.host, other.host, sim.Link{Latency: 40 * time.Millisecond})
		w.know(s, other)
		settle(time.Second)
		if home, _ := a.client.Home(); home != other.relay.ID {
			t.Fatalf("home of a is %v", home)
		}
		if home, _ := b.client.Home(); home != s.relay.ID {
			t.Fatalf("home of b is %v", home)
		}
		begin := time.Now()
		a.send(s, b, "one", "two")
		b.gets(a, "one")
		if d := time.Since(begin); d != 210*time.Millisecond {
			t.Errorf("the first packet took %v", d)
		}
		b.gets(a, "two")
		settle(5 * time.Minute)
		if x := a.state(s); x.Transport != relay.None {
			t.Errorf("a relay that is not home is kept for nothing: %+v", x)
		}
	})
}

// TestLateStream checks that a session over UDP survives a stream that was tried beside it and comes late, as to a relay that is far
// away: packets arrive by the stream while it is there, and by UDP once the node has closed it.
func TestLateStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, a, b := pairOf(t)
		defer w.close()
		settle(time.Second)
		near, far := net.Pipe()
		var served sync.WaitGroup
		served.Go(func() { _ = s.server.ServeStream(far, b.tls.Certificate[0]) })
		if m := control(t, near); m.Kind != relaymsg.Bound {
			t.Fatalf("%+v", m)
		}
		a.send(s, b, "by the stream")
		if f, _, err := relaymsg.ReadFrame(near, make([]byte, 1500)); err != nil || f.Peer != a.id {
			t.Errorf("on the stream came %+v, %v", f, err)
		}
		near.Close()
		served.Wait()
		for _, to := range []struct{ from, to *node }{{a, b}, {b, a}} {
			begin := time.Now()
			to.from.send(s, to.to, "by UDP")
			to.to.gets(to.from, "by UDP")
			if d := time.Since(begin); d != 20*time.Millisecond {
				t.Errorf("node %d waited %v", to.to.id, d)
			}
		}
	})
}

// TestRoaming checks that when a node's address changes, its session moves along within a round trip.
func TestRoaming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, a, b := pairOf(t)
		defer w.close()
		settle(time.Second)
		a.send(s, b, "one")
		b.gets(a, "one")
		b.send(s, a, "one")
		a.gets(b, "one")
		a.host.SetAddrs(b.host.Addrs()[0].Next())
		a.client.Moved()
		settle(50 * time.Millisecond)
		if x := a.state(s); x.Transport != relay.UDP || x.Seen.Addr() != a.host.Addrs()[0] {
			t.Fatalf("%+v", x)
		}
		b.send(s, a, "two")
		a.gets(b, "two")
		a.send(s, b, "two")
		b.gets(a, "two")
	})
}

// TestStream checks that a stream replaces UDP if that is blocked, and gives way to it again.
func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		s := w.addRelay(100)
		a, b := w.addNode(1), w.addNode(2)
		blocked := s.relay
		s.relay.UDPPort = 0
		w.know(s)
		settle(time.Second)
		if x := a.state(s); x.Transport != relay.TLS || x.Seen.Addr() != a.host.Addrs()[0] {
			t.Fatalf("%+v", x)
		}
		a.send(s, b, "stream to stream")
		b.gets(a, "stream to stream")
		b.client.SetRelays([]proto.Relay{blocked})
		settle(time.Second)
		if x := b.state(s); x.Transport != relay.UDP {
			t.Fatalf("%+v", x)
		}
		a.send(s, b, "stream to UDP")
		b.gets(a, "stream to UDP")
		b.send(s, a, "UDP to stream")
		a.gets(b, "UDP to stream")
		a.client.SetRelays([]proto.Relay{blocked})
		settle(time.Second)
		a.send(s, b, "UDP to UDP")
		b.gets(a, "UDP to UDP")
	})
}

// TestStreamOutOfUse checks that a stream to a relay that is not home ends soon after its last packet.
func TestStreamOutOfUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		home, other := w.addRelay(100), w.addRelay(101)
		a, b := w.addNode(1), w.addNode(2)
		other.relay.UDPPort = 0
		w.know(home, other)
		settle(time.Second)
		a.send(other, b, "lost")
		settle(119 * time.Second)
		if x := a.state(other); x.Transport != relay.TLS || x.Home {
			t.Fatalf("%+v", x)
		}
		settle(2 * time.Second)
		if x := a.state(other); x.Transport != relay.None {
			t.Errorf("it is kept for nothing: %+v", x)
		}
	})
}

// TestStreamForgotten checks that when a NAT silently forgets a stream, the node notices, with and without traffic, and opens
// another.
func TestStreamForgotten(t *testing.T) {
	for name, quiet := range map[string]time.Duration{"while it talks": 0, "while it is idle": 40 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				s := w.addRelay(100)
				a, b := w.addNode(1), w.addNode(2)
				home := w.net.NAT("home", sim.NATConfig{}, netip.MustParseAddr("198.51.100.9"))
				a.host.MoveTo(home, netip.MustParseAddr("10.0.0.1"))
				s.relay.UDPPort = 0
				w.know(s)
				settle(time.Second)
				home.Reboot()
				time.Sleep(quiet)
				begin := time.Now()
				for len(a.inbox) == 0 && time.Since(begin) < time.Minute {
					if quiet == 0 {
						a.send(s, b, "one way")
					}
					b.send(s, a, "the other")
					time.Sleep(100 * time.Millisecond)
				}
				if took := time.Since(begin); quiet == 0 && took > 9*time.Second || quiet > 0 && took > time.Second {
					t.Errorf("nothing came for %v", took)
				}
				settle(2 * time.Minute)
				if x := a.state(s); x.Err != nil || time.Since(x.Since) < 2*time.Minute {
					t.Errorf("a stream that is well is not kept: %+v", x)
				}
			})
		})
	}
}

// TestRelayDies checks that another relay becomes home when one dies in use, and that it is used again when it returns with
// another key.
func TestRelayDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		s, other := w.addRelay(100), w.addRelay(101)
		a, b := w.addNode(1), w.addNode(2)
		w.net.SetLink(a.host, other.host, sim.Link{Latency: 15 * time.Millisecond})
		w.know(s, other)
		settle(time.Second)
		a.send(s, b, "one")
		b.gets(a, "one")
		if home, _ := a.client.Home(); home != s.relay.ID {
			t.Fatalf("home is %v", home)
		}
		s.close()
		begin := time.Now()
		for {
			a.send(s, b, "lost")
			time.Sleep(20 * time.Millisecond)
			if home, _ := a.client.Home(); home == other.relay.ID {
				break
			}
			if time.Since(begin) > time.Minute {
				t.Fatalf("home is still the dead relay: %+v", a.client.States())
			}
		}
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("the death was noticed after %v", d)
		}
		settle(30 * time.Second) // b was idle, and pings its relay only to keep it warm
		a.send(other, b, "two")
		b.gets(a, "two")
		s.start()
		w.know(s, other)
		settle(time.Minute)
		home := s
		if id, _ := b.client.Home(); id == other.relay.ID {
			home = other
		}
		a.send(home, b, "three")
		b.gets(a, "three")
		if x := a.state(s); x.RTT == 0 || x.Err != nil {
			t.Errorf("the relay that is back does not answer: %+v", x)
		}
	})
}

func TestNotPermitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, a, b := pairOf(t)
		defer w.close()
		settle(time.Second)
		w.permit.change(func(p *permit) { p.apart[[2]proto.NodeID{1, 2}] = true })
		a.send(s, b, "one")
		b.silent(time.Second)
		if r := <-a.fail; r != relaymsg.ReasonNotPermitted {
			t.Errorf("told: %v", r)
		}
		w.permit.change(func(p *permit) { clear(p.apart) })
		s.server.Recheck([]proto.NodeID{1, 2})
		a.send(s, b, "two")
		b.gets(a, "two")
		w.permit.change(func(p *permit) { p.apart[[2]proto.NodeID{1, 2}] = true })
		s.server.Recheck([]proto.NodeID{1, 2})
		a.send(s, b, "three")
		b.silent(time.Second)
	})
}

// TestRevoked checks that a revoked node is cut off at once, and cannot return.
func TestRevoked(t *testing.T) {
	for _, port := range []uint16{port, 0} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			defer w.close()
			s := w.addRelay(100)
			a, b := w.addNode(1), w.addNode(2)
			s.relay.UDPPort = port
			w.know(s)
			settle(time.Second)
			a.send(s, b, "one")
			b.gets(a, "one")
			w.permit.change(func(p *permit) { p.revoked[a.id] = true })
			s.server.Recheck([]proto.NodeID{1, 2})
			for range 100 {
				a.send(s, b, "two")
				b.silent(100 * time.Millisecond)
			}
			if x := a.state(s); x.Transport != relay.None {
				t.Errorf("%+v", x)
			}
			b.send(s, a, "three")
			a.silent(time.Second)
			if r := <-b.fail; r != relaymsg.ReasonNotPermitted {
				t.Errorf("told: %v", r)
			}
		})
	}
}

// TestDrain checks that clients go elsewhere before a drained relay stops.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		s, other := w.addRelay(100), w.addRelay(101)
		a := w.addNode(1)
		w.know(s, other)
		settle(time.Second)
		home, other2 := s, other
		if id, _ := a.client.Home(); id == other.relay.ID {
			home, other2 = other, s
		}
		home.server.Drain(10 * time.Second)
		settle(100 * time.Millisecond)
		if id, _ := a.client.Home(); id != other2.relay.ID {
			t.Errorf("home is %v", id)
		}
		if x := a.state(home); !x.Draining {
			t.Errorf("%+v", x)
		}
	})
}

// TestDrainIsTold checks that a drained relay has told the nodes on streams before it stops, but does not wait for one that does
// not read.
func TestDrainIsTold(t *testing.T) {
	const within = 500 * time.Millisecond
	for _, reads := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			defer w.close()
			s := w.addRelay(100)
			w.permit.change(func(p *permit) { p.nodes["certificate"] = 1 })
			near, far := net.Pipe()
			var served sync.WaitGroup
			defer served.Wait()
			defer near.Close()
			served.Go(func() { _ = s.server.ServeStream(far, []byte("certificate")) })
			if m := control(t, near); m.Kind != relaymsg.Bound {
				t.Fatalf("%+v", m)
			}
			settle(time.Minute / 2) // nobody sends anything
			begun := time.Now()
			drained := make(chan time.Duration, 1)
			served.Go(func() {
				s.server.Drain(within)
				drained <- time.Since(begun)
				_ = s.server.Close()
			})
			settle(within / 2)
			if reads {
				if m := control(t, near); m.Kind != relaymsg.Drain || m.Seconds != 1 {
					t.Errorf("%+v", m)
				}
			}
			if took := <-drained; (took == within/2) != reads || took > within {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// control reads a control message from a stream.
func control(t *testing.T, r io.Reader) relaymsg.Message {
	t.Helper()
	head := make([]byte, relaymsg.FrameSize)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	f, err := relaymsg.ParseFrame(head)
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, f.Length)
	if _, err := io.ReadFull(r, body); err != nil {
		t.Fatal(err)
	}
	m, err := relaymsg.ParseControl(f, body)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestDrainCarriesOn checks that a draining relay keeps forwarding while nodes use it, up to the time it was given.
func TestDrainCarriesOn(t *testing.T) {
	for name, c := range map[string]struct {
		port          uint16
		talks, drains time.Duration
	}{
		"by UDP, until they are gone":    {port, 2 * time.Second, 3 * time.Second},
		"by stream, until they are gone": {0, 2 * time.Second, 3 * time.Second},
		"until the time is over":         {port, time.Minute, 5 * time.Second},
		"nobody uses it":                 {port, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				s := w.addRelay(100)
				a, b := w.addNode(1), w.addNode(2)
				s.relay.UDPPort = c.port
				w.know(s)
				settle(5 * time.Second)
				begun := time.Now()
				drained := make(chan time.Duration)
				if c.talks > 0 {
					a.send(s, b, "one")
					b.gets(a, "one")
				}
				go func() {
					s.server.Drain(5 * time.Second)
					drained <- time.Since(begun)
				}()
				for time.Since(begun) < min(c.talks, 5*time.Second-100*time.Millisecond) {
					a.send(s, b, "on")
					b.gets(a, "on")
					settle(50 * time.Millisecond)
				}
				if c.talks > c.drains {
					for range 10 {
						a.send(s, b, "on and on")
						settle(50 * time.Millisecond)
					}
				}
				if took := <-drained; took < c.drains-100*time.Millisecond || took > c.drains+800*time.Millisecond {
					t.Errorf("it took %s, want %s", took, c.drains)
				}
			})
		})
	}
}

// TestLasting checks that sessions outlast their certificates, which are replaced when they expire.
func TestLasting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, a, b := pairOf(t)
		defer w.close()
		for range 20 {
			settle(11 * time.Minute)
			a.send(s, b, "one")
			b.gets(a, "one")
		}
	})
}

// TestBadLine checks that a link that loses, delays and reorders costs packets and nothing else.
func TestBadLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, a, b := pairOf(t)
		defer w.close()
		w.net.SetLink(a.host, s.host, sim.Link{Latency: 30 * time.Millisecond, Loss: 0.2})
		got := 0
		for range 500 {
			a.send(s, b, "x")
			select {
			case <-b.inbox:
				got++
			case <-time.After(100 * time.Millisecond):
			}
		}
		if got < 300 {
			t.Errorf("%d of 500 arrived", got)
		}
	})
}

// TestSTUN checks that the port tells anyone their source address.
func TestSTUN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, _, _ := pairOf(t)
		defer w.close()
		home := w.net.NAT("home", sim.NATConfig{Ports: sim.Random}, netip.MustParseAddr("198.51.100.9"))
		c, err := home.Host("stranger", netip.MustParseAddr("10.0.0.1")).ListenUDP(7)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		server := netip.AddrPortFrom(s.relay.UDP[0], s.relay.UDPPort)
		if _, err := c.WriteTo(stun.AppendRequest(nil, stun.TxID{9}), net.UDPAddrFromAddrPort(server)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, from, err := c.ReadFrom(b)
		if err != nil || from.String() != server.String() {
			t.Fatalf("%v from %v", err, from)
		}
		m, err := stun.Parse(b[:n])
		mapped, _ := home.Mapped(netip.MustParseAddrPort("10.0.0.1:7"), server)
		if err != nil || m.ID != (stun.TxID{9}) || m.Mapped != mapped {
			t.Errorf("%+v, %v, want %s", m, err, mapped)
		}
	})
}
