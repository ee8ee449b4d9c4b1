package control

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// attached runs a client against a coordinator for as long as f runs.
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
	// This coordinator answers everything, and its answers must not be answered in turn.
	if len(got.alive) != 3 {
		t.Errorf("%d keepalives in two minutes, want one each 30 s", len(got.alive))
	}
}

// TestKeepAliveIsAnswered checks that the node answers the coordinator's keepalives at once, and sends nothing else.
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

// TestDeadline checks that a silent coordinator is given up, and another stream begins.
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

// TestRenewalWithoutAnswer checks that a renewal without an answer ends the stream, and that the next stream begins without it.
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

// TestNonsense checks that messages out of turn end the stream and nothing else.
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

// TestStranger checks that nothing is sent to a coordinator under a root that the node does not trust.
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

// TestNetworkChangesWhileDialling checks that a dial from an address that this host no longer has is given up.
func TestNetworkChangesWhileDialling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		stop := l.serve(":443", func(_ int, s *talk) {
			s.up()
			s.down(welcome())
			_, _ = io.Copy(io.Discard, s.r)
		})
		cfg := l.config()
		there, dials := cfg.Dial, 0
		cfg.Dial = func(ctx context.Context, network, to string) (net.Conn, error) {
			if dials++; dials == 1 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return there(ctx, network, to)
		}
		c := Attach(cfg, l.mesh.Self(l.self, 1, time.Now(), time.Hour), proto.Version{}, nil)
		time.Sleep(3 * time.Second)
		c.Kick(func(net.Addr) bool { return false })
		time.Sleep(time.Second)
		connected := false
		for _, e := range l.took() {
			switch e := e.(type) {
			case machine.Connected:
				connected = true
			case machine.Trouble:
				t.Errorf("trouble: %s", e.Reason)
			}
		}
		if !connected {
			t.Error("not connected a second after the network changed")
		}
		c.Close()
		stop()
	})
}

// TestBackoff checks that an unreachable coordinator is dialled at least once a minute and not much more often, and at once
// when the network changes.
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
			// The pauses use all of the time below the bound, so that nodes that failed together come back spread out.
			bound := min(backoffMin<<min(n, 20), backoffMax)
			want := max(time.Duration(random*float64(bound)), named+time.Duration(random*float64(named)/2))
			if d < want-time.Microsecond || d > want+time.Microsecond {
				t.Fatalf("failure %d, chance %v, coordinator names %v: pause %v, want %v", n, random, named, d, want)
			}
		}
		b.Reset()
		if d := b.Fail(1, 0); d != backoffMin {
			t.Fatalf("after Reset: %v", d)
		}
	})
}
