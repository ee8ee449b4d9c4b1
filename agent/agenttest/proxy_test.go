package agenttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

// gateway adds a reverse proxy in front of the coordinator that terminates TLS with a certificate of its own. If any protocols
// are named, it passes upgrades to those only.
func (m *mesh) gateway(passes ...string) *sim.Host {
	m.Helper()
	h := m.net.Host("gateway", netip.MustParseAddr("203.0.113.200"))
	private := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(m.T)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, template, template, private.Public(), private))(m.T)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: "coordinator.example"})
	transport := &http.Transport{DialContext: h.DialContext, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // as such proxies do
	proxy.Transport, proxy.ErrorLog = transport, log.New(io.Discard, "", 0)
	l := must(h.Listen("tcp", ":443"))(m.T)
	s := &http.Server{
		ReadHeaderTimeout: time.Minute, ErrorLog: proxy.ErrorLog,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if up := r.Header.Get("Upgrade"); len(passes) > 0 && !strings.Contains(strings.Join(passes, " "), up) {
				r.Header.Del("Upgrade")
				r.Header.Del("Connection")
			}
			proxy.ServeHTTP(w, r)
		}),
	}
	go func() {
		_ = s.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}, MinVersion: tls.VersionTLS13}))
	}()
	m.after = append(m.after, func() {
		s.Close()
		transport.CloseIdleConnections()
	})
	return h
}

// TestBehindAGateway checks that a node whose TLS connections are all terminated on the way enrols, learns of changes, and renews.
func TestBehindAGateway(t *testing.T) {
	t.Parallel()
	for name, passes := range map[string][]string{"upgrades": nil, "only WebSockets": {"websocket"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(m *mesh) {
				m.gateway(passes...)
				a := m.Machine("a")
				a.stop()
				a.configure = func(c *agent.Config) {
					c.Edges.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
						return a.dial(ctx, network, "gateway:443")
					}
				}
				a.start()
				a.Up(m.Code(user("ann@example.com")))
				b := m.Join("b", tags("tag:db"))
				b.Listen(22)
				m.Policy(open)
				a.Reaches(b, 22)
				time.Sleep(time.Hour) // two certificates later
				m.Policy("{}")
				a.ReachesNot(b, 22)
				a.stop()
				time.Sleep(time.Minute) // until the gateway has noticed
			})
		})
	}
}
