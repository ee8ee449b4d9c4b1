package control

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// holds verifies a proof as a coordinator does.
func (l *lab) holds(a asked, domain string, exporter []byte, p *redoubtv1.Proof) error {
	binding := wire.Binding(domain, a.nonce, exporter, l.self.Node.Public(), l.self.Device.Device(), sha256.Sum256(p.GetPosture()), sha256.Sum256(a.first))
	shared, err := a.ephemeral.Shared(l.self.Node.Public())
	if err != nil {
		return err
	}
	mac := wire.NodeKeyMAC(shared, binding)
	switch {
	case !hmac.Equal(mac[:], p.GetNodeKeyMac()):
		return errors.New("MAC of the node key")
	case !l.self.Device.Device().Verify(binding[:], p.GetDeviceSignature()):
		return errors.New("signature of the device key")
	case domain == wire.DomainEnrol && !l.token.Public().Verify(binding[:], p.GetTokenSignature()):
		return errors.New("signature of the token")
	}
	return nil
}

// enrols is a coordinator that enrols, and closes the stream before one of its messages: 0 the challenge, 1 the result, 2
// none of them.
func (l *lab) enrols(cut int) func(*talk) {
	return func(s *talk) {
		up, raw := s.up()
		if up.GetHello().GetEnrol() == nil || cut == 0 {
			return
		}
		a := ask(l.t, raw, "token")
		s.down(a.message)
		up, _ = s.up()
		if up == nil {
			return
		}
		if err := l.holds(a, wire.DomainEnrol, s.exporter, up.GetProof()); err != nil {
			l.t.Errorf("proof: %v", err)
		}
		if cut == 1 {
			return
		}
		s.down(l.result(1))
		s.up() // until the node closes
	}
}

// enrolNow runs Enrol to its end.
func (l *lab) enrolNow() (*identity.Self, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	self, held, err := Enrol(ctx, l.config(), l.request())
	held.Close()
	return self, err
}

func TestEnrol(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.serve(":443", func(_ int, s *talk) { l.enrols(2)(s) })()
		self, err := l.enrolNow()
		if err != nil {
			t.Fatal(err)
		}
		if self.Node.ID != l.self.ID || self.Record.Mesh != l.mesh.Mesh {
			t.Errorf("enrolled as %v in %v", self.Node.ID, self.Record.Mesh)
		}
		if len(l.heard) == 0 {
			t.Error("the coordinator's time was not heard")
		}
	})
}

// TestEnrolLostReplies checks that, whichever message is lost, the node asks again with the same keys.
func TestEnrolLostReplies(t *testing.T) {
	for cut := range 2 {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t)
			defer l.serve(":443", func(n int, s *talk) {
				if n == 0 {
					l.enrols(cut)(s)
					return
				}
				l.enrols(2)(s)
			})()
			if _, err := l.enrolNow(); err != nil {
				t.Errorf("cut before message %d: %v", cut, err)
			}
			if len(l.dials) != 2 {
				t.Errorf("cut before message %d: %d dials", cut, len(l.dials))
			}
		})
	}
}

func TestEnrolRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		var busy atomic.Bool
		busy.Store(true)
		defer l.serve(":443", func(_ int, s *talk) {
			s.up()
			if busy.Swap(false) {
				s.down(refusal(redoubtv1.Refusal_CODE_BUSY, 40))
			} else {
				s.down(refusal(redoubtv1.Refusal_CODE_TOKEN, 0))
			}
			s.up()
		})()
		_, err := l.enrolNow()
		if err == nil || !strings.Contains(err.Error(), "refused by the test") {
			t.Errorf("%v", err)
		}
		if len(l.dials) != 2 {
			t.Fatalf("%d dials, want one more after `busy`, and none after a final refusal", len(l.dials))
		}
		if d := l.dials[1].Sub(l.dials[0]); d < 40*time.Second || d > 61*time.Second {
			t.Errorf("came back after %v, asked to wait 40 s", d)
		}
	})
}

