package control

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// openTimeout is how long a coordinator may take until it has agreed to the stream.
const openTimeout = 15 * time.Second

// channel is a connection on which frames go back and forth.
type channel struct {
	conn     net.Conn
	r        *bufio.Reader
	exporter []byte
}

// retryError is a refusal that names when to come back.
type retryError struct {
	err   error
	after time.Duration
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

// open dials a coordinator, and speaks TLS and HTTP until frames can go. The certificate is nil when enrolling; verify judges
// the coordinator's chain.
func (c Config) open(ctx context.Context, coordinator string, certificate *tls.Certificate, verify func([][]byte) error) (*channel, error) {
	u, err := url.Parse(coordinator)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("coordinator %.100q: want https://HOST[:PORT]", coordinator)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	raw, err := c.Dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	conn := tls.Client(raw, cert.ClientConfig(certificate, verify))
	ch, err := upgrade(ctx, conn, u.Host)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		raw.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("%s did not answer within %v", u.Host, openTimeout)
		}
		return nil, err
	}
	return ch, nil
}

func upgrade(ctx context.Context, conn *tls.Conn, host string) (*channel, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS with %s: %w", host, err)
	}
	exporter, err := cert.Exporter(conn.ConnectionState())
	if err != nil {
		return nil, fmt.Errorf("TLS with %s: %w", host, err)
	}
	request := "GET " + wire.Path + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: " + wire.Protocol + "\r\n\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		return nil, fmt.Errorf("ask %s for a stream: %w", host, err)
	}
	r := bufio.NewReaderSize(conn, 4096)
	// The head of the answer fits the reader's buffer several times; what does not end by then is none.
	head := io.LimitReader(r, 16<<10)
	response, err := http.ReadResponse(bufio.NewReaderSize(oneByte{head}, 16), nil)
	if err != nil {
		return nil, fmt.Errorf("%s answers something else than HTTP: %w", host, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(response.Header.Get("Upgrade"), wire.Protocol) {
		return nil, declined(host, response)
	}
	return &channel{conn: conn, r: r, exporter: exporter}, nil
}

// oneByte keeps a reader above from taking more than it needs: frames follow the head at once.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1)]) }

func declined(host string, response *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(response.Body, 300))
	err := fmt.Errorf("%s is no coordinator, or declines: %s: %.300q", host, response.Status, strings.TrimSpace(string(text)))
	seconds, perr := strconv.Atoi(response.Header.Get("Retry-After"))
	if perr == nil && seconds > 0 {
		return &retryError{err, min(time.Duration(seconds)*time.Second, time.Hour)}
	}
	return err
}

// named is how long a coordinator asked us to stay away.
func named(err error) time.Duration {
	var r *retryError
	if errors.As(err, &r) {
		return r.after
	}
	return 0
}
