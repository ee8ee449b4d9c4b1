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

// Dialer opens connections to the servers of the mesh.
type Dialer struct {
	// Dial opens underlay connections, as net.Dialer does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Proxy returns the proxy to use for a server, or nil for none. A nil Proxy means no proxies.
	Proxy func(*url.URL) (*url.URL, error)
}

// Environment is a Proxy function for a Dialer. It follows HTTPS_PROXY and NO_PROXY as they were when the program started.
func Environment(server *url.URL) (*url.URL, error) {
	return http.ProxyFromEnvironment(&http.Request{URL: server})
}

// ErrTLS means that TLS with a server failed: the other end is not part of the mesh, or does not accept us as part of it.
var ErrTLS = errors.New("TLS")

// Open connects to https://HOST[:PORT] and performs a TLS handshake with cfg, which verifies the peer. ctx bounds Open only, not
// the connection that it returns.
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

// shake connects to a server and performs a TLS handshake.
func (d Dialer) shake(ctx context.Context, u *url.URL, cfg *tls.Config) (*tls.Conn, error) {
	raw, err := d.reach(ctx, u)
	if err != nil {
		return nil, err
	}
	return shake(ctx, raw, u.Host, cfg)
}

// shake performs a TLS handshake over raw, which it closes on failure.
func shake(ctx context.Context, raw net.Conn, host string, cfg *tls.Config) (*tls.Conn, error) {
	t := tls.Client(raw, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("%w with %s: %w", ErrTLS, host, err)
	}
	return t, nil
}

// reach opens the connection beneath TLS.
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

// hostPort returns the host and port of a URL, with the default port of its scheme.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// bounded runs f on a connection, and closes the connection if ctx ends first or f fails.
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
