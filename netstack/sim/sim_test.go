package sim_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// network is what tests can do on the simulated network as well as on a real one.
type network struct {
	listen func() (net.Listener, error)
	dial   func(ctx context.Context, address string) (net.Conn, error)
	packet func() (net.PacketConn, error)
}

func networks() map[string]network {
	n := sim.New(1)
	n.SetDefault(sim.Link{Latency: time.Millisecond})
	a, b := n.Host("a", addr("192.0.2.1")), n.Host("b", addr("192.0.2.2"))
	var d net.Dialer
	return map[string]network{
		"simulated": {
			listen: func() (net.Listener, error) { return b.Listen("tcp", "192.0.2.2:0") },
			dial:   func(ctx context.Context, to string) (net.Conn, error) { return a.DialContext(ctx, "tcp", to) },
			packet: func() (net.PacketConn, error) { return loop{a}.ListenUDP() },
		},
		"real": {
			listen: func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
			dial:   func(ctx context.Context, to string) (net.Conn, error) { return d.DialContext(ctx, "tcp", to) },
			packet: func() (net.PacketConn, error) { return net.ListenPacket("udp", "127.0.0.1:0") },
		},
	}
}

// loop opens sockets whose address is reachable from the same host.
type loop struct{ h *sim.Host }

type loopConn struct{ *sim.UDPConn }

func (l loop) ListenUDP() (net.PacketConn, error) {
	c, err := l.h.ListenUDP(0)
	return loopConn{c}, err
}

func (c loopConn) LocalAddr() net.Addr {
	port := c.UDPConn.LocalAddr().(*net.UDPAddr).Port
	return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
}

// pair returns the two ends of a stream.
func pair(t testing.TB, w network) (client, server net.Conn, done func()) {
	t.Helper()
	l, err := w.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = w.dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server, func() { client.Close(); server.Close() }
}

// The real network fulfils the same contract as the simulated one.
func TestStreamContract(t *testing.T) {
	for name, w := range networks() {
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				c1, c2, stop = pair(t, w)
				return c1, c2, stop, nil
			})
			t.Run("ends", func(t *testing.T) { streamEnds(t, w) })
			t.Run("refusal", func(t *testing.T) { refusal(t, w) })
			t.Run("listener", func(t *testing.T) { listenerEnds(t, w) })
			t.Run("datagrams", func(t *testing.T) { datagrams(t, w) })
		})
	}
}

func streamEnds(t *testing.T, w network) {
	client, server, done := pair(t, w)
	defer done()
	if client.LocalAddr().String() != server.RemoteAddr().String() || client.RemoteAddr().String() != server.LocalAddr().String() {
		t.Errorf("addresses %s-%s and %s-%s", client.LocalAddr(), client.RemoteAddr(), server.LocalAddr(), server.RemoteAddr())
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // more than fits in transit
	go func() {
		_, _ = client.Write(big)
		client.Close()
	}()
	if got, err := io.ReadAll(server); err != nil || !bytes.Equal(got, big) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if _, err := client.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("writing to a closed stream: %v", err)
	}
	if err := client.SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("deadline of a closed stream: %v", err)
	}
	// The other end learns in time that nobody reads.
	var err error
	for until := time.Now().Add(10 * time.Second); err == nil && time.Now().Before(until); {
		_, err = server.Write([]byte("x"))
	}
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("writing to nobody: %v", err)
	}
}

func refusal(t *testing.T, w network) {
	l, err := w.listen()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := w.dial(t.Context(), l.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialling a closed port: %v", err)
	}
	if _, err := w.dial(t.Context(), "no port"); err == nil {
		t.Error("dialling nonsense: no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.dial(ctx, l.Addr().String()); err == nil {
		t.Error("dialling when it is over: no error")
	}
}

func listenerEnds(t *testing.T, w network) {
	l, err := w.listen()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept on a closed listener: %v", err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closing twice: %v", err)
	}
}

func datagrams(t *testing.T, w network) {
	a, err := w.packet()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := w.packet()
	if err != nil {
		t.Fatal(err)
	}
	for _, msg := range []string{"one", "", "three"} {
		if _, err := a.WriteTo([]byte(msg), b.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		n, from, err := b.ReadFrom(buf)
		if err != nil || string(buf[:n]) != msg || from.String() != a.LocalAddr().String() {
			t.Errorf("got %q from %s, %v", buf[:n], from, err)
		}
	}
	b.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, _, err := b.ReadFrom(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	b.SetReadDeadline(time.Time{})
	ended := make(chan error)
	go func() {
		_, _, err := b.ReadFrom(nil)
		ended <- err
	}()
	b.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading a closed socket: %v", err)
	}
}

// simulated runs f on two hosts, 20 ms apart, in virtual time.
func simulated(t *testing.T, f func(t *testing.T, n *sim.Internet, a, b *sim.Host)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := sim.New(1)
		n.SetDefault(sim.Link{Latency: 20 * time.Millisecond})
		f(t, n, n.Host("a", addr("192.0.2.1")), n.Host("b", addr("192.0.2.2"), addr("2001:db8::2")))
	})
}

func streams(t *testing.T, a, b *sim.Host) (client, server net.Conn, done func()) {
	t.Helper()
	return pair(t, network{
		listen: func() (net.Listener, error) { return b.Listen("tcp", ":443") },
		dial:   func(ctx context.Context, _ string) (net.Conn, error) { return a.DialContext(ctx, "tcp", "b:443") },
	})
}

