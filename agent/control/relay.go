package control

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/redoubt-mesh/redoubt/netstack/outward"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// OpenRelay opens a stream to a relay by one of its URLs. Verify judges the chain that it shows.
func OpenRelay(ctx context.Context, way outward.Dialer, r *proto.Relay, certificate *tls.Certificate, verify func([][]byte) error) (net.Conn, error) {
	errs := []error{fmt.Errorf("relay %s: no stream", r.Name)}
	for _, u := range r.URLs {
		conn, err := openRelay(ctx, way, u, cert.ClientConfig(certificate, verify))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func openRelay(ctx context.Context, way outward.Dialer, server string, cfg *tls.Config) (net.Conn, error) {
	conn, err := way.Open(ctx, server, cfg)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.NetConn().Close() })
	r, err := upgrade(conn, server, relaymsg.Path, relaymsg.Protocol)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.NetConn().Close()
		return nil, err
	}
	return buffered{conn, r}, nil
}

// buffered is a connection of which something was read too early.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

// Read implements net.Conn.
func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }
