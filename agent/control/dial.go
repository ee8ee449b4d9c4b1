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
	"strconv"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/outward"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// openTimeout is how long opening a stream to a coordinator may take.
const openTimeout = 15 * time.Second

// channel is a connection that carries frames both ways.
type channel struct {
	conn     net.Conn
	r        *bufio.Reader
	exporter []byte
}

// retryError is a refusal that says when to come back.
type retryError struct {
	err   error
	after time.Duration
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

// stagger is how long to wait for a coordinator before also asking the next one.
const stagger = 2 * time.Second

// opened is the outcome of asking one coordinator.
type opened struct {
	url string
	ch  *channel
	err error
}

// first opens a channel to whichever coordinator answers first. It asks them in order from index from on, each when the one
// before has failed or has not answered within stagger.
func (c Config) first(ctx context.Context, from int, certificate *tls.Certificate, verify func([][]byte) error) (*channel, string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan opened, len(c.URLs))
	var errs []error
	asked, waiting := 0, 0
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			if asked == len(c.URLs) {
				continue
			}
			u := c.URLs[(from+asked)%len(c.URLs)]
			asked++
			waiting++
			go func() {
				ch, err := c.open(ctx, u, certificate, verify)
				answers <- opened{u, ch, err}
			}()
			next.Reset(stagger)
		case a := <-answers:
			waiting--
			if a.err == nil {
				cancel()
				for range waiting {
					if late := <-answers; late.ch != nil {
						late.ch.conn.Close()
					}
				}
				return a.ch, a.url, nil
			}
			errs = append(errs, fmt.Errorf("coordinator %s: %w", a.url, a.err))
			if waiting == 0 && asked == len(c.URLs) {
				return nil, "", errors.Join(errs...)
			}
			next.Reset(0)
		}
	}
}

// open dials a coordinator and negotiates TLS and the HTTP upgrade. The certificate is nil when enrolling; verify checks the
// coordinator's chain.
func (c Config) open(ctx context.Context, coordinator string, certificate *tls.Certificate, verify func([][]byte) error) (*channel, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	way := outward.Dialer{Dial: c.Dial, Proxy: c.Proxy}
	conn, err := way.Open(ctx, coordinator, cert.ClientConfig(certificate, verify))
	if err == nil {
		stop := context.AfterFunc(ctx, func() { conn.NetConn().Close() })
		var ch *channel
		if ch, err = upgrade(conn, coordinator); err == nil && stop() {
			return ch, nil
		}
		stop()
		conn.NetConn().Close()
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errMoved):
		return nil, cause
	case cause != nil:
		return nil, fmt.Errorf("no answer within %v", openTimeout)
	}
	return nil, err
}

func upgrade(conn *tls.Conn, coordinator string) (*channel, error) {
	host := strings.TrimPrefix(coordinator, "https://")
	exporter, err := cert.Exporter(conn.ConnectionState())
	if err != nil {
		return nil, fmt.Errorf("TLS with %s: %w", host, err)
	}
	r := bufio.NewReaderSize(conn, 4096)
	answer, granted, err := outward.Upgrade(conn, r, host, wire.Path, wire.Protocol)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", host, err)
	}
	defer answer.Body.Close()
	if !granted {
		return nil, declined(host, answer)
	}
	return &channel{conn: conn, r: r, exporter: exporter}, nil
}

func declined(host string, response *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(response.Body, 300))
	err := fmt.Errorf("%s is not a coordinator, or refuses: %s: %.300q", host, response.Status, strings.TrimSpace(string(text)))
	seconds, perr := strconv.Atoi(response.Header.Get("Retry-After"))
	if perr == nil && seconds > 0 {
		return &retryError{err, min(time.Duration(seconds)*time.Second, time.Hour)}
	}
	return err
}

// named returns how long the coordinator asked us to stay away.
func named(err error) time.Duration {
	var r *retryError
	if errors.As(err, &r) {
		return r.after
	}
	return 0
}