func TestLatency(t *testing.T) {
	simulated(t, func(t *testing.T, _ *sim.Internet, a, b *sim.Host) {
		begun := time.Now()
		took := func(what string, want time.Duration) {
			t.Helper()
			if got := time.Since(begun); got != want {
				t.Errorf("%s after %s, want %s", what, got, want)
			}
			begun = time.Now()
		}
		client, server, done := streams(t, a, b)
		defer done()
		took("connected", 40*time.Millisecond)
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		took("written", 0)
		if _, err := server.Read(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		took("read", 20*time.Millisecond)
		if got := client.RemoteAddr().String(); got != "192.0.2.2:443" {
			t.Errorf("dialled %s", got)
		}
	})
}

func TestCutIsSilence(t *testing.T) {
	simulated(t, func(t *testing.T, n *sim.Internet, a, b *sim.Host) {
		client, server, done := streams(t, a, b)
		defer done()
		n.Cut(a, b)
		if _, err := client.Write([]byte("late")); err != nil {
			t.Fatal(err)
		}
		server.SetReadDeadline(time.Now().Add(time.Hour))
		buf := make([]byte, 8)
		if _, err := server.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("through a cut: %v", err)
		}
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
		n.Heal(a, b)
		server.SetReadDeadline(time.Time{})
		if got, err := io.ReadAll(server); string(got) != "late" || err != nil {
			t.Errorf("after healing: %q, %v", got, err)
		}
	})
}

func TestDialIntoSilence(t *testing.T) {
	simulated(t, func(t *testing.T, n *sim.Internet, a, b *sim.Host) {
		n.Cut(a, b)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		begun := time.Now()
		_, err := a.DialContext(ctx, "tcp", "b:443")
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(begun) != 10*time.Second {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
		if _, err := a.DialContext(t.Context(), "tcp", "b:443"); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("without a deadline: %v", err)
		}
		var nobody *net.DNSError
		if _, err := a.DialContext(t.Context(), "tcp", "nobody:443"); !errors.As(err, &nobody) {
			t.Errorf("unknown name: %v", err)
		}
		if _, err := a.DialContext(t.Context(), "tcp", "[2001:db8::2]:443"); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("without IPv6: %v", err)
		}
		// A connection attempt survives a cut.
		l, err := b.Listen("tcp", ":443")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		time.AfterFunc(5*time.Second, func() { n.Heal(a, b) })
		c, err := a.DialContext(t.Context(), "tcp", "b:443")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}

func TestResetOnRequest(t *testing.T) {
	simulated(t, func(t *testing.T, n *sim.Internet, a, b *sim.Host) {
		client, server, done := streams(t, a, b)
		defer done()
		n.ResetStreams(b, a)
		for _, c := range []net.Conn{client, server} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read: %v", err)
			}
			if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("write: %v", err)
			}
		}
	})
}

func TestRoamingHost(t *testing.T) {
	simulated(t, func(t *testing.T, _ *sim.Internet, a, b *sim.Host) {
		client, server, done := streams(t, a, b)
		defer done()
		b.SetAddrs(addr("198.51.100.9"))
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		server.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := server.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("at an address that is gone: %v", err)
		}
		l, err := b.Listen("tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := a.DialContext(t.Context(), "tcp", "b:80")
		if err != nil {
			t.Fatal(err)
		}
		if got := c.RemoteAddr().String(); got != "198.51.100.9:80" {
			t.Errorf("the name leads to %s", got)
		}
		c.Close()
		b.SetAddrs(addr("192.0.2.2"))
		server.SetReadDeadline(time.Time{})
		if _, err := server.Read(make([]byte, 1)); err != nil {
			t.Errorf("after it returned: %v", err)
		}
	})
}

func TestLossFollowsTheSeed(t *testing.T) {
	arrived := func(seed uint64) (got []byte) {
		synctest.Test(t, func(t *testing.T) {
			n := sim.New(seed)
			a, b := n.Host("a", addr("192.0.2.1")), n.Host("b", addr("192.0.2.2"))
			n.SetLink(a, b, sim.Link{Latency: time.Millisecond, Loss: 0.3})
			from, _ := a.ListenUDP(0)
			to, _ := b.ListenUDP(7)
			defer from.Close()
			defer to.Close()
			for i := range byte(200) {
				if _, err := from.WriteTo([]byte{i}, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 7}); err != nil {
					t.Fatal(err)
				}
			}
			to.SetReadDeadline(time.Now().Add(time.Second))
			buf := make([]byte, 1)
			for {
				if _, _, err := to.ReadFrom(buf); err != nil {
					return
				}
				got = append(got, buf[0])
			}
		})
		return got
	}
	first := arrived(1)
	if len(first) < 100 || len(first) > 180 {
		t.Errorf("%d of 200 arrived, with three tenths lost", len(first))
	}
	if !slices.Equal(first, arrived(1)) {
		t.Error("the same seed loses other packets")
	}
	if slices.Equal(first, arrived(2)) {
		t.Error("another seed loses the same packets")
	}
	if !slices.IsSorted(first) {
		t.Error("packets overtook each other")
	}
}

// A real TLS and HTTP server runs on the simulated network.
func TestHTTPS(t *testing.T) {
	simulated(t, func(t *testing.T, _ *sim.Internet, a, b *sim.Host) {
		l, err := b.Listen("tcp", ":443")
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "you are "+r.RemoteAddr)
		}))
		s.Listener.Close()
		s.Listener = l
		s.StartTLS()
		defer s.Close()
		tr := &http.Transport{DialContext: a.DialContext, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		defer tr.CloseIdleConnections()
		r, err := (&http.Client{Transport: tr}).Get("https://b/")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if got, err := io.ReadAll(r.Body); err != nil || !bytes.HasPrefix(got, []byte("you are 192.0.2.1:")) {
			t.Errorf("got %q, %v", got, err)
		}
	})
}
