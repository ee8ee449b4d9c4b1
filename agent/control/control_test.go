package control

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// holds judges a proof as a coordinator does.
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

// enrols is a coordinator that enrols, and closes the stream before one of its messages: 0 the challenge, 1 the result,
// 2 none of them.
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

// Whichever message is lost: the node asks again, with the same keys.
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

// TestEnrolWaits on a stream that stays open, for as long as it takes, and asks again when that ends; without such a stream it asks
// when the coordinator said.
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

// TestARefusalThatStands is told at once, and when the stream ends it is worth coming back.
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

// TestASilentHoldEnds for who waits: the coordinator is gone.
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

// TestRenewalIsWithheld: the stream goes on.
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

// A coordinator under another root than the join code's gets not one message, whatever its TLS says.
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

// What a coordinator may do wrong leaves the node as it was, and it goes on trying.
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

// attached runs a client against a coordinator for as long as f lasts.
func attached(t *testing.T, serve func(l *lab, n int, s *talk), f func(l *lab, c *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		stop := l.serve(":443", func(n int, s *talk) { serve(l, n, s) })
		c := Attach(l.config(), l.mesh.Self(l.self, 1, time.Now(), time.Hour), proto.Version{Epoch: 1, N: 3}, nil)
		f(l, c)
		c.Close()
		c.Close()
		stop()
	})
}

func TestStream(t *testing.T) {
	type said struct {
		attach  *redoubtv1.Attach
		applied []proto.Version
		report  *redoubtv1.Report
		alive   []time.Time
		chain   int
	}
	var got said
	attached(t, func(l *lab, _ int, s *talk) {
		up, _ := s.up()
		got.attach, got.chain = up.GetHello().GetAttach(), len(s.peer)
		s.down(welcome())
		for _, p := range wire.FromNetmap(l.mesh.Netmap(l.self, 4, 0)) {
			s.down(&redoubtv1.Down{Message: &redoubtv1.Down_Netmap{Netmap: p}})
		}
		d := proto.Diff(l.mesh.Netmap(l.self, 4, 0), l.mesh.Netmap(l.self, 5, time.Hour))
		for _, p := range wire.FromDelta(d) {
			s.down(&redoubtv1.Down{Message: &redoubtv1.Down_Delta{Delta: p}})
		}
		for {
			up, _ := s.up()
			switch {
			case up == nil:
				return
			case up.GetApplied() != nil:
				v, err := wire.ToVersion(up.GetApplied().GetVersion())
				if err != nil {
					l.t.Error(err)
				}
				got.applied = append(got.applied, v)
			case up.GetReport() != nil:
				got.report = up.GetReport()
			case up.GetKeepAlive() != nil:
				got.alive = append(got.alive, time.Now())
			}
			s.down(&redoubtv1.Down{Message: &redoubtv1.Down_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{ServerTime: time.Now().UnixMilli()}}})
		}
	}, func(l *lab, c *Client) {
		c.Report(proto.Reach{Endpoints: []proto.Endpoint{{Addr: netip.MustParseAddrPort("192.0.2.2:41641"), Kind: proto.EndpointInterface}}}, 41641)
		time.Sleep(time.Second)
		c.Ack(proto.Version{Epoch: 1, N: 5})
		time.Sleep(2 * time.Minute)
		events := l.took()
		if len(events) < 3 {
			t.Fatalf("events: %v", events)
		}
		if _, ok := events[0].(machine.Connected); !ok {
			t.Errorf("first event %T", events[0])
		}
		if e, ok := events[1].(machine.Snapshot); !ok || e.Netmap.Version.N != 4 {
			t.Errorf("second event %+v", events[1])
		}
		if e, ok := events[2].(machine.Change); !ok || e.Delta.To.N != 5 {
			t.Errorf("third event %+v", events[2])
		}
		for _, e := range events[3:] {
			if _, ok := e.(machine.Heard); !ok {
				t.Errorf("event %+v", e)
			}
		}
	})
	if v, err := wire.ToVersion(got.attach.GetApplied()); err != nil || v.N != 3 || got.chain != 2 {
		t.Errorf("attached with version %v and a chain of %d certificates", v, got.chain)
	}
	if len(got.applied) != 1 || got.applied[0].N != 5 {
		t.Errorf("acknowledged %v", got.applied)
	}
	if got.report.GetListenPort() != 41641 || len(got.report.GetEndpoints()) != 1 {
		t.Errorf("reported %v", got.report)
	}
	// The coordinator here answers whatever comes, which must not be answered in turn.
	if len(got.alive) != 3 {
		t.Errorf("%d keepalives in two minutes, want one each 30 s", len(got.alive))
	}
}

