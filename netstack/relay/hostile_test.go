package relay_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// raw speaks to a relay without a client.
type raw struct {
	t    *testing.T
	s    *station
	conn *sim.UDPConn
	key  *relaymsg.Key
	// bind is the last Bind that was sent.
	bind []byte
}

func (w *world) raw(s *station, name string, addr string) *raw {
	w.t.Helper()
	c, err := w.net.Host(name, netip.MustParseAddr(addr)).ListenUDP(0)
	if err != nil {
		w.t.Fatal(err)
	}
	return &raw{t: w.t, s: s, conn: c}
}

func (r *raw) send(b []byte) {
	r.t.Helper()
	if _, err := r.conn.WriteTo(b, net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.s.relay.UDP[0], port))); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) say(m relaymsg.Message) {
	r.t.Helper()
	r.send(relaymsg.Append(nil, &m, r.key, false))
}

// answer returns the relay's answer within a second; false if there is none.
func (r *raw) answer() (relaymsg.Message, bool) {
	r.t.Helper()
	b := make([]byte, 2048)
	_ = r.conn.SetReadDeadline(time.Now().Add(time.Second))
	n, _, err := r.conn.ReadFrom(b)
	if err != nil {
		return relaymsg.Message{}, false
	}
	m, err := relaymsg.Parse(b[:n])
	if err != nil {
		r.t.Fatal(err)
	}
	return m, true
}

func (r *raw) wants(kind relaymsg.Kind) relaymsg.Message {
	r.t.Helper()
	m, ok := r.answer()
	if !ok || m.Kind != kind {
		r.t.Fatalf("answer %+v, %v; want kind %#x", m, ok, uint8(kind))
	}
	return m
}

func header(k relaymsg.Kind, session uint32) relaymsg.Header {
	return relaymsg.Header{Kind: k, Session: session}
}

// cookie requests a cookie.
func (r *raw) cookie(session uint32) [relaymsg.CookieSize]byte {
	r.t.Helper()
	r.say(relaymsg.Message{Header: header(relaymsg.Hello, session)})
	return r.wants(relaymsg.Challenge).Cookie
}

// begin sends a bind for a node with a cookie.
func (r *raw) begin(n *node, session uint32, cookie [relaymsg.CookieSize]byte) {
	r.t.Helper()
	secret, err := relaymsg.NewSecret(rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	leaf := n.tls.Certificate[0]
	sum := relaymsg.Transcript(r.s.relay.ID, r.s.relay.Key, secret.Public(), session, leaf)
	signature, err := n.tls.PrivateKey.(crypto.Signer).Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.key, err = secret.Agree(r.s.relay.Key, sum); err != nil {
		r.t.Fatal(err)
	}
	r.bind = relaymsg.Append(nil, &relaymsg.Message{Header: header(relaymsg.Bind, session), Cookie: cookie, BindInfo: relaymsg.BindInfo{
		RelayKey: r.s.relay.Key, Ephemeral: secret.Public(), Certificate: leaf, Signature: signature,
	}}, nil, false)
	r.send(r.bind)
}

func data(kind relaymsg.Kind, session uint32, peer proto.NodeID, text string) []byte {
	b := make([]byte, relaymsg.HeaderSize)
	header(kind, session).Put(b)
	if kind == relaymsg.DataFor {
		b = append(b, make([]byte, relaymsg.PeerSize)...)
		relaymsg.PutPeer(b[relaymsg.HeaderSize:], peer)
	}
	return append(b, text...)
}

func hostile(t *testing.T, f func(t *testing.T, w *world, s *station, victim *node)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		s := w.addRelay(100, func(c *relay.ServerConfig) { c.Sessions = 4 })
		victim := w.addNode(1)
		w.know(s)
		settle(time.Second)
		f(t, w, s, victim)
	})
}

// TestForgedSource checks that a bound session cannot be used from another address before that has proved itself.
func TestForgedSource(t *testing.T) {
	hostile(t, func(t *testing.T, w *world, s *station, victim *node) {
		n := w.addNode(2)
		good, bad := w.raw(s, "good", "192.0.2.1"), w.raw(s, "bad", "192.0.2.2")
		good.begin(n, 7, good.cookie(7))
		good.wants(relaymsg.Bound)
		bad.send(data(relaymsg.DataFor, 7, victim.id, "\x04\x00\x00\x00 this is long enough for an answer"))
		c := bad.wants(relaymsg.Challenge)
		victim.silent(time.Second)
		bad.key = &relaymsg.Key{}
		bad.say(relaymsg.Message{Header: header(relaymsg.Rebind, 7), Cookie: c.Cookie, Token: 1})
		if m, ok := bad.answer(); ok {
			t.Errorf("a move without the session's key is answered: %+v", m)
		}
		good.send(data(relaymsg.DataFor, 7, victim.id, "\x04\x00\x00\x00one"))
		victim.gets(n, "one")
	})
}

