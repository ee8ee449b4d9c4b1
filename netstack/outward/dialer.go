package outward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
)

// Dialer opens connections to servers of the mesh.
type Dialer struct {
	// Dial makes the connections of the underlay, as net.Dialer does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Proxy says by which proxy a server is reached, nil for none. A nil Proxy says so of every server.
	Proxy func(*url.URL) (*url.URL, error)
}

// Environment is a Dialer's Proxy by HTTPS_PROXY and NO_PROXY, as they were when the program began.
func Environment(server *url.URL) (*url.URL, error) {
	return http.ProxyFromEnvironment(&http.Request{URL: server})
}

// ErrTLS says that TLS with a server failed: what answered is not of the mesh, or does not take us for one.
var ErrTLS = errors.New("TLS")

// Open connects to https://HOST[:PORT] and shakes hands by cfg, which judges who is there. It does not outlast ctx; what it
// returns does.
func (d Dialer) Open(ctx context.Context, server string, cfg *tls.Config) (*tls.Conn, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("server %.100q: want https://HOST[:PORT]", server)
	}
	t, err := d.shake(ctx, u, cfg)
	if !errors.Is(err, ErrTLS) || ctx.Err() != nil {
		return t, err
	}
	inner, through := d.through(ctx, u, cfg)
	if errors.Is(through, errNoTunnel) {
		return nil, fmt.Errorf("%w; and should it be a proxy that ends TLS: %w", err, through)
	}
	return inner, through
}

// shake connects to a server and speaks TLS with it.
func (d Dialer) shake(ctx context.Context, u *url.URL, cfg *tls.Config) (*tls.Conn, error) {
	raw, err := d.reach(ctx, u)
	if err != nil {
		return nil, err
	}
	return shake(ctx, raw, u.Host, cfg)
}

// shake speaks TLS over a connection, which it closes where that fails.
func shake(ctx context.Context, raw net.Conn, host string, cfg *tls.Config) (*tls.Conn, error) {
	t := tls.Client(raw, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("%w with %s: %w", ErrTLS, host, err)
	}
	return t, nil
}

// reach makes the connection below TLS.
func (d Dialer) reach(ctx context.Context, u *url.URL) (net.Conn, error) {
	target := hostPort(u)
	var proxy *url.URL
	if d.Proxy != nil {
		var err error
		if proxy, err = d.Proxy(u); err != nil {
			return nil, fmt.Errorf("proxy for %s: %w", u.Host, err)
		}
	}
	if proxy == nil {
		return d.Dial(ctx, "tcp", target)
	}
	c, err := d.connect(ctx, proxy, target)
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
	}
	return c, nil
}

// hostPort is where a URL points, with the port that its scheme has.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// bounded runs f on a connection whose deadlines end with ctx. A connection on which f fails is closed.
func bounded(ctx context.Context, c net.Conn, f func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	err := f()
	if !stop() {
		return context.Cause(ctx)
	}
	if err != nil {
		c.Close()
	}
	return err
}
