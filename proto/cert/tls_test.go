package cert_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// shake performs a handshake over a pipe; after it, the server sends one byte.
func shake(t *testing.T, server, client *tls.Config) (s, c *tls.Conn, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	s, c = tls.Server(a, server), tls.Client(b, client)
	t.Cleanup(func() { a.Close(); b.Close() })
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1})
		} else {
			a.Close()
		}
		done <- err
	}()
	clientErr = c.Handshake()
	if clientErr == nil {
		// In TLS 1.3, only this read tells the client that its certificate was refused.
		_, clientErr = c.Read(make([]byte, 1))
	} else {
		b.Close()
	}
	return s, c, <-done, clientErr
}

func (w *world) certificate(t *testing.T, signer crypto.Signer, leaf []byte) tls.Certificate {
	t.Helper()
	return must(cert.TLSCertificate(signer, leaf, w.intermediate.Certificate().Raw, w.root.Certificate().Raw))(t)
}

func at(now time.Time) func() time.Time { return func() time.Time { return now } }

// server returns the TLS configuration of a coordinator that accepts nodes of its mesh.
func (w *world) server(t *testing.T, leaf tls.Certificate, now time.Time) *tls.Config {
	v := w.verifier(t)
	return cert.ServerConfig(leaf, nil, func(chain [][]byte) error {
		_, err := v.PeerNode(chain, now)
		return err
	})
}

// TestOnlyTheLeafIsShown checks that a client sends only its leaf to a server that knows the leaf's issuer.
func TestOnlyTheLeafIsShown(t *testing.T) {
	w := newWorld(t)
	other := must(w.root.NewIntermediate(rand.Reader, start, 30*day))(t).Certificate()
	node := w.certificate(t, w.device, w.issue(t))
	client := cert.ClientConfig(&node, w.verifier(t).ForCoordinator(at(start)))
	for _, c := range []struct {
		what  string
		known []*x509.Certificate
		want  int
	}{
		{"nothing", nil, 3},
		{"another intermediate", []*x509.Certificate{other}, 3},
		{"both", []*x509.Certificate{other, w.intermediate.Certificate()}, 1},
	} {
		v, pool := w.verifier(t), x509.NewCertPool()
		for _, k := range c.known {
			pool.AddCert(k)
			if err := v.AddIntermediates([][]byte{k.Raw}); err != nil {
				t.Fatal(err)
			}
		}
		server := cert.ServerConfig(w.certificate(t, w.coordinator, w.issueCoordinator(t)), pool, func(chain [][]byte) error {
			_, err := v.PeerNode(chain, start)
			return err
		})
		s, _, serverErr, clientErr := shake(t, server, client)
		if serverErr != nil || clientErr != nil {
			t.Errorf("a server that knows %s: server %v, client %v", c.what, serverErr, clientErr)
			continue
		}
		if got := len(cert.Chain(s.ConnectionState())); got != c.want {
			t.Errorf("a server that knows %s saw %d certificates, want %d", c.what, got, c.want)
		}
	}
}

func TestMutualTLS(t *testing.T) {
	w := newWorld(t)
	node := w.certificate(t, w.device, w.issue(t))
	server := w.server(t, w.certificate(t, w.coordinator, w.issueCoordinator(t)), start)
	s, c, serverErr, clientErr := shake(t, server, cert.ClientConfig(&node, w.verifier(t).ForCoordinator(at(start))))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server %v, client %v", serverErr, clientErr)
	}
	a, b := must(cert.Exporter(s.ConnectionState()))(t), must(cert.Exporter(c.ConnectionState()))(t)
	if !bytes.Equal(a, b) || len(a) != 32 {
		t.Errorf("exporters %x and %x", a, b)
	}
	if got := cert.Chain(s.ConnectionState()); len(got) != 3 || !bytes.Equal(got[0], node.Certificate[0]) {
		t.Errorf("the server saw %d certificates", len(got))
	}
	s2, _, _, _ := shake(t, server, cert.ClientConfig(&node, w.verifier(t).ForCoordinator(at(start))))
	if bytes.Equal(a, must(cert.Exporter(s2.ConnectionState()))(t)) {
		t.Error("two connections have the same exporter")
	}
}

