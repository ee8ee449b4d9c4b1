package control

import (
	"crypto/tls"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// roomPlaces is how many connections may wait. Machines that find no place retry from time to time.
const roomPlaces = 4096

// room holds the connections of authenticated machines that must wait: for approval, or for the end of a lock. Each machine has
// one place; a new connection replaces its previous one.
type room struct {
	places int

	mu     sync.Mutex
	guests map[string]*guest // by who waits
	closed bool
}

func newRoom(places int) *room { return &room{places: places, guests: make(map[string]*guest)} }

// enter gives a connection a place until it leaves.
func (r *room) enter(who string, g *guest) bool {
	r.mu.Lock()
	before, again := r.guests[who]
	if r.closed || !again && len(r.guests) >= r.places {
		r.mu.Unlock()
		return false
	}
	r.guests[who] = g
	r.mu.Unlock()
	if again {
		before.drop()
	}
	g.admit() // to the room, out of the lobby
	return true
}

func (r *room) leave(who string, g *guest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.guests[who] == g {
		delete(r.guests, who)
	}
}

func (r *room) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.guests)
}

// close drops all who wait, and prevents others from entering.
func (r *room) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, g := range r.guests {
		g.drop()
	}
}

// await tells a machine to wait. It returns the function that keeps its connection open until the watch fires or the machine is
// gone, or nil if there is no place. down returns the message to send; hold is the keepalive interval in seconds, 0 if there is
// no place to wait.
func (s *Server) await(t *tls.Conn, g *guest, in *frames, who string, watch *directory.Watch, down func(hold uint32) *redoubtv1.Down) func() {
	if !s.room.enter(who, g) {
		watch.Close()
		lastWord(t, g, down(0))
		drain(t)
		return nil
	}
	return func() {
		defer g.drop()
		defer s.room.leave(who, g)
		defer watch.Close()
		if write(t, down(uint32(keepAlive/time.Second))) == nil {
			s.hold(t, g, in, watch)
		}
	}
}

// hold answers keepalives until the watch fires, the machine leaves or the server closes.
func (s *Server) hold(t *tls.Conn, g *guest, in *frames, watch *directory.Watch) {
	gone := make(chan struct{})
	defer close(gone)
	ends := s.start(func() {
		select {
		case <-watch.Changed():
		case <-s.ctx.Done():
		case <-gone:
		}
		g.drop()
	})
	if !ends {
		return
	}
	pace := pace{tokens: burst, at: time.Now()}
	for {
		_ = t.SetReadDeadline(time.Now().Add(deaf))
		up, _, err := in.next()
		if err != nil || up.GetKeepAlive() == nil || !pace.wait(s.ctx) {
			return
		}
		if write(t, &redoubtv1.Down{Message: &redoubtv1.Down_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{ServerTime: s.Clock().UnixMilli()}}}) != nil {
			return
		}
	}
}

// pendingDown returns the message that tells an enrolling machine what it waits for.
func pendingDown(p *directory.PendingError, hold uint32) *redoubtv1.Down {
	r, _ := refusal.From(p)
	return &redoubtv1.Down{Message: &redoubtv1.Down_Pending{Pending: &redoubtv1.Pending{
		Code: p.Code, Name: p.Name, Message: r.Message, HoldSeconds: hold, RetryAfterSeconds: r.Down().GetRefusal().GetRetryAfterSeconds(),
	}}}
}
