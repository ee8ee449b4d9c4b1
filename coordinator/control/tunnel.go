package control

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"

	"github.com/coder/websocket"

	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// A middlebox may terminate TLS itself: a reverse proxy, or a corporate gateway. Then the mesh's own TLS runs inside what that
// passes through, an Upgrade or a WebSocket, and arrives here as another connection:
//
//	agent ══ TLS ══ proxy ══ TLS, no client certificate ══ guest ── GET /v1/tls ─┐
//	  └────────────────── the mesh's TLS ───────────────────────────────────── guest, from inside
//
// It waits in the lobby and authenticates like any other. Nothing that the proxy says about it is trusted.

type guestKey struct{}

// withGuest tells handlers which connection a request came on.
func withGuest(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		return context.WithValue(ctx, guestKey{}, t.NetConn())
	}
	return ctx
}

func (s *Server) tunnel(w http.ResponseWriter, r *http.Request) {
	outer, ok := r.Context().Value(guestKey{}).(*guest)
	if !ok || outer.inside() || outer.node != nil {
		http.Error(w, "this is for TLS that a proxy would end otherwise", http.StatusBadRequest)
		return
	}
	var inner net.Conn
	switch {
	case upgrades(r, wire.TunnelProtocol):
		conn, _, early, ok := hijack(w, r, wire.TunnelProtocol)
		if !ok {
			return
		}
		inner = &tunnelled{Conn: conn, early: early}
		if _, err := conn.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + wire.TunnelProtocol + "\r\n\r\n")); err != nil {
			conn.Close()
			return
		}
	case upgrades(r, "websocket"):
		// Peers authenticate inside the tunnel: neither origin nor cookies count.
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{wire.TunnelProtocol}, InsecureSkipVerify: true})
		if err != nil {
			return // Accept has responded
		}
		if ws.Subprotocol() != wire.TunnelProtocol {
			_ = ws.Close(websocket.StatusPolicyViolation, "want the subprotocol "+wire.TunnelProtocol)
			return
		}
		ws.SetReadLimit(maxMessage)
		near, far := net.Pipe()
		inner = &tunnelled{Conn: near, below: outer}
		if !s.start(func() { s.pump(websocket.NetConn(s.ctx, ws, websocket.MessageBinary), far, outer) }) {
			outer.drop()
			return
		}
	default:
		w.Header().Set("Upgrade", wire.TunnelProtocol+", websocket")
		w.Header().Set("Connection", "Upgrade")
		http.Error(w, "this is for agents behind a proxy that ends TLS", http.StatusUpgradeRequired)
		return
	}
	// From here on the inner guest has the deadline.
	outer.admit()
	s.welcome(inner)
}

// pump copies between a WebSocket and a pipe, because a deadline that passes closes a WebSocket for good, and net/http sets
// such deadlines briefly.
func (s *Server) pump(ws, far net.Conn, outer *guest) {
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(far, ws)
		far.Close()
	})
	_, _ = io.Copy(ws, far)
	far.Close()
	outer.drop()
	back.Wait()
}

// maxMessage bounds a WebSocket message: several TLS records.
const maxMessage = 128 << 10

func upgrades(r *http.Request, protocol string) bool {
	return mentions(r.Header.Values("Upgrade"), protocol) && mentions(r.Header.Values("Connection"), "upgrade")
}

// tunnelled is a connection inside one that a proxy made.
type tunnelled struct {
	net.Conn
	below *guest // the WebSocket's connection, to be dropped on Close; nil for an Upgrade
	early []byte // received together with the request
}

func (c *tunnelled) Read(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// Close does not wait for the WebSocket's closing handshake.
func (c *tunnelled) Close() error {
	if c.below != nil {
		c.below.drop()
	}
	return c.Conn.Close()
}

// RemoteAddr returns the proxy's address, as text only: it says nothing about where the agent is.
func (c *tunnelled) RemoteAddr() net.Addr {
	if c.below != nil {
		return proxied{c.below.RemoteAddr()}
	}
	return proxied{c.Conn.RemoteAddr()}
}

// proxied is a proxy's address, which is nobody's endpoint.
type proxied struct{ addr net.Addr }

func (p proxied) Network() string { return p.addr.Network() }
func (p proxied) String() string  { return "through " + p.addr.String() }

// inside reports whether a guest came through a tunnel.
func (g *guest) inside() bool {
	_, is := g.Conn.(*tunnelled)
	return is
}
