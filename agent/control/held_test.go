package control

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// offers is a coordinator that enrols, lets the node stay, and continues on the same stream.
func (l *lab) offers(then func(*talk)) func(*talk) {
	return func(s *talk) {
		up, raw := s.up()
		if !up.GetHello().GetEnrol().GetStays() {
			l.t.Errorf("the first message of a machine that would stay: %v", up)
			return
		}
		a := ask(l.t, raw, "token")
		s.down(a.message)
		up, _ = s.up()
		if err := l.holds(a, wire.DomainEnrol, s.exporter, up.GetProof()); err != nil {
			l.t.Errorf("proof: %v", err)
		}
		result := l.result(1)
		result.GetResult().Stays = true
		s.down(result)
		then(s)
	}
}

// welcomes is a coordinator that serves an attached node.
func (l *lab) welcomes(s *talk) {
	up, _ := s.up()
	if up.GetHello().GetAttach() == nil {
		return
	}
	s.down(welcome())
	for _, p := range wire.FromNetmap(l.mesh.Netmap(l.self, 4, 0)) {
		s.down(&redoubtv1.Down{Message: &redoubtv1.Down_Netmap{Netmap: p}})
	}
	for up, _ := s.up(); up != nil; up, _ = s.up() {
	}
}

// held enrols, and attaches with the held stream.
func held(t *testing.T, serve func(l *lab, n int, s *talk), want int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.serve(":443", func(n int, s *talk) { serve(l, n, s) })()
		self, h, err := Enrol(t.Context(), l.config(), l.request())
		if err != nil {
			t.Fatal(err)
		}
		if h == nil {
			t.Fatal("the stream was not held")
		}
		c := Attach(l.config(), self, proto.Version{}, h)
		h.Close() // the client owns the stream by now
		time.Sleep(5 * time.Second)
		c.Close()
		if len(l.dials) != want {
			t.Errorf("%d dials, want %d", len(l.dials), want)
		}
		for i, e := range l.took() {
			switch e := e.(type) {
			case machine.Connected:
				if i != 0 || e.URL != coordinatorURL {
					t.Errorf("event %d: %+v", i, e)
				}
			case machine.Snapshot:
				if i != 1 || e.Netmap.Version.N != 4 {
					t.Errorf("event %d: %+v", i, e)
				}
			default:
				t.Errorf("event %d: %+v", i, e)
			}
		}
	})
}

// TestHeld checks that a node continues on the stream on which it enrolled, without a second handshake.
func TestHeld(t *testing.T) {
	held(t, func(l *lab, _ int, s *talk) { l.offers(l.welcomes)(s) }, 1)
}

// TestHeldTooLong checks that a coordinator that did not wait long enough is dialled again, at once and without complaint.
func TestHeldTooLong(t *testing.T) {
	held(t, func(l *lab, n int, s *talk) {
		if n == 0 {
			l.offers(func(*talk) {})(s)
			return
		}
		l.welcomes(s)
	}, 2)
}

// TestHeldByAStranger checks that a held stream is not used if the mesh's roots do not vouch for its coordinator: the join
// code's root was for that enrolment only.
func TestHeldByAStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.serve(":443", func(_ int, s *talk) {
			l.offers(func(s *talk) {
				if up, _ := s.up(); up != nil {
					t.Errorf("a stranger was told %v", up)
				}
			})(s)
		})()
		_, h, err := Enrol(t.Context(), l.config(), l.request())
		if err != nil {
			t.Fatal(err)
		}
		home := identitytest.New(time.Now().Add(-time.Hour))
		cfg := l.config()
		cfg.URLs = []string{"https://192.0.2.9"}
		c := Attach(cfg, home.Self(l.self, 1, time.Now(), time.Hour), proto.Version{}, h)
		time.Sleep(time.Second)
		c.Close()
	})
}

// TestHeldAndRefused checks that a node that is refused on the held stream learns why.
func TestHeldAndRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.serve(":443", func(_ int, s *talk) {
			l.offers(func(s *talk) {
				s.up()
				s.down(refusal(redoubtv1.Refusal_CODE_REVOKED, 0))
				s.up()
			})(s)
		})()
		self, h, err := Enrol(t.Context(), l.config(), l.request())
		if err != nil {
			t.Fatal(err)
		}
		c := Attach(l.config(), self, proto.Version{}, h)
		time.Sleep(time.Second)
		c.Close()
		e := l.took()
		if len(e) != 1 || len(l.dials) != 1 {
			t.Fatalf("events %v after %d dials", e, len(l.dials))
		}
		if r, ok := e[0].(machine.Refused); !ok || r.Kind != machine.RefusedRevoked {
			t.Errorf("%+v", e[0])
		}
	})
}

// TestHeldIsClosed checks that a stream that nobody takes is closed, however often Close is called.
func TestHeldIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		closed := make(chan struct{})
		defer l.serve(":443", func(_ int, s *talk) {
			l.offers(func(s *talk) {
				if up, _ := s.up(); up != nil {
					t.Errorf("%v on a stream that was let go", up)
				}
				close(closed)
			})(s)
		})()
		_, h, err := Enrol(t.Context(), l.config(), l.request())
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
		h.Close()
		<-closed
		(*Held)(nil).Close()
	})
}
