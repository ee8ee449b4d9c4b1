package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/acceptor"
	"github.com/redoubt-mesh/redoubt/netstack/outward"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

const (
	// arrival is how long TLS and the Upgrade may take together.
	arrival = 10 * time.Second
	// handshakes is how many streams a Server opens at once; further connections wait to be accepted.
	handshakes = 512
)

// Opener opens streams to relays: its Open can be used in a Config.
type Opener struct {
	// Dial connects to https://HOST[:PORT] and does the TLS handshake with cfg, like outward.Dialer.
	Dial func(ctx context.Context, url string, cfg *tls.Config) (*tls.Conn, error)
	// Certificate returns the node's certificate, with its chain up to the root.
	Certificate func() *tls.Certificate
	// Verify verifies the chain that a relay presents, leaf first.
	Verify func(relay proto.NodeID, chain [][]byte) error
}

// Open opens a stream to a relay at the first of its URLs that works.
func (o Opener) Open(ctx context.Context, relay *proto.Relay) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, arrival*time.Duration(max(1, len(relay.URLs))))
	defer cancel()
	errs := []error{}
	for _, url := range relay.URLs {
		c, err := o.open(ctx, url, relay.ID)
		if err == nil {
			return c, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", url, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (o Opener) open(ctx context.Context, url string, relay proto.NodeID) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, arrival)
	defer cancel()
	t, err := o.Dial(ctx, url, cert.ClientConfig(o.Certificate(), func(chain [][]byte) error { return o.Verify(relay, chain) }))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = t.SetDeadline(time.Unix(1, 0)) })
	c, err := upgrade(t, strings.TrimPrefix(url, "https://"))
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = t.Close()
		return nil, err
	}
	return c, nil
}

// upgrade requests the Upgrade.
func upgrade(t net.Conn, host string) (net.Conn, error) {
	r := bufio.NewReaderSize(t, 4096)
	answer, granted, err := outward.Upgrade(t, r, host, relaymsg.Path, relaymsg.Protocol)
	if err != nil {
		return nil, err
	}
	answer.Body.Close()
	if !granted {
		return nil, fmt.Errorf("it opens no relay stream: %s", answer.Status)
	}
	return &begun{Conn: t, r: r}, nil
}

// begun is a connection whose first bytes may already be in a reader.
type begun struct {
	net.Conn
	r *bufio.Reader
}

// Read implements net.Conn.
func (c *begun) Read(b []byte) (int, error) { return c.r.Read(b) }

// ServeTLS accepts streams until the listener or the server is closed, which is the error that it returns. Config verifies the
// clients; one without a certificate is refused.
func (s *Server) ServeTLS(l net.Listener, config *tls.Config) error {
	stop := context.AfterFunc(s.ctx, func() { l.Close() })
	defer stop()
	slots := make(chan struct{}, handshakes)
	for {
		select {
		case slots <- struct{}{}:
		case <-s.ctx.Done():
			return net.ErrClosed
		}
		c, err := acceptor.Next(s.ctx, l, s.cfg.Log)
		if err != nil {
			if s.ctx.Err() != nil {
				return net.ErrClosed
			}
			return fmt.Errorf("accept relay streams at %s: %w", l.Addr(), err)
		}
		if !s.start(func() { s.arrive(c, config, func() { <-slots }) }) {
			c.Close()
			return net.ErrClosed
		}
	}
}

// Go runs f in a goroutine that Close waits for.
func (s *Server) Go(f func()) { s.start(f) }

// start runs f in a goroutine that Close waits for; it returns false if the server is closed.
func (s *Server) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.all.Go(f)
	}
	return !s.closed
}

// arrive turns a connection into a stream, and serves it.
func (s *Server) arrive(c net.Conn, config *tls.Config, arrived func()) {
	_ = c.SetDeadline(time.Now().Add(arrival))
	stop := context.AfterFunc(s.ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	t := tls.Server(c, config)
	r, err := s.greet(t)
	arrived()
	if !stop() || err != nil {
		s.cfg.Log.Debug("no relay stream", "remote", c.RemoteAddr(), "err", err)
		c.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	if err := s.ServeStream(&begun{Conn: t, r: r}, t.ConnectionState().PeerCertificates[0].Raw); err != nil {
		s.cfg.Log.Debug("relay stream ended", "remote", c.RemoteAddr(), "err", err)
	}
}

// greet does the TLS handshake and answers the request.
func (s *Server) greet(t *tls.Conn) (*bufio.Reader, error) {
	if err := t.HandshakeContext(s.ctx); err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(t, gathered)
	request, err := http.ReadRequest(outward.HeadOf(r))
	if err != nil {
		return nil, err
	}
	switch {
	case request.Method != http.MethodGet || request.URL.Path != relaymsg.Path || !strings.EqualFold(request.Header.Get("Upgrade"), relaymsg.Protocol):
		_, err = io.WriteString(t, "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		return nil, errors.Join(errors.New("a request for something else"), err)
	case len(t.ConnectionState().PeerCertificates) == 0:
		_, err = io.WriteString(t, "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		return nil, errors.Join(errors.New("a client without a certificate"), err)
	}
	_, err = io.WriteString(t, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+relaymsg.Protocol+"\r\n\r\n")
	return r, err
}