// The coordinator speaks first: it is answered at once, and told nothing beside that.
func TestKeepAliveIsAnswered(t *testing.T) {
	const rounds = 10
	answers := make(chan time.Duration, 2*rounds)
	attached(t, func(_ *lab, _ int, s *talk) {
		s.up()
		s.down(welcome())
		for range rounds {
			time.Sleep(25 * time.Second)
			asked := time.Now()
			s.down(&redoubtv1.Down{Message: &redoubtv1.Down_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{ServerTime: asked.UnixMilli()}}})
			up, _ := s.up()
			if up.GetKeepAlive() == nil {
				t.Errorf("the answer to a keepalive: %v", up)
				return
			}
			answers <- time.Since(asked)
		}
		for up, _ := s.up(); up != nil; up, _ = s.up() {
		}
	}, func(*lab, *Client) { time.Sleep(rounds*25*time.Second + time.Second) })
	close(answers)
	n := 0
	for took := range answers {
		if n++; took > time.Second {
			t.Errorf("answered after %v", took)
		}
	}
	if n != rounds {
		t.Errorf("%d of %d keepalives were answered", n, rounds)
	}
}

// A coordinator that says nothing is given up, and another stream begins.
func TestDeadline(t *testing.T) {
	attached(t, func(_ *lab, _ int, s *talk) {
		s.up()
		s.down(welcome())
		for up, _ := s.up(); up != nil; up, _ = s.up() {
		}
	}, func(l *lab, _ *Client) {
		time.Sleep(54 * time.Second)
		if e := l.took(); len(e) != 1 {
			t.Errorf("after 54 s of silence: %v", e)
		}
		time.Sleep(3 * time.Second)
		e := l.took()
		if len(e) != 2 {
			t.Fatalf("after 57 s: %v", e)
		}
		if _, ok := e[0].(machine.Lost); !ok {
			t.Errorf("%T", e[0])
		}
		if _, ok := e[1].(machine.Connected); !ok {
			t.Errorf("%T", e[1])
		}
	})
}

func TestRenewal(t *testing.T) {
	attached(t, func(l *lab, _ int, s *talk) {
		s.up()
		w := welcome()
		w.GetWelcome().Features = []string{proto.FeaturePosture}
		s.down(w)
		_, raw := s.until(func(up *redoubtv1.Up) bool { return up.GetRenew() != nil })
		a := ask(l.t, raw, "")
		s.down(a.message)
		up, _ := s.until(func(up *redoubtv1.Up) bool { return up.GetProof() != nil })
		var said redoubtv1.Posture
		if err := pb.Unmarshal(up.GetProof().GetPosture(), &said); err != nil || len(said.GetFacts()) != 1 || said.GetFacts()[0].GetName() != "posture:a" {
			l.t.Errorf("the proof says of the machine: %v, %v", &said, err)
		}
		if err := l.holds(a, wire.DomainRenew, s.exporter, up.GetProof()); err != nil {
			l.t.Errorf("proof: %v", err)
		}
		if up.GetProof().GetTokenSignature() != nil {
			l.t.Error("a renewal needs no token")
		}
		s.down(l.result(2))
		s.until(func(*redoubtv1.Up) bool { return false })
	}, func(l *lab, c *Client) {
		time.Sleep(time.Second)
		l.took()
		c.Posture([]Fact{{Name: "posture:a", Value: "1", TTL: time.Minute}}, true)
		c.Renew(Renewal{Node: l.self.Node})
		c.Renew(Renewal{Node: l.self.Node})
		time.Sleep(time.Second)
		var renewed *identity.Self
		for _, e := range l.took() {
			if r, ok := e.(machine.Renewed); ok {
				renewed = r.Self
			}
		}
		if renewed == nil || renewed.Node.Sequence != 2 {
			t.Errorf("renewed: %v", renewed)
		}
	})
}