func TestJoiningTLS(t *testing.T) {
	w := newWorld(t)
	server := w.server(t, w.certificate(t, w.coordinator, w.issueCoordinator(t)), start)
	pin := cert.Fingerprint(w.root.Certificate())
	_, _, serverErr, clientErr := shake(t, server, cert.ClientConfig(nil, cert.ForJoining(pin, at(start))))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server %v, client %v", serverErr, clientErr)
	}
	v := must(cert.JoinCoordinator(server.Certificates[0].Certificate, pin, start))(t)
	if v.Mesh() != w.mesh || len(v.Roots()) != 1 {
		t.Errorf("joined %s", v.Mesh())
	}
}

// TestServerRefused tries every kind of server that an agent must not talk to, whether it is joining or enrolled.
func TestServerRefused(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	impostor := newWorld(t)
	impostor.mesh = w.mesh
	impostor.root = must(cert.NewRoot(rand.Reader, w.mesh, start, 3650*day))(t)
	impostor.intermediate = must(impostor.root.NewIntermediate(rand.Reader, start, 30*day))(t)
	leaf := w.issueCoordinator(t)
	// The impostor presents the real root above its own leaf.
	dressed := must(cert.TLSCertificate(impostor.coordinator, impostor.issueCoordinator(t),
		impostor.intermediate.Certificate().Raw, w.root.Certificate().Raw))(t)
	bare := must(cert.TLSCertificate(w.coordinator, leaf))(t)
	stolen := tls.Certificate{Certificate: w.chain(leaf), PrivateKey: must(key.NewDevice(rand.Reader))(t)}

	for name, test := range map[string]struct {
		leaf             tls.Certificate
		now              time.Time
		joining, member  error
		handshakeFailure bool
	}{
		"another root":             {leaf: other.certificate(t, other.coordinator, other.issueCoordinator(t)), joining: cert.ErrPin, member: cert.ErrMesh},
		"another root, same mesh":  {leaf: impostor.certificate(t, impostor.coordinator, impostor.issueCoordinator(t)), joining: cert.ErrPin, member: cert.ErrChain},
		"another root, dressed up": {leaf: dressed, joining: cert.ErrChain, member: cert.ErrChain},
		"a node":                   {leaf: w.certificate(t, w.device, w.issue(t)), joining: cert.ErrRole, member: cert.ErrRole},
		"expired":                  {leaf: w.certificate(t, w.coordinator, leaf), now: start.Add(2 * day), joining: cert.ErrExpired, member: cert.ErrExpired},
		"not yet valid":            {leaf: w.certificate(t, w.coordinator, leaf), now: start.Add(-day), joining: cert.ErrNotYetValid, member: cert.ErrNotYetValid},
		"no chain":                 {leaf: bare, joining: cert.ErrPin, member: cert.ErrChain},
		"another's certificate":    {leaf: stolen, handshakeFailure: true},
	} {
		now := test.now
		if now.IsZero() {
			now = start
		}
		for how, c := range map[string]struct {
			verify func([][]byte) error
			want   error
		}{
			"joining": {cert.ForJoining(cert.Fingerprint(w.root.Certificate()), at(now)), test.joining},
			"member":  {w.verifier(t).ForCoordinator(at(now)), test.member},
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				_, _, _, err := shake(t, w.server(t, test.leaf, start), cert.ClientConfig(nil, c.verify))
				if err == nil || (!test.handshakeFailure && !errors.Is(err, c.want)) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			})
		}
	}
}

