package control

import (
	"crypto/tls"
	"errors"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// Held is the stream on which a node enrolled, while its coordinator waits for the node to attach on it: that saves both of
// them a second handshake. Pass it to Attach or Close it. Its methods do nothing on nil, or once either was called.
type Held struct {
	coordinator string

	mu sync.Mutex
	ch *channel
}

// hold wraps the channel of an enrolment.
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

// move hands the stream over to another owner.
func (h *Held) move() *Held {
	if ch := h.take(); ch != nil {
		return hold(h.coordinator, ch)
	}
	return nil
}

// judge checks that the coordinator on a channel belongs to the node's mesh: while enrolling, the node relied on the root in
// the join code alone.
func (ch *channel) judge(self *identity.Self, now time.Time) error {
	conn, ok := ch.conn.(*tls.Conn)
	if !ok {
		return errors.New("not a TLS connection")
	}
	_, err := self.Verifier.Coordinator(cert.Chain(conn.ConnectionState()), now)
	return err
}