// TestReplays checks that a replayed bind or move has no effect, whoever sends it.
func TestReplays(t *testing.T) {
	hostile(t, func(t *testing.T, w *world, s *station, victim *node) {
		n := w.addNode(2)
		first, second := w.raw(s, "first", "192.0.2.1"), w.raw(s, "second", "192.0.2.2")
		first.begin(n, 7, first.cookie(7))
		first.wants(relaymsg.Bound)
		second.send(first.bind) // the cookie is not for this address
		second.wants(relaymsg.Challenge)
		// The node moves to the second address.
		second.key = first.key
		second.send(data(relaymsg.DataFor, 7, victim.id, "\x04\x00\x00\x00 this is long enough for an answer"))
		move := relaymsg.Append(nil, &relaymsg.Message{Header: header(relaymsg.Rebind, 7), Cookie: second.wants(relaymsg.Challenge).Cookie, Token: 1}, second.key, false)
		second.send(move)
		second.wants(relaymsg.Bound)
		// The bind from the first address is replayed from there.
		first.send(first.bind)
		if m := first.wants(relaymsg.Refused); m.Reason != relaymsg.ReasonTaken {
			t.Errorf("refused: %v", m.Reason)
		}
		second.send(move)
		if m, ok := second.answer(); ok {
			t.Errorf("a move that was played again is answered: %+v", m)
		}
		second.send(data(relaymsg.DataFor, 7, victim.id, "\x04\x00\x00\x00one"))
		victim.gets(n, "one")
	})
}

// TestStrangers checks that strangers get no session: with certificates that are not admitted, or signatures by other keys or
// for other relays.
func TestStrangers(t *testing.T) {
	hostile(t, func(t *testing.T, w *world, s *station, victim *node) {
		n := w.addNode(2)
		thief := w.addNode(3)
		r := w.raw(s, "stranger", "192.0.2.1")
		w.permit.change(func(p *permit) { delete(p.nodes, string(n.tls.Certificate[0])) })
		r.begin(n, 7, r.cookie(7))
		if m := r.wants(relaymsg.Refused); m.Reason != relaymsg.ReasonCertificate {
			t.Errorf("a stranger: %v", m.Reason)
		}
		stolen := victim.tls
		stolen.PrivateKey = thief.tls.PrivateKey
		r.begin(&node{tls: stolen}, 8, r.cookie(8))
		if m := r.wants(relaymsg.Refused); m.Reason != relaymsg.ReasonCertificate {
			t.Errorf("another's certificate: %v", m.Reason)
		}
		old := s.relay.Key
		s.relay.Key[0] ^= 1
		r.begin(thief, 9, r.cookie(9))
		if m := r.wants(relaymsg.Refused); m.Reason != relaymsg.ReasonKey {
			t.Errorf("another relay's key: %v", m.Reason)
		}
		s.relay.Key = old
		cookie := r.cookie(10)
		time.Sleep(time.Minute)
		r.begin(thief, 10, cookie)
		r.wants(relaymsg.Challenge)
		if x := victim.state(s); x.Transport != relay.UDP {
			t.Errorf("the victim lost its session: %+v", x)
		}
	})
}

// TestHalfOpen checks that thousands of begun sessions leave no state behind, and do not keep others out.
func TestHalfOpen(t *testing.T) {
	hostile(t, func(t *testing.T, w *world, s *station, victim *node) {
		r := w.raw(s, "flood", "192.0.2.1")
		heap := func() uint64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := heap()
		for i := range uint32(3000) {
			r.say(relaymsg.Message{Header: header(relaymsg.Hello, i)})
			if _, ok := r.answer(); !ok {
				t.Fatal("no answer")
			}
		}
		if after := heap(); after > before+(2<<20) {
			t.Errorf("memory went from %d to %d", before, after)
		}
		w.addNode(2)
		w.know(s)
		settle(time.Second)
		if x := w.nodes[1].state(s); x.Transport != relay.UDP {
			t.Errorf("%+v", x)
		}
	})
}