// TestClientRefused tries every kind of client certificate that a coordinator must not accept.
func TestClientRefused(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	stolen := tls.Certificate{Certificate: w.chain(w.issue(t)), PrivateKey: must(key.NewDevice(rand.Reader))(t)}
	for name, test := range map[string]struct {
		leaf tls.Certificate
		now  time.Time
		want error
	}{
		"of another mesh":       {leaf: other.certificate(t, other.device, other.issue(t)), want: cert.ErrMesh},
		"of a coordinator":      {leaf: w.certificate(t, w.coordinator, w.issueCoordinator(t)), want: cert.ErrRole},
		"expired":               {leaf: w.certificate(t, w.device, w.issue(t)), now: start.Add(2 * time.Hour), want: cert.ErrExpired},
		"another's certificate": {leaf: stolen},
	} {
		t.Run(name, func(t *testing.T) {
			now := test.now
			if now.IsZero() {
				now = start
			}
			server := w.server(t, w.certificate(t, w.coordinator, w.issueCoordinator(t)), now)
			_, _, serverErr, clientErr := shake(t, server, cert.ClientConfig(&test.leaf, w.verifier(t).ForCoordinator(at(start))))
			if serverErr == nil || clientErr == nil || (test.want != nil && !errors.Is(serverErr, test.want)) {
				t.Errorf("server %v, client %v, want %v", serverErr, clientErr, test.want)
			}
		})
	}
}

func TestOldTLSRefused(t *testing.T) {
	w := newWorld(t)
	server := w.server(t, w.certificate(t, w.coordinator, w.issueCoordinator(t)), start)
	client := cert.ClientConfig(nil, w.verifier(t).ForCoordinator(at(start)))
	client.MinVersion, client.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, _, serverErr, clientErr := shake(t, server, client); serverErr == nil || clientErr == nil {
		t.Error("TLS 1.2 taken by the server")
	}
	client = cert.ClientConfig(nil, w.verifier(t).ForCoordinator(at(start)))
	server.MinVersion, server.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, _, serverErr, clientErr := shake(t, server, client); serverErr == nil || clientErr == nil {
		t.Error("TLS 1.2 taken by the client")
	}
	if _, err := cert.Exporter(tls.ConnectionState{Version: tls.VersionTLS12}); err == nil {
		t.Error("an exporter of TLS 1.2")
	}
}

func TestPinnedRoot(t *testing.T) {
	w := newWorld(t)
	chain := w.chain(w.issueCoordinator(t))
	if got := must(cert.PinnedRoot(chain, cert.Fingerprint(w.root.Certificate())))(t); !got.Equal(w.root.Certificate()) {
		t.Error("another root")
	}
	intermediate := must(x509.ParseCertificate(chain[1]))(t)
	for name, test := range map[string]struct {
		chain [][]byte
		pin   [32]byte
		want  error
	}{
		"nothing":            {nil, cert.Fingerprint(w.root.Certificate()), cert.ErrPin},
		"not in the chain":   {chain[:2], cert.Fingerprint(w.root.Certificate()), cert.ErrPin},
		"an intermediate":    {chain, cert.Fingerprint(intermediate), cert.ErrRole},
		"a leaf":             {chain, cert.Fingerprint(must(x509.ParseCertificate(chain[0]))(t)), cert.ErrRole},
		"too long":           {append(chain, chain...), cert.Fingerprint(w.root.Certificate()), cert.ErrMalformed},
		"garbage":            {[][]byte{{1}}, [32]byte{}, cert.ErrMalformed},
		"damaged, same key":  {[][]byte{flip(chain[2], len(chain[2])-1)}, cert.Fingerprint(w.root.Certificate()), cert.ErrChain},
		"the zero signature": {chain, [32]byte{}, cert.ErrPin},
	} {
		if _, err := cert.PinnedRoot(test.chain, test.pin); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}

func TestTLSCertificateRefuses(t *testing.T) {
	w := newWorld(t)
	if _, err := cert.TLSCertificate(w.coordinator, w.issue(t)); !errors.Is(err, cert.ErrMalformed) {
		t.Errorf("key of another: %v", err)
	}
	if _, err := cert.TLSCertificate(w.coordinator, []byte{1}); !errors.Is(err, cert.ErrMalformed) {
		t.Errorf("garbage: %v", err)
	}
}