// TestEnrolWaits checks that the node waits on an open stream for as long as that lasts, and then asks again; without such a
// stream it asks at the time that the coordinator named.
func TestEnrolWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		var alive atomic.Int32
		pending := func(hold, retry uint32) *redoubtv1.Down {
			return &redoubtv1.Down{Message: &redoubtv1.Down_Pending{Pending: &redoubtv1.Pending{
				Code: "BCDF-GHJK", Name: "self", Message: "wait", HoldSeconds: hold, RetryAfterSeconds: retry,
			}}}
		}
		defer l.serve(":443", func(n int, s *talk) {
			if n == 3 {
				l.enrols(2)(s)
				return
			}
			_, raw := s.up()
			s.down(ask(l.t, raw, "token").message)
			s.up()
			if n == 2 {
				s.down(pending(0, 60))
				s.up()
				return
			}
			s.down(pending(25, 60))
			for end := time.Now().Add(time.Hour); time.Now().Before(end); alive.Add(1) {
				if up, _ := s.up(); up.GetKeepAlive() == nil {
					l.t.Errorf("%v, not a keepalive", up)
					return
				}
				s.down(&redoubtv1.Down{Message: &redoubtv1.Down_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}})
			}
		})()
		if _, _, err := Enrol(t.Context(), l.config(), l.request()); err != nil {
			t.Fatal(err)
		}
		var waits int
		for _, e := range l.took() {
			switch e := e.(type) {
			case machine.Pending:
				if waits++; e != (machine.Pending{URL: coordinatorURL, Code: "BCDF-GHJK", Name: "self", Message: "wait"}) {
					t.Errorf("%+v", e)
				}
			case machine.Trouble:
				if e.Reason != "" {
					t.Errorf("trouble: %s", e.Reason)
				}
			}
		}
		if n := alive.Load(); waits != 3 || n < 2*140 || n > 2*150 {
			t.Errorf("told to wait %d times, and said %d times that it is there", waits, n)
		}
		for i, most := range []time.Duration{time.Hour + 30*time.Second, time.Hour + 30*time.Second, 91 * time.Second} {
			if d := l.dials[i+1].Sub(l.dials[i]); d > most || d < most-31*time.Second {
				t.Errorf("dial %d %v after the one before", i+1, d)
			}
		}
	})
}

// TestARefusalThatStands checks that it is reported at once, and that the node comes back as soon as the stream ends.
func TestARefusalThatStands(t *testing.T) {
	attached(t, func(_ *lab, n int, s *talk) {
		s.up()
		if n > 0 {
			s.down(welcome())
			s.until(func(*redoubtv1.Up) bool { return false })
			return
		}
		locked := refusal(redoubtv1.Refusal_CODE_LOCKED, 15)
		locked.GetRefusal().HoldSeconds = 25
		s.down(locked)
		for end := time.Now().Add(time.Hour); time.Now().Before(end); {
			if up, _ := s.up(); up == nil {
				return
			}
			s.down(&redoubtv1.Down{Message: &redoubtv1.Down_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}})
		}
	}, func(l *lab, _ *Client) {
		time.Sleep(time.Second)
		if e := l.took(); len(e) != 1 || e[0].(machine.Refused).Kind != machine.RefusedLocked {
			t.Errorf("%+v", e)
		}
		time.Sleep(time.Hour + time.Minute)
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.dials) < 2 || l.dials[1].Sub(l.dials[0]) > time.Hour+30*time.Second {
			t.Errorf("dials: %v", l.dials)
		}
		if _, ok := l.events[0].(machine.Connected); !ok {
			t.Errorf("%+v", l.events)
		}
	})
}

// TestASilentHoldEnds checks that a node waiting on a silent stream gives it up: the coordinator is gone.
func TestASilentHoldEnds(t *testing.T) {
	attached(t, func(_ *lab, n int, s *talk) {
		s.up()
		locked := refusal(redoubtv1.Refusal_CODE_LOCKED, 15)
		locked.GetRefusal().HoldSeconds = 25
		s.down(locked)
		s.until(func(*redoubtv1.Up) bool { return false }) // never a word
	}, func(l *lab, _ *Client) {
		time.Sleep(10 * time.Minute)
		l.mu.Lock()
		defer l.mu.Unlock()
		if n := len(l.dials); n < 8 || n > 12 {
			t.Errorf("%d dials in ten minutes, want one about every 55 s", n)
		}
	})
}

