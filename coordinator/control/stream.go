package control

import (
	"crypto/tls"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/distribute"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// maxOutbox bounds the messages waiting to be written, apart from netmaps: replies to the node's requests, one at a time, and a
// keepalive.
const maxOutbox = 8

// stream is the connection of a known node. One goroutine reads and decides (see attach.go); messages to write are put in the
// outbox or come from the session. At most one writer of the pool writes them at a time.
type stream struct {
	server  *Server
	conn    *tls.Conn
	guest   *guest
	id      proto.NodeID
	beat    int // the beat in which the stream is checked, guarded by Server.mu
	session atomic.Pointer[distribute.Session]
	// expires is when the node's certificate expires, in Unix nanoseconds.
	expires atomic.Int64

	mu      sync.Mutex
	outbox  []*redoubtv1.Down
	queued  bool // a writer is scheduled or running
	again   bool // and must look once more
	ending  *refusal.Refusal
	said    chan struct{} // closed when the refusal was sent, or could not be
	stopped bool
	spoke   time.Time // time of the last write
}

func (s *Server) newStream(t *tls.Conn, g *guest, id proto.NodeID) (*stream, bool) {
	st := &stream{server: s, conn: t, guest: g, id: id, said: make(chan struct{}), spoke: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false
	}
	s.streams.add(st)
	g.writers = s.writers
	return st, true
}

// stop ends the stream's own activity; the connection stays open for a final message.
func (st *stream) stop() {
	st.mu.Lock()
	st.stopped = true
	st.mu.Unlock()
	if session := st.session.Load(); session != nil {
		session.Close()
	}
	st.server.mu.Lock()
	st.server.streams.remove(st)
	st.server.mu.Unlock()
}

// send puts a message in the outbox.
func (st *stream) send(m *redoubtv1.Down) {
	st.mu.Lock()
	if len(st.outbox) >= maxOutbox {
		st.mu.Unlock()
		st.guest.drop() // it sends requests without reading the replies
		return
	}
	st.outbox = append(st.outbox, m)
	st.mu.Unlock()
	st.Wake()
}

// Wake implements distribute.Stream.
func (st *stream) Wake() {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.stopped:
	case st.queued:
		st.again = true
	default:
		st.queued = true
		st.server.writers.submit(st.flush)
	}
}

// End implements distribute.Stream.
func (st *stream) End(r *refusal.Refusal) {
	st.server.Log.Info("stream ended", "node", st.id, "remote", st.conn.RemoteAddr(), "code", codeName(r.Code))
	st.server.metrics.refusals.WithLabelValues(codeName(r.Code)).Inc()
	st.end(r)
}

func (st *stream) end(r *refusal.Refusal) {
	st.mu.Lock()
	if st.ending == nil {
		st.ending = r
	}
	st.mu.Unlock()
	// A node that does not read gets no more time for the message in progress.
	st.guest.patience(time.Now().Add(parting))
	st.Wake()
}

// ended reports whether the final message was sent or is about to be.
func (st *stream) ended() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.ending != nil
}

// speak sends a keepalive if nothing was sent for a while.
func (st *stream) speak(now time.Time) {
	st.mu.Lock()
	silent := now.Sub(st.spoke) >= keepAlive/2
	st.mu.Unlock()
	if !st.expired() && silent {
		st.send(&redoubtv1.Down{Message: &redoubtv1.Down_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{ServerTime: st.server.Clock().UnixMilli()}}})
	}
}

// expired ends the stream of a node whose certificate has expired. It is called before any netmap is sent.
func (st *stream) expired() bool {
	if st.session.Load() == nil || st.server.Clock().UnixNano() <= st.expires.Load() {
		return false
	}
	st.End(&refusal.Refusal{
		Code: redoubtv1.Refusal_CODE_EXPIRED, Message: "the node's certificate ended while it was connected; connect again and renew it", RetryAfter: time.Second,
	})
	return true
}

// flush writes what is due. It runs on a writer of the pool.
func (st *stream) flush() {
	for {
		st.mu.Lock()
		out, ending := st.outbox, st.ending
		st.outbox, st.again = nil, false
		stopped := st.stopped
		st.mu.Unlock()
		if stopped {
			return
		}
		if ending != nil {
			lastWord(st.conn, st.guest, ending.Down())
			close(st.said)
			return
		}
		if err := st.writeAll(out); err != nil {
			st.guest.drop()
			close(st.said)
			return
		}
		st.mu.Lock()
		if !st.again && len(st.outbox) == 0 {
			st.queued = false
			st.mu.Unlock()
			return
		}
		st.mu.Unlock()
	}
}

func (st *stream) writeAll(out []*redoubtv1.Down) error {
	for _, m := range out {
		if err := st.write(m); err != nil {
			return err
		}
	}
	session := st.session.Load()
	if session == nil || st.expired() {
		return nil
	}
	u, ok := session.Next()
	if !ok {
		return nil
	}
	for _, m := range messages(u) {
		if err := st.write(m); err != nil {
			return err
		}
	}
	st.Wake() // to look for what arrived in the meantime
	return nil
}

func (st *stream) write(m *redoubtv1.Down) error {
	if err := write(st.conn, m); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.spoke = time.Now()
	return nil
}

// messages returns the frames of an update.
func messages(u distribute.Update) []*redoubtv1.Down {
	var out []*redoubtv1.Down
	if u.Netmap != nil {
		for _, p := range wire.FromNetmap(u.Netmap) {
			out = append(out, &redoubtv1.Down{Message: &redoubtv1.Down_Netmap{Netmap: p}})
		}
		return out
	}
	for _, p := range wire.FromDelta(u.Delta) {
		out = append(out, &redoubtv1.Down{Message: &redoubtv1.Down_Delta{Delta: p}})
	}
	return out
}
