package control

import (
	"crypto/tls"
	"errors"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// Held is the stream on which a node enrolled, while its coordinator waits for it to attach there: that spares both of them a
// second handshake. Give it to Attach or Close it. Its methods do nothing where there is none (nil), or after the first of them.
type Held struct {
	coordinator string

	mu sync.Mutex
	ch *channel
}

// hold keeps the stream of an enrolment.
func hold(coordinator string, ch *channel) *Held { return &Held{coordinator: coordinator, ch: ch} }

// Close ends the stream.
func (h *Held) Close() {
	if ch := h.take(); ch != nil {
		ch.conn.Close()
	}
}

func (h *Held) take() *channel {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	ch := h.ch
	h.ch = nil
	return ch
}

// move takes the stream for somebody else.
func (h *Held) move() *Held {
	if ch := h.take(); ch != nil {
		return hold(h.coordinator, ch)
	}
	return nil
}

// judge says whether the coordinator on a channel is one of the node's mesh: until it enrolled it went by the root in the
// join code alone.
func (ch *channel) judge(self *identity.Self, now time.Time) error {
	conn, ok := ch.conn.(*tls.Conn)
	if !ok {
		return errors.New("not a TLS connection")
	}
	_, err := self.Verifier.Coordinator(cert.Chain(conn.ConnectionState()), now)
	return err
}
