package distribute

import (
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Session is a connected node. A node has at most one: a new session ends the previous one.
type Session struct {
	hub    *Hub
	record *record
	stream Stream
	turn   uint64 // counts the sessions of the record
}

// Attach begins the session of a node that declares features and enforces the version applied (zero if none). It refuses a
// node that is not trusted.
func (h *Hub) Attach(id proto.NodeID, features []string, applied proto.Version, stream Stream) (*Session, error) {
	s := &Session{hub: h, stream: stream}
	h.mu.Lock()
	r := h.nodes[id]
	if r == nil {
		r = &record{id: id}
		h.nodes[id] = r
	}
	if r.place != nil {
		h.away.Remove(r.place)
		r.place = nil
	}
	s.record = r
	before := r.session
	r.session = s
	r.sessions++
	s.turn = r.sessions
	h.mu.Unlock()
	if before != nil {
		before.stream.End(refusal.Replaced())
	}
	// Ask the directory only after publishing the session: a concurrent revocation is either seen here or ends the session.
	source := h.await(id)
	n, known := h.config.Directory.Snapshot().Lookup(id)
	if !known || n.Dismissed() {
		s.Close()
		return nil, refusal.Of(n)
	}
	enforced, ok := r.begin(s.turn, features, applied, source.Snapshot.Version())
	if !ok {
		return nil, refusal.Replaced()
	}
	if r.refresh(source.bind(), h.config.Clock()) {
		stream.Wake()
	}
	// The previous stream may have lost its acknowledgement.
	h.waits.acked(id, enforced)
	return s, nil
}

// await returns the source; if it does not contain the node yet, it makes the hub look at the node in its next round.
func (h *Hub) await(id proto.NodeID) Source {
	h.mu.Lock()
	defer h.mu.Unlock()
	source := *h.source.Load()
	if _, known := source.Snapshot.Lookup(id); !known {
		h.fresh = append(h.fresh, id)
	}
	return source
}

// Next returns what to send to the node, or false if it has been sent everything or has another session.
func (s *Session) Next() (Update, bool) {
	u, ok := s.record.next(s.turn)
	if ok {
		s.hub.metrics.sent(u)
	} else {
		s.hub.waits.review(s.hub.behind, s.record.id) // it may turn out to have everything
	}
	return u, ok
}

// Applied notes that the node's data path enforces a version. It returns false if the node was never sent that version, or
// too long ago, or has another session.
func (s *Session) Applied(v proto.Version) bool {
	lagged, news, ok := s.record.ack(s.turn, v, s.hub.config.Clock())
	if news {
		if lagged > 0 {
			s.hub.metrics.enforced.Observe(lagged.Seconds())
		}
		s.hub.waits.acked(s.record.id, v)
	}
	return ok
}

// Attached reports whether a node has a session.
func (h *Hub) Attached(id proto.NodeID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.nodes[id]
	return r != nil && r.session != nil
}

// Close ends the session; the hub keeps the node's record for a while. It may be called more than once.
func (s *Session) Close() {
	h := s.hub
	h.mu.Lock()
	r := s.record
	if r.session == s {
		r.session = nil
		if h.nodes[r.id] == r {
			r.left = h.config.Clock()
			r.place = h.away.PushBack(r)
		}
	}
	full := h.away.Len() > maxAway
	h.mu.Unlock()
	if full {
		h.prune()
	}
}
