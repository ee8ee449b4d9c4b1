package outward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"github.com/coder/websocket"

	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// errNoTunnel means that the other end does not know the tunnel protocol.
var errNoTunnel = errors.New("it leads to no coordinator or relay")

// through speaks mesh TLS with a server behind a proxy that terminates TLS.
func (d Dialer) through(ctx context.Context, u *url.URL, cfg *tls.Config) (*tls.Conn, error) {
	outer, err := d.upgraded(ctx, u)
	if errors.Is(err, errNoTunnel) {
		outer, err = d.webSocket(ctx, u)
	}
	if err != nil {
		return nil, err
	}
	t, err := shake(ctx, outer, u.Host, cfg)
	if err != nil {
		return nil, fmt.Errorf("inside the TLS of a proxy: %w", err)
	}
	return t, nil
}

// outer speaks TLS with anybody. It protects nothing, since whoever terminates it can read everything; the mesh's own TLS inside
// provides the protection.
func (d Dialer) outer(ctx context.Context, u *url.URL) (*tls.Conn, error) {
	return d.shake(ctx, u, &tls.Config{
		ServerName: u.Hostname(), NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // nothing that the other end says is trusted
	})
}

func (d Dialer) upgraded(ctx context.Context, u *url.URL) (net.Conn, error) {
	c, err := d.outer(ctx, u)
	if err != nil {
		return nil, err
	}
	return c, bounded(ctx, c, func() error {
		answer, granted, err := Upgrade(c, c, u.Host, wire.TunnelPath, wire.TunnelProtocol)
		if err != nil {
			return fmt.Errorf("%w: %w", errNoTunnel, err)
		}
		answer.Body.Close()
		if !granted {
			return fmt.Errorf("%w: %.100s", errNoTunnel, answer.Status)
		}
		return nil
	})
}

// webSocket opens the tunnel in a WebSocket, for proxies that pass no other protocol.
func (d Dialer) webSocket(ctx context.Context, u *url.URL) (net.Conn, error) {
	c, err := d.outer(ctx, u)
	if err != nil {
		return nil, err
	}
	var ws *websocket.Conn
	err = bounded(ctx, c, func() error {
		once := &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
		target := url.URL{Scheme: "https", Host: u.Host, Path: wire.TunnelPath}
		var err error
		//nolint:bodyclose // the library closes it, as documented
		ws, _, err = websocket.Dial(ctx, target.String(), &websocket.DialOptions{
			HTTPClient:   &http.Client{Transport: once, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
			Subprotocols: []string{wire.TunnelProtocol},
		})
		if err == nil && ws.Subprotocol() != wire.TunnelProtocol {
			err = errors.New("a WebSocket, but not ours")
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errNoTunnel, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(-1) // the content is a stream; its reader sets the bounds
	return &wsConn{Conn: websocket.NetConn(context.Background(), ws, websocket.MessageBinary), below: c}, nil
}

// wsConn is a stream in a WebSocket with the addresses of the connection below.
type wsConn struct {
	net.Conn
	below net.Conn
}

func (c *wsConn) LocalAddr() net.Addr  { return c.below.LocalAddr() }
func (c *wsConn) RemoteAddr() net.Addr { return c.below.RemoteAddr() }

// Close closes the connection below first: the WebSocket's closing handshake would wait for a peer that may not answer.
func (c *wsConn) Close() error { return errors.Join(c.below.Close(), c.Conn.Close()) }
