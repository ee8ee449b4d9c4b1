package outward

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// connect asks a proxy for a connection to target (RFC 9110, section 9.3.6).
func (d Dialer) connect(ctx context.Context, proxy *url.URL, target string) (net.Conn, error) {
	if proxy.Scheme != "http" && proxy.Scheme != "https" {
		return nil, fmt.Errorf("%s proxies are not known, only http and https: see HTTPS_PROXY", proxy.Scheme)
	}
	c, err := d.Dial(ctx, "tcp", hostPort(proxy))
	if err != nil {
		return nil, err
	}
	if proxy.Scheme == "https" {
		t, err := shake(ctx, c, proxy.Host, &tls.Config{ServerName: proxy.Hostname(), MinVersion: tls.VersionTLS12})
		if err != nil {
			// Not ErrTLS: the failure concerns the proxy, and trying to tunnel through TLS would not help.
			return nil, errors.New(err.Error())
		}
		c = t
	}
	return c, bounded(ctx, c, func() error { return ask(c, proxy.User, target) })
}

func ask(c net.Conn, user *url.Userinfo, target string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", target, target)
	if user != nil {
		password, _ := user.Password()
		b.WriteString("Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)) + "\r\n")
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(c, b.String()); err != nil {
		return err
	}
	// To close the body would read as much as the head promises. After a refusal nobody needs it; after consent there is none,
	// whatever the head says, and what follows is the tunnel's.
	answer, err := http.ReadResponse(HeadOf(c), &http.Request{Method: http.MethodConnect}) //nolint:bodyclose // see above
	if err != nil {
		return fmt.Errorf("it answers something else than HTTP: %w", err)
	}
	switch {
	case answer.StatusCode == http.StatusProxyAuthRequired:
		return fmt.Errorf("%s: put the user and the password into HTTPS_PROXY, http://USER:PASSWORD@HOST:PORT", answer.Status)
	case answer.StatusCode/100 != 2:
		return fmt.Errorf("it refuses a connection to %s: %.100s", target, answer.Status)
	}
	return nil
}