// TestLimits checks that sessions beyond the relay's limit are refused, and that each node has one.
func TestLimits(t *testing.T) {
	hostile(t, func(t *testing.T, w *world, s *station, victim *node) {
		r := w.raw(s, "crowd", "192.0.2.1")
		n := w.addNode(2)
		for i := range uint32(10) {
			r.begin(n, 10+i, r.cookie(10+i))
			r.wants(relaymsg.Bound)
		}
		r.send(data(relaymsg.DataFor, 10, victim.id, "\x04\x00\x00\x00 of a session that another one took the place of"))
		if m := r.wants(relaymsg.Refused); m.Reason != relaymsg.ReasonUnknownSession {
			t.Errorf("refused: %v", m.Reason)
		}
		for i := range uint32(2) {
			other := w.addNode(proto.NodeID(3 + i))
			r.begin(other, 30+i, r.cookie(30+i))
			r.wants(relaymsg.Bound)
		}
		other := w.addNode(9)
		r.begin(other, 40, r.cookie(40))
		if m := r.wants(relaymsg.Refused); m.Reason != relaymsg.ReasonFull {
			t.Errorf("refused: %v", m.Reason)
		}
	})
}

// TestRelaysDoNotAnswerEachOther checks that a relay does not answer messages that only relays send: otherwise one forged
// datagram would make two of them exchange messages forever.
func TestRelaysDoNotAnswerEachOther(t *testing.T) {
	hostile(t, func(t *testing.T, w *world, s *station, _ *node) {
		other := w.addRelay(101)
		r := w.raw(s, "forger", "192.0.2.1")
		var said []sim.Seen
		relays := []netip.AddrPort{netip.AddrPortFrom(s.relay.UDP[0], port), netip.AddrPortFrom(other.relay.UDP[0], port)}
		w.net.Tap(func(x sim.Seen) {
			if x.Datagram() && x.From == relays[0] {
				said = append(said, x)
			}
		})
		r.cookie(7)
		r.send(data(relaymsg.Data, 7, 0, "of no session"))
		r.wants(relaymsg.Refused)
		n := w.addNode(2)
		r.begin(n, 8, r.cookie(8))
		r.wants(relaymsg.Bound)
		answers := 0
		w.net.Tap(func(x sim.Seen) {
			if slices.Contains(relays, x.From) && slices.Contains(relays, x.To) {
				answers++
			}
		})
		if len(said) < 4 {
			t.Fatalf("the relay said %d things", len(said))
		}
		for _, x := range said {
			x.To = relays[1]
			w.net.Inject(x)
		}
		time.Sleep(time.Second)
		if answers > 0 {
			t.Errorf("%d datagrams between the relays", answers)
		}
	})
}

// TestForgedNumbers has an attacker on the path assign numbers to other peers, at the relay and at the nodes, and replay what
// they said about numbers. Packets go astray meanwhile, and only briefly afterwards.
func TestForgedNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		s := w.addRelay(100)
		a, b, c := w.addNode(1), w.addNode(2), w.addNode(3)
		w.know(s)
		settle(time.Second)
		var mu sync.Mutex
		var packets, learned []sim.Seen
		w.net.Tap(func(x sim.Seen) {
			mu.Lock()
			defer mu.Unlock()
			switch k := relaymsg.ParseHeader(x.Data).Kind; k {
			case relaymsg.Data:
				packets = append(packets, x)
			case relaymsg.Learned:
				learned = append(learned, x)
			}
		})
		talk := func() (arrived int) {
			for range 100 {
				a.send(s, b, "to b")
				b.send(s, a, "to a")
				settle(100 * time.Millisecond)
				for _, n := range []*node{a, b} {
					for len(n.inbox) > 0 {
						<-n.inbox
						arrived++
					}
				}
			}
			for len(c.inbox) > 0 {
				<-c.inbox
			}
			return arrived
		}
		if n := talk(); n != 200 || len(packets) < 300 {
			t.Fatalf("%d packets arrived, %d were seen", n, len(packets))
		}
		for _, again := range []bool{false, true} {
			mu.Lock()
			forged, replayed := slices.Clone(packets), slices.Clone(learned)
			mu.Unlock()
			for _, x := range forged[len(forged)-20:] {
				h := relaymsg.ParseHeader(x.Data)
				x.Data = data(relaymsg.DataFor, h.Session, c.id, "\x04\x00\x00\x00 forged")
				h.Kind = relaymsg.DataFor
				h.Put(x.Data)
				w.net.Inject(x)
			}
			settle(50 * time.Millisecond)
			if again {
				for _, x := range replayed {
					w.net.Inject(x)
				}
			}
			least := 196
			if again { // until it is announced again on its own
				least = 90
			}
			if n := talk(); n < least {
				t.Errorf("played back: %t: %d of 200 packets arrived, want %d", again, n, least)
			}
			if n := talk(); n != 200 {
				t.Errorf("played back: %t: afterwards %d of 200 packets arrived", again, n)
			}
		}
		w.net.Tap(nil)
	})
}