// A renewal that gets no answer ends the stream; the next stream begins without it.
func TestRenewalWithoutAnswer(t *testing.T) {
	attached(t, func(_ *lab, _ int, s *talk) {
		s.up()
		s.down(welcome())
		for {
			up, _ := s.up()
			if up == nil {
				return
			}
			s.down(&redoubtv1.Down{Message: &redoubtv1.Down_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}})
		}
	}, func(l *lab, c *Client) {
		time.Sleep(time.Second)
		c.Renew(Renewal{Node: l.self.Node})
		time.Sleep(exchangeTimeout + time.Second)
		var lost bool
		for _, e := range l.took() {
			if x, ok := e.(machine.Lost); ok {
				lost = strings.Contains(x.Reason, "did not answer the request for a certificate")
			}
		}
		if !lost {
			t.Error("the stream goes on")
		}
	})
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		code  redoubtv1.Refusal_Code
		after uint32
		kind  machine.Refusal
		least time.Duration // until the next dial; 0: never
		most  time.Duration
	}{
		{redoubtv1.Refusal_CODE_REVOKED, 0, machine.RefusedRevoked, 0, 0},
		{redoubtv1.Refusal_CODE_DELETED, 0, machine.RefusedRevoked, 0, 0},
		{redoubtv1.Refusal_CODE_DELETED, 60, machine.RefusedForNow, 60 * time.Second, 91 * time.Second},
		{redoubtv1.Refusal_CODE_BUSY, 20, machine.RefusedForNow, 20 * time.Second, 31 * time.Second},
		{redoubtv1.Refusal_CODE_REPLACED, 30, machine.RefusedForNow, 30 * time.Second, 46 * time.Second},
		{redoubtv1.Refusal_CODE_VERSION, 0, machine.RefusedForNow, 10 * time.Minute, 16 * time.Minute},
	} {
		t.Run(fmt.Sprint(c.code, c.after), func(t *testing.T) {
			attached(t, func(_ *lab, _ int, s *talk) {
				s.up()
				s.down(refusal(c.code, c.after))
				s.up()
			}, func(l *lab, _ *Client) {
				time.Sleep(time.Hour)
				e, ok := l.took()[0].(machine.Refused)
				if !ok || e.Kind != c.kind || e.Message != "refused by the test" && !strings.Contains(e.Message, "refused by the test") {
					t.Errorf("%+v", e)
				}
				l.mu.Lock()
				defer l.mu.Unlock()
				if c.least == 0 {
					if len(l.dials) != 1 {
						t.Errorf("%d dials after a refusal for good", len(l.dials))
					}
					return
				}
				if d := l.dials[1].Sub(l.dials[0]); d < c.least || d > c.most {
					t.Errorf("came back after %v, want %v to %v", d, c.least, c.most)
				}
			})
		})
	}
}

// Messages out of turn end the stream and nothing else.
func TestNonsense(t *testing.T) {
	part := func(l *lab) *redoubtv1.NetmapPart {
		p := wire.FromNetmap(l.mesh.Netmap(l.self, 4, 0))[0]
		p.More = true
		return p
	}
	for name, answer := range map[string]func(l *lab, s *talk){
		"no welcome":     func(l *lab, s *talk) { s.down(l.result(2)) },
		"two welcomes":   func(_ *lab, s *talk) { s.down(welcome(), welcome()) },
		"result unasked": func(l *lab, s *talk) { s.down(welcome(), l.result(2)) },
		"challenge unasked": func(l *lab, s *talk) {
			s.down(welcome(), ask(l.t, nil, "").message)
		},
		"delta within a netmap": func(l *lab, s *talk) {
			s.down(welcome(), &redoubtv1.Down{Message: &redoubtv1.Down_Netmap{Netmap: part(l)}},
				&redoubtv1.Down{Message: &redoubtv1.Down_Delta{Delta: &redoubtv1.DeltaPart{More: true}}})
		},
		"two megabytes": func(_ *lab, s *talk) { s.down(welcome()); _, _ = s.Write([]byte{0, 0x20, 0, 0}) },
		"empty frame":   func(_ *lab, s *talk) { s.down(welcome()); _, _ = s.Write([]byte{0, 0, 0, 0}) },
		"protocol 9": func(_ *lab, s *talk) {
			w := welcome()
			w.GetWelcome().Protocol = 9
			s.down(w)
		},
	} {
		t.Run(name, func(t *testing.T) {
			attached(t, func(l *lab, n int, s *talk) {
				s.up()
				if n == 0 {
					answer(l, s)
				} else {
					s.down(welcome())
				}
				for up, _ := s.up(); up != nil; up, _ = s.up() {
				}
			}, func(l *lab, _ *Client) {
				time.Sleep(5 * time.Second)
				events := l.took()
				ended, again := false, false
				for _, e := range events {
					switch e.(type) {
					case machine.Lost, machine.Trouble:
						ended = true
					case machine.Connected:
						again = ended
					case machine.Heard:
					default:
						t.Errorf("%T", e)
					}
				}
				if !ended || !again {
					t.Errorf("events: %v", events)
				}
			})
		})
	}
}

