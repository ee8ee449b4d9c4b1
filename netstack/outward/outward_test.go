package outward_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/netstack/outward"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errStranger = errors.New("a stranger")

// identity returns a certificate, and a client configuration that accepts no other.
func identity(t *testing.T) (tls.Certificate, *tls.Config) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, //nolint:gosec // the next line verifies it
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			if len(raw) != 1 || !slices.Equal(raw[0], der) {
				return errStranger
			}
			return nil
		},
	}
}

// world has an agent and a server of the mesh that says hello to everyone, with room for something in between.
type world struct {
	*testing.T
	net           *sim.Internet
	agent, server *sim.Host
	own           tls.Certificate
	cfg           *tls.Config
	tunnel        func(w http.ResponseWriter, r *http.Request)
	ends          []func()
}

const serverURL = "https://server.example"

func newWorld(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, net: sim.New(1)}
		w.agent = w.net.Host("agent", netip.MustParseAddr("192.0.2.1"))
		w.server = w.net.Host("server.example", netip.MustParseAddr("198.51.100.1"))
		w.own, w.cfg = identity(t)
		w.tunnel = w.upgrade
		stop := w.serve(w.server, ":443", w.own, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == wire.TunnelPath {
				w.tunnel(rw, r)
				return
			}
			_, _ = io.WriteString(rw, "hello")
		}))
		f(w)
		stop()
		for _, end := range w.ends {
			end()
		}
		time.Sleep(time.Minute) // until every end has noticed
	})
}

// serve serves HTTPS on a host until stop is called.
func (w *world) serve(h *sim.Host, addr string, own tls.Certificate, handler http.Handler) (stop func()) {
	w.Helper()
	l, err := h.Listen("tcp", addr)
	if err != nil {
		w.Fatal(err)
	}
	s := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute}
	go func() {
		_ = s.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13}))
	}()
	return func() { s.Close() }
}

// inside serves mesh TLS on a stream inside another.
func (w *world) inside(c net.Conn) {
	t := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{w.own}, MinVersion: tls.VersionTLS13})
	defer t.Close()
	if request, err := http.ReadRequest(bufio.NewReader(t)); err == nil {
		fmt.Fprintf(t, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
		request.Body.Close()
	}
}

func (w *world) upgrade(rw http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != wire.TunnelProtocol {
		http.Error(rw, "not that", http.StatusBadRequest)
		return
	}
	c, _, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		w.Error(err)
		return
	}
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", wire.TunnelProtocol)
	w.inside(c)
}

func (w *world) webSocket(rw http.ResponseWriter, r *http.Request) {
	ws, err := websocket.Accept(rw, r, &websocket.AcceptOptions{Subprotocols: []string{wire.TunnelProtocol}})
	if err == nil {
		w.inside(websocket.NetConn(context.Background(), ws, websocket.MessageBinary))
	}
}

// hello opens a connection and fetches a greeting from the server.
func (w *world) hello(d outward.Dialer) error {
	if d.Dial == nil {
		d.Dial = w.agent.DialContext
	}
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	c, err := d.Open(ctx, serverURL, w.cfg)
	if err != nil {
		return err
	}
	cancel() // the opened connection outlives it
	defer c.Close()
	if _, err := io.WriteString(c, "GET /hello HTTP/1.1\r\nHost: server.example\r\n\r\n"); err != nil {
		return err
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if word, _ := io.ReadAll(answer.Body); string(word) != "hello" {
		return fmt.Errorf("it says %q", word)
	}
	return nil
}

func TestStraight(t *testing.T) {
	newWorld(t, func(w *world) {
		if err := w.hello(outward.Dialer{}); err != nil {
			w.Error(err)
		}
	})
}

// behind puts a reverse proxy that terminates TLS in the server's place, and the server elsewhere.
func (w *world) behind(strip bool) func() {
	front := w.net.Host("front", netip.MustParseAddr("203.0.113.1"))
	theirs, _ := identity(w.T)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: "server.example"})
	transport := &http.Transport{DialContext: front.DialContext, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // as such proxies do
	proxy.Transport = transport
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	stop := w.serve(front, ":443", theirs, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strip && r.Header.Get("Upgrade") != "websocket" {
			r.Header.Del("Upgrade")
			r.Header.Del("Connection")
		}
		proxy.ServeHTTP(rw, r)
	}))
	return func() { stop(); transport.CloseIdleConnections() }
}

// toFront returns a Dialer that connects to the proxy, whatever it dials.
func toFront(w *world) outward.Dialer {
	return outward.Dialer{Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return w.agent.DialContext(ctx, network, "front:443")
	}}
}

func TestBehindWhatEndsTLS(t *testing.T) {
	newWorld(t, func(w *world) {
		defer w.behind(false)()
		if err := w.hello(toFront(w)); err != nil {
			w.Error(err)
		}
	})
}

func TestBehindWhatPassesOnlyWebSockets(t *testing.T) {
	newWorld(t, func(w *world) {
		w.tunnel = w.webSocket
		defer w.behind(true)()
		if err := w.hello(toFront(w)); err != nil {
			w.Error(err)
		}
	})
}