// TestRenewalIsWithheld checks that the stream continues.
func TestRenewalIsWithheld(t *testing.T) {
	attached(t, func(l *lab, _ int, s *talk) {
		s.up()
		s.down(welcome())
		for {
			up, raw := s.until(func(up *redoubtv1.Up) bool { return up.GetRenew() != nil })
			if up == nil {
				return
			}
			s.down(ask(l.t, raw, "").message)
			s.until(func(up *redoubtv1.Up) bool { return up.GetProof() != nil })
			s.down(&redoubtv1.Down{Message: &redoubtv1.Down_Pending{Pending: &redoubtv1.Pending{Message: "approve it", RetryAfterSeconds: 300}}})
		}
	}, func(l *lab, c *Client) {
		time.Sleep(time.Second)
		l.took()
		for range 2 {
			c.Renew(Renewal{Node: l.self.Node})
			time.Sleep(time.Second)
			e := l.took()
			if len(e) == 0 || e[0] != (machine.RenewFailed{Reason: "approve it", Withheld: true, After: 5 * time.Minute}) {
				t.Errorf("%+v", e)
			}
		}
		if len(l.dials) != 1 {
			t.Errorf("%d dials", len(l.dials))
		}
	})
}

// TestEnrolOtherRoot checks that a coordinator under another root than the join code's gets not one message, whatever its
// TLS says.
func TestEnrolOtherRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		var hello atomic.Bool
		defer l.serve(":443", func(_ int, s *talk) {
			if up, _ := s.up(); up != nil {
				hello.Store(true)
			}
		})()
		r := l.request()
		other := identitytest.New(time.Now())
		r.Root = cert.Fingerprint(other.Root.Certificate())
		_, _, err := Enrol(t.Context(), l.config(), r)
		if !errors.Is(err, cert.ErrPin) {
			t.Fatalf("%v", err)
		}
		wanted, shown := cert.Fingerprint(other.Root.Certificate()), cert.Fingerprint(l.mesh.Root.Certificate())
		for _, f := range [][32]byte{wanted, shown} {
			if !strings.Contains(err.Error(), fmt.Sprintf("%x", f[:6])) {
				t.Errorf("%q does not name %x", err, f[:6])
			}
		}
		synctest.Wait()
		if hello.Load() {
			t.Error("it was told who we are")
		}
	})
}

// TestEnrolNonsense checks that a misbehaving coordinator leaves the node unchanged, and that the node keeps trying.
func TestEnrolNonsense(t *testing.T) {
	other := func(l *lab) *redoubtv1.Down {
		m := identitytest.New(time.Now().Add(-time.Hour))
		r := m.Record(l.self, 1, time.Now(), time.Hour)
		return &redoubtv1.Down{Message: &redoubtv1.Down_Result{Result: &redoubtv1.Result{
			Certificate: r.Chain[0], Chain: r.Chain[1:], Roots: append(r.Roots, l.mesh.Root.Certificate().Raw), Mesh: wire.FromMesh(r.Mesh),
		}}}
	}
	for name, answer := range map[string]func(l *lab, s *talk, raw []byte){
		"result at once":     func(l *lab, s *talk, _ []byte) { s.down(l.result(1)) },
		"welcome":            func(_ *lab, s *talk, _ []byte) { s.down(welcome()) },
		"huge frame":         func(_ *lab, s *talk, _ []byte) { _, _ = s.Write([]byte{0x7f, 0xff, 0xff, 0xff}) },
		"rubbish":            func(_ *lab, s *talk, _ []byte) { _, _ = s.Write([]byte{0, 0, 0, 2, 0xff, 0xff}) },
		"unknown evidence":   func(l *lab, s *talk, raw []byte) { s.down(ask(l.t, raw, "tpm").message) },
		"another's identity": func(l *lab, s *talk, raw []byte) { s.down(ask(l.t, raw, "token").message); s.up(); s.down(other(l)) },
		"a wait without a proof": func(_ *lab, s *talk, _ []byte) {
			s.down(&redoubtv1.Down{Message: &redoubtv1.Down_Pending{Pending: &redoubtv1.Pending{HoldSeconds: 1 << 30}}})
		},
		"two challenges": func(l *lab, s *talk, raw []byte) {
			s.down(ask(l.t, raw, "token").message, ask(l.t, raw, "token").message)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.serve(":443", func(n int, s *talk) {
					if n > 0 {
						l.enrols(2)(s)
						return
					}
					_, raw := s.up()
					answer(l, s, raw)
					for up, _ := s.up(); up != nil; up, _ = s.up() {
					}
				})()
				if _, err := l.enrolNow(); err != nil {
					t.Errorf("%v", err)
				}
				if e := l.took(); len(e) != 1 {
					t.Errorf("events %v, want one that says what was wrong", e)
				}
			})
		})
	}
}