// A coordinator under a root that the node does not trust is not spoken to.
func TestStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		home := l.mesh
		l.mesh = identitytest.New(time.Now().Add(-time.Hour))
		stop := l.serve(":443", func(int, *talk) { t.Error("a stream with a stranger") })
		c := Attach(l.config(), home.Self(l.self, 1, time.Now(), time.Hour), proto.Version{}, nil)
		time.Sleep(3 * time.Second)
		for _, e := range l.took() {
			if _, ok := e.(machine.Trouble); !ok {
				t.Errorf("%T", e)
			}
		}
		c.Close()
		stop()
	})
}

func TestRedialAndResume(t *testing.T) {
	var from []string
	attached(t, func(_ *lab, _ int, s *talk) {
		up, _ := s.up()
		if a := up.GetHello().GetAttach(); a != nil {
			from = append(from, fmt.Sprint(a.GetApplied().GetN()))
		}
		s.down(welcome())
		for up, _ := s.up(); up != nil; up, _ = s.up() {
		}
	}, func(_ *lab, c *Client) {
		time.Sleep(time.Second)
		c.Resume(proto.Version{Epoch: 1, N: 9})
		c.Redial("the test says so")
		time.Sleep(time.Second)
		c.Resume(proto.Version{})
		c.Kick(func(net.Addr) bool { return true })
		time.Sleep(time.Second)
		c.Kick(func(net.Addr) bool { return false })
		time.Sleep(time.Second)
	})
	if got := strings.Join(from, " "); got != "3 9 0" {
		t.Errorf("resumed from %q", got)
	}
}

// While the coordinator is away it is dialled at least once a minute, and not much more often; when the network changes,
// at once.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		cfg := l.config()
		cfg.URLs = []string{coordinatorURL, "https://192.0.2.1:8443"}
		c := Attach(cfg, l.mesh.Self(l.self, 1, time.Now(), time.Hour), proto.Version{}, nil)
		time.Sleep(time.Hour)
		l.mu.Lock()
		dials := l.dials
		l.mu.Unlock()
		if n := len(dials); n < 120 || n > 300 {
			t.Errorf("%d dials in an hour", n)
		}
		for i := 2; i < len(dials); i++ {
			if d := dials[i].Sub(dials[i-2]); d > backoffMax+openTimeout+stagger {
				t.Errorf("nobody was dialled for %v", d)
			}
		}
		before := len(dials)
		for range 20 { // until it waits
			c.Kick(func(net.Addr) bool { return false })
			time.Sleep(time.Second)
		}
		l.mu.Lock()
		if n := len(l.dials) - before; n < 10 {
			t.Errorf("%d dials after 20 changes of the network", n)
		}
		l.mu.Unlock()
		stop := l.serve(":8443", func(_ int, s *talk) {
			s.up()
			s.down(welcome())
			_, _ = io.Copy(io.Discard, s.r)
		})
		c.Kick(func(net.Addr) bool { return false })
		time.Sleep(2 * time.Minute)
		var connected string
		for _, e := range l.took() {
			if x, ok := e.(machine.Connected); ok {
				connected = x.URL
			}
		}
		if connected != cfg.URLs[1] {
			t.Errorf("connected with %q", connected)
		}
		c.Close()
		stop()
	})
}

func TestBackoffBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b Backoff
		for n := range rapid.IntRange(1, 40).Draw(t, "failures") {
			random := rapid.Float64Range(0, 0.999).Draw(t, "random")
			named := time.Duration(rapid.IntRange(0, 100).Draw(t, "named")) * time.Second
			d := b.Fail(random, named)
			if d > max(min(backoffMin<<min(n, 20), backoffMax), named*3/2) || d < named {
				t.Fatalf("failure %d, coordinator names %v: pause %v", n, named, d)
			}
		}
		b.Reset()
		if d := b.Fail(1, 0); d != backoffMin {
			t.Fatalf("after Reset: %v", d)
		}
	})
}