// The server behind the proxy must belong to the mesh, too.
func TestAnotherServerBehindTheProxy(t *testing.T) {
	newWorld(t, func(w *world) {
		w.own, _ = identity(w.T)
		defer w.behind(false)()
		if err := w.hello(toFront(w)); !errors.Is(err, errStranger) || !errors.Is(err, outward.ErrTLS) || !strings.Contains(err.Error(), "inside") {
			w.Error(err)
		}
	})
}

func TestAStranger(t *testing.T) {
	newWorld(t, func(w *world) {
		strangers := w.net.Host("front", netip.MustParseAddr("203.0.113.1"))
		own, _ := identity(w.T)
		defer w.serve(strangers, ":443", own, http.NotFoundHandler())()
		if err := w.hello(toFront(w)); !errors.Is(err, errStranger) || strings.Contains(err.Error(), "inside") {
			w.Error(err)
		}
	})
}

// connectProxy answers CONNECT on proxy:3128.
func (w *world) connectProxy(answer func(c net.Conn, r *http.Request)) outward.Dialer {
	w.Helper()
	h := w.net.Host("proxy", netip.MustParseAddr("203.0.113.9"))
	l, err := h.Listen("tcp", ":3128")
	if err != nil {
		w.Fatal(err)
	}
	w.ends = append(w.ends, func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil || r.Method != http.MethodConnect || r.RequestURI != "server.example:443" {
					w.Errorf("the proxy got %+v, %v", r, err)
					return
				}
				answer(c, r)
			}()
		}
	}()
	return outward.Dialer{Proxy: func(u *url.URL) (*url.URL, error) {
		if u.String() != serverURL {
			w.Errorf("asked for the proxy of %s", u)
		}
		return url.Parse("http://ann:secret@proxy:3128")
	}}
}

// What follows the head of a proxy's answer is the tunnel, whatever the head says (RFC 9110, section 9.3.6).
func TestConnect(t *testing.T) {
	for name, fields := range map[string]string{
		"plain": "Via: it\r\n", "with a length": "Content-Length: 5\r\n", "chunked": "Transfer-Encoding: chunked\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			newWorld(t, func(w *world) {
				d := w.connectProxy(func(c net.Conn, r *http.Request) {
					if got := r.Header.Get("Proxy-Authorization"); got != "Basic YW5uOnNlY3JldA==" {
						w.Errorf("authorization %q", got)
					}
					on, err := w.net.Host("exit", netip.MustParseAddr("203.0.113.10")).DialContext(w.Context(), "tcp", r.RequestURI)
					if err != nil {
						w.Error(err)
						return
					}
					defer on.Close()
					_, _ = io.WriteString(c, "HTTP/1.1 200 Connection established\r\n"+fields+"\r\n")
					done := make(chan struct{})
					go func() { _, _ = io.Copy(c, on); close(done) }()
					_, _ = io.Copy(on, c)
					on.Close()
					<-done
				})
				if err := w.hello(d); err != nil {
					w.Error(err)
				}
			})
		})
	}
}

func TestProxiesThatDoNotConnect(t *testing.T) {
	for name, c := range map[string]struct{ answer, want string }{
		"no password":      {"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "USER:PASSWORD"},
		"refuses":          {"HTTP/1.1 403 Forbidden\r\n\r\n", "403 Forbidden"},
		"speaks no HTTP":   {"SSH-2.0-OpenSSH_9.9\r\n", "something else than HTTP"},
		"ends":             {"", "something else than HTTP"},
		"endless":          {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20), "something else than HTTP"},
		"connects nowhere": {"HTTP/1.1 200 OK\r\n\r\nnot TLS at all", "TLS with server.example"},
	} {
		t.Run(name, func(t *testing.T) {
			newWorld(t, func(w *world) {
				d := w.connectProxy(func(p net.Conn, _ *http.Request) { _, _ = io.WriteString(p, c.answer) })
				err := w.hello(d)
				if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
					w.Errorf("%v, want %q", err, c.want)
				}
			})
		})
	}
}

// A proxy that never answers delays Open no longer than its context allows.
func TestSilentProxy(t *testing.T) {
	newWorld(t, func(w *world) {
		d := w.connectProxy(func(c net.Conn, _ *http.Request) { _, _ = io.Copy(io.Discard, c) })
		begun := time.Now()
		if err := w.hello(d); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Minute {
			w.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

func TestWhatIsNoServer(t *testing.T) {
	newWorld(t, func(w *world) {
		for _, server := range []string{"", "http://server.example", "https://", "server.example:443", "https://[::1", "%"} {
			if _, err := (outward.Dialer{Dial: w.agent.DialContext}).Open(w.Context(), server, w.cfg); err == nil {
				w.Errorf("%q: no error", server)
			}
		}
		socks := outward.Dialer{Proxy: func(*url.URL) (*url.URL, error) { return url.Parse("socks5://proxy:1080") }}
		if err := w.hello(socks); err == nil || !strings.Contains(err.Error(), "socks5 proxies") {
			w.Error(err)
		}
	})
}
