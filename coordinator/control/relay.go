package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// switchingRelay is the response to a request for an Upgrade to a relay stream.
const switchingRelay = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + relaymsg.Protocol + "\r\n\r\n"

// upgradeRelay hands a node's stream over to the relay.
func (s *Server) upgradeRelay(w http.ResponseWriter, r *http.Request) {
	if s.Relay == nil {
		http.Error(w, "this coordinator has no relay", http.StatusNotFound)
		return
	}
	t, g, early, ok := hijack(w, r, relaymsg.Protocol)
	if !ok {
		return
	}
	if !s.start(func() { s.carry(t, g, early) }) {
		g.drop()
	}
}

// carry has the relay serve a stream until it ends.
func (s *Server) carry(t *tls.Conn, g *guest, early []byte) {
	defer g.drop()
	if g.node == nil || g.outOfTime {
		_, _ = io.WriteString(t, "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		return
	}
	g.patience(time.Now().Add(arrival))
	if _, err := io.WriteString(t, switchingRelay); err != nil {
		return
	}
	g.admit()
	certificate := g.node.Raw
	g.node = nil
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.carried[g] = struct{}{}
	s.mu.Unlock()
	err := s.Relay(&resumed{Conn: t, r: io.MultiReader(bytes.NewReader(early), t)}, certificate)
	s.mu.Lock()
	delete(s.carried, g)
	s.mu.Unlock()
	if err != nil && !isTransport(err) {
		s.Log.Debug("relay stream ended", "remote", g.RemoteAddr(), "err", err)
	}
}

// resumed is a connection from which some bytes have already been read.
type resumed struct {
	net.Conn
	r io.Reader
}

// Read returns the bytes read early first.
func (c *resumed) Read(b []byte) (int, error) { return c.r.Read(b) }

// serves announces an attached relay to nodes.
func (a *attached) serves(m *redoubtv1.Relay) error {
	if m == nil {
		return nil
	}
	r, err := wire.ToRelay(m)
	if err != nil {
		return refusal.Malformed("relay: " + err.Error())
	}
	r.ID, r.Name = a.id, a.node.Name
	if from := remote(a.conn).Addr(); len(r.UDP) == 0 && len(r.URLs) == 0 && from.IsValid() {
		r.UDP = []netip.Addr{from} // it reported no address: use the one it connects from
	}
	if err := r.Validate(); err != nil {
		return refusal.Malformed(err.Error())
	}
	ctx, cancel := context.WithTimeout(a.ctx, step)
	defer cancel()
	a.Log.Info("relay serves", "relay", a.id, "name", r.Name, "udp", r.UDPPort, "remote", a.conn.RemoteAddr())
	return a.Directory.SetRelay(ctx, r)
}

// served withdraws a relay, unless it has attached again already.
func (a *attached) served() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), step)
	defer cancel()
	if err := a.Directory.DropRelay(ctx, a.id); err != nil {
		a.Log.Debug("relay is not taken away", "relay", a.id, "err", err)
	}
}