// TestFlood checks that a node that floods loses its own packets, and no one else's.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		s := w.addRelay(100, func(c *relay.ServerConfig) { c.Rate = 80_000 })
		flooder, good, b := w.addNode(1), w.addNode(2), w.addNode(3)
		w.know(s)
		settle(time.Second)
		drain := make(chan int)
		go func() {
			n := 0
			for p := range b.inbox {
				if p.via.Peer == good.id {
					n++
				}
			}
			drain <- n
		}()
		for range 100 {
			for range 20 {
				flooder.send(s, b, string(make([]byte, 1000)))
			}
			good.send(s, b, "good")
			time.Sleep(20 * time.Millisecond)
		}
		settle(time.Second)
		close(b.inbox)
		if n := <-drain; n != 100 {
			t.Errorf("%d of 100 packets of the other arrived", n)
		}
	})
}

// TestGarbage checks that malformed messages change nothing.
func TestGarbage(t *testing.T) {
	hostile(t, func(t *testing.T, w *world, s *station, victim *node) {
		r := w.raw(s, "noise", "192.0.2.1")
		for kind := 0; kind < 256; kind++ {
			for _, n := range []int{1, 7, 8, 9, 16, 24, 48, 100, 1400} {
				b := make([]byte, n)
				_, _ = rand.Read(b)
				b[0] = byte(kind)
				r.send(b)
			}
		}
		settle(time.Second)
		if x := victim.state(s); x.Transport != relay.UDP {
			t.Errorf("%+v", x)
		}
	})
}

// fullListener accepts nothing the first few times, as if there were no file descriptors left.
type fullListener struct {
	net.Listener
	fails atomic.Int32
}

func (f *fullListener) Accept() (net.Conn, error) {
	if f.fails.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return f.Listener.Accept()
}

// TestNoFileDescriptors checks that a relay that cannot accept connections for a while accepts them afterwards.
func TestNoFileDescriptors(t *testing.T) {
	hostile(t, func(t *testing.T, w *world, s *station, victim *node) {
		l, err := s.host.Listen("tcp", ":444")
		if err != nil {
			t.Fatal(err)
		}
		f := &fullListener{Listener: l}
		f.fails.Store(20)
		config := cert.ServerConfig(s.tls, x509.NewCertPool(), func([][]byte) error { return nil })
		s.streams.Go(func() {
			if err := s.server.ServeTLS(f, config); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		})
		by := s.relay
		by.UDPPort, by.URLs = 0, []string{"https://" + s.relay.Name + ":444"}
		victim.client.SetRelays([]proto.Relay{by})
		settle(time.Minute)
		if x := victim.state(s); x.Transport != relay.TLS {
			t.Errorf("%+v", x)
		}
	})
}

// TestStrangeConnections checks that connections that send nothing, or something else, do not keep out nodes' streams, and are
// closed after their time.
func TestStrangeConnections(t *testing.T) {
	hostile(t, func(t *testing.T, w *world, s *station, victim *node) {
		host := w.net.Host("crowd", netip.MustParseAddr("192.0.2.1"))
		crowd := make([]net.Conn, 0, 400)
		for range 400 {
			c, err := host.DialContext(t.Context(), "tcp", s.relay.Name+":443")
			if err != nil {
				t.Fatal(err)
			}
			crowd = append(crowd, c)
		}
		for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x01"} {
			c, err := host.DialContext(t.Context(), "tcp", s.relay.Name+":443")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte(text))
			crowd = append(crowd, c)
		}
		by := s.relay
		by.UDPPort = 0
		victim.client.SetRelays([]proto.Relay{by})
		settle(2 * time.Second)
		if x := victim.state(s); x.Transport != relay.TLS {
			t.Errorf("%+v", x)
		}
		settle(20 * time.Second)
		for _, c := range crowd {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			for {
				if _, err := c.Read(make([]byte, 512)); err != nil {
					if errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error("a connection that says nothing is still open")
					}
					break
				}
			}
			c.Close()
		}
	})
}
