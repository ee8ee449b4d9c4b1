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

// maxOutbox bounds what waits to be written besides netmaps: answers to what the node asked, one at a time, and a keepalive.
const maxOutbox = 8

// stream is the connection of a node that is known. One goroutine reads and decides (see attach.go); what is to be written
// is put in the outbox or found in the session by a writer of the pool, at most one at a time.
type stream struct {
	server  *Server
	conn    *tls.Conn
	guest   *guest
	id      proto.NodeID
	beat    int // when the stream is looked at, guarded by Server.mu
	session atomic.Pointer[distribute.Session]
	// expires is when the certificate that the node has ends, in Unix nanoseconds.
	expires atomic.Int64

	mu      sync.Mutex
	outbox  []*redoubtv1.Down
	queued  bool // a writer is on its way or at work
	again   bool // and must look once more
	ending  *refusal.Refusal
	said    chan struct{} // closed when the refusal was said, or could not be
	stopped bool
	spoke   time.Time // when something was written last
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

// stop ends what the stream does by itself; the connection is still open for a last word.
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
		st.guest.drop() // it asks, and does not read the answers
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
	// A node that does not read gets no more time for what it is being sent.
	st.guest.patience(time.Now().Add(parting))
	st.Wake()
}

// ended says that the last word was said or is about to be.
func (st *stream) ended() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.ending != nil
}

// speak says something if nothing was said for a while.
func (st *stream) speak(now time.Time) {
	st.mu.Lock()
	silent := now.Sub(st.spoke) >= keepAlive/2
	st.mu.Unlock()
	if !st.expired() && silent {
		st.send(&redoubtv1.Down{Message: &redoubtv1.Down_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{ServerTime: st.server.Clock().UnixMilli()}}})
	}
}

// expired ends the stream of a node whose certificate has ended. It is asked before anything is said of the mesh.
func (st *stream) expired() bool {
	if st.session.Load() == nil || st.server.Clock().UnixNano() <= st.expires.Load() {
		return false
	}
	st.End(&refusal.Refusal{
		Code: redoubtv1.Refusal_CODE_EXPIRED, Message: "the node's certificate ended while it was connected; connect again and renew it", RetryAfter: time.Second,
	})
	return true
}

// flush writes what is due. It runs in a writer of the pool.
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
	st.Wake() // to look for what came meanwhile
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

// messages are the frames of an update.
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
