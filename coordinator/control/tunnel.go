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

// Something on the way may end TLS itself: a reverse proxy, a company's gateway. Then the mesh's own TLS runs inside what that
// passes, an Upgrade or a WebSocket, and arrives here as one more connection:
//
//	agent ══ TLS ══ proxy ══ TLS, nobody's certificate ══ guest ── GET /v1/tls ─┐
//	  └────────────────── the mesh's TLS ──────────────────────────────────── guest, from inside
//
// It waits in the lobby as any other, and proves itself as any other. What the proxy says of it is not asked.

type guestKey struct{}

// withGuest lets handlers know below which connection a request came.
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
		// Whoever may speak here shows that inside: no origin and no cookie counts.
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{wire.TunnelProtocol}, InsecureSkipVerify: true})
		if err != nil {
			return // it has answered
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
	// From here on it is the inner guest that has to hurry.
	outer.admit()
	s.welcome(inner)
}

// pump moves what comes and goes in a WebSocket: a deadline that passes ends a WebSocket for good, and net/http sets such for
// moments.
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

// maxMessage bounds a message of a WebSocket: several records of TLS.
const maxMessage = 128 << 10

func upgrades(r *http.Request, protocol string) bool {
	return mentions(r.Header.Values("Upgrade"), protocol) && mentions(r.Header.Values("Connection"), "upgrade")
}

// tunnelled is a connection inside one that a proxy made.
type tunnelled struct {
	net.Conn
	below *guest // what a WebSocket's end leaves open; nil for an Upgrade
	early []byte // came together with the request
}

func (c *tunnelled) Read(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// Close does not wait for the good-bye of a WebSocket.
func (c *tunnelled) Close() error {
	if c.below != nil {
		c.below.drop()
	}
	return c.Conn.Close()
}

// RemoteAddr is the proxy's, as text: it says nothing of where the agent is.
func (c *tunnelled) RemoteAddr() net.Addr {
	if c.below != nil {
		return proxied{c.below.RemoteAddr()}
	}
	return proxied{c.Conn.RemoteAddr()}
}

// proxied is the address of a proxy, which is nobody's endpoint.
type proxied struct{ addr net.Addr }

func (p proxied) Network() string { return p.addr.Network() }
func (p proxied) String() string  { return "through " + p.addr.String() }

// inside says whether a guest came through a tunnel.
func (g *guest) inside() bool {
	_, is := g.Conn.(*tunnelled)
	return is
}
