package agenttest

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/coordinator"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// TestWrongClocks starts machines whose own clocks are wrong. Once they hear the coordinator that does not matter; until then
// time never goes below what was heard before, and a clock that was ahead for a while does not keep a node out forever.
func TestWrongClocks(t *testing.T) {
	t.Parallel()
	const year = 365 * 24 * time.Hour
	for name, wrong := range map[string]time.Duration{"decades behind": -30 * year, "an hour behind": -time.Hour, "two hours ahead": 2 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(m *mesh) {
				a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
				b.Listen(22)
				m.Policy(open)
				a.stop()
				a.clock.reboot(wrong)
				a.start()
				m.Await(10*time.Second, "it is connected", func() bool { return a.Status().GetCoordinator().GetConnected() })
				a.Reaches(b, 22)
				m.center.stop()
				a.stop()
				a.clock.reboot(min(wrong, 0)) // again, while there is nobody to ask
				a.start()
				a.Reaches(b, 22)
			})
		})
	}
	t.Run("years ahead", func(t *testing.T) {
		t.Parallel()
		inBubble(t, func(m *mesh) {
			a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
			b.Listen(22)
			m.Policy(open)
			a.stop()
			a.clock.reboot(10 * year)
			a.start()
			a.AwaitState(machine.StateExpired, time.Second)
			m.Await(time.Minute, "the status says what time it takes it to be", func() bool { return a.Problem("it is 2009-") })
			a.ReachesNot(b, 22)
			a.stop()
			a.clock.reboot(0)
			a.start()
			a.AwaitState(machine.StateRunning, time.Second)
			m.Agree()
			a.Reaches(b, 22)
		})
	})
}

// jump sets the machine's clock while its programs run.
func (c *clock) jump(wrong time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = wrong
}

// sleep makes the machine look as if it had slept: its timers have stood still, the time since boot has not.
func (c *clock) sleep(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.booted = c.booted.Add(-d)
}

// TestKeysWithWrongClocks checks that certificates of ten minutes are renewed, and keys change without loss, on machines whose
// clocks are an hour wrong, and become wrong while packets are in flight.
func TestKeysWithWrongClocks(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]time.Duration{"an hour behind": -time.Hour, "an hour ahead": time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(m *mesh) {
				m.Policy(shortLives)
				b := m.Join("b", tags("tag:db"))
				time.Sleep(2 * time.Hour) // so that what the coordinator presents is older than the clocks are wrong
				a := m.Machine("a")
				a.stop()
				a.clock.reboot(wrong)
				a.start()
				a.Up(m.Code(user("ann@example.com")))
				m.Settle()
				before := m.Nodes()["b"].GetCertificateSequence()
				c := m.counts(a, b)
				for i := range 12 {
					c.run(500*time.Millisecond, 5*time.Minute)
					a.clock.jump(wrong * time.Duration(i%3-1)) // also in the other direction, and right
					b.clock.jump(wrong * time.Duration(i%2))
				}
				c.check(m)
				for _, n := range m.nodes {
					st := n.Status()
					if left := time.Until(time.Unix(st.GetNode().GetCertificateExpires(), 0)); left < 4*time.Minute || len(st.GetProblems()) > 0 {
						t.Errorf("%s has %v left and the problems %q", n.name, left, st.GetProblems())
					}
				}
				if s := m.Nodes()["a"].GetCertificateSequence(); s < 11 || s > 15 {
					t.Errorf("a has certificate number %d after an hour", s)
				}
				if s := m.Nodes()["b"].GetCertificateSequence() - before; s < 10 || s > 15 {
					t.Errorf("b has %d certificates more after an hour", s)
				}
			})
		})
	}
}

// TestSuspend checks that a machine that slept past the end of its certificate knows that when it wakes, before anyone tells it.
func TestSuspend(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		var ahead atomic.Int64
		m.center.stop()
		m.center.configure = func(c *coordinator.Config) {
			c.Clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		}
		m.center.start()
		m.Policy(`{"tagOwners": {"tag:db": [], "tag:web": []}, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
			"node": {"certLifetime": {"*": "24h", "tag:web": "10m"}}, "outage": {"grace": "0s"}}`)
		a, b := m.Join("a", tags("tag:web")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Settle()
		a.Reaches(b, 22)
		m.net.Cut(a.host, m.center.host) // so that no one tells it
		const slept = 20 * time.Minute
		ahead.Store(int64(slept))
		a.clock.sleep(slept)
		m.Await(16*time.Second, "it knows that its certificate has ended", func() bool { return a.Status().GetState() == string(machine.StateExpired) })
		a.ReachesNot(b, 22)
		if !a.Problem("nothing passes until it is renewed") {
			t.Errorf("problems: %q", a.Status().GetProblems())
		}
		m.net.Heal(a.host, m.center.host)
		m.Await(2*time.Minute, "it is renewed", func() bool { return a.Status().GetState() == string(machine.StateRunning) })
		m.Await(time.Minute, "it reaches b", func() bool { return a.Ask(b.V4(), 22) == nil })
		if left := time.Unix(a.Status().GetNode().GetCertificateExpires(), 0).Sub(time.Now().Add(slept)); left < 5*time.Minute || left > 10*time.Minute {
			t.Errorf("its certificate is good for %v", left)
		}
	})
}

// TestFlowsTimeOutWhileAsleep checks that a machine that wakes refuses connections that were idle for too long, most of it in its
// sleep, and that setting its clock ends none.
func TestFlowsTimeOutWhileAsleep(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		m.Policy(open)
		a, b := m.Join("a", tags("tag:web")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Settle()
		c, err := a.Connect(b.V4(), 22)
		if err != nil {
			t.Fatal(err)
		}
		for _, wrong := range []time.Duration{5 * time.Hour, -5 * time.Hour} {
			a.clock.jump(wrong)
			time.Sleep(time.Minute)
			if err := a.Talk(c); err != nil {
				t.Fatalf("after its clock was set by %v: %v", wrong, err)
			}
		}
		a.clock.sleep(4 * time.Hour)
		time.Sleep(time.Second)
		if err := a.Talk(c); !errors.Is(err, sim.ErrReset) {
			t.Errorf("a connection that was idle for four hours: %v", err)
		}
		a.Reaches(b, 22)
	})
}

// TestCertificateNeverOutlivesItself checks that without a coordinator and without grace, certificates end when they say, and
// that setting clocks back, during a session or between two, does not revive them.
func TestCertificateNeverOutlivesItself(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		m.Policy(`{"tagOwners": {"tag:db": [], "tag:web": []}, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
			"node": {"certLifetime": "10m"}, "outage": {"grace": "0s"}}`)
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		a.Listen(22)
		m.Settle()
		a.Reaches(b, 22)
		first := min(a.Status().GetNode().GetCertificateExpires(), b.Status().GetNode().GetCertificateExpires())
		m.center.stop()
		for _, n := range m.nodes {
			n.clock.jump(-time.Hour)
		}
		end := time.Unix(first, 0).Add(cert.Skew)
		time.Sleep(time.Until(end) - 2*patience)
		a.Reaches(b, 22)
		time.Sleep(time.Until(end) + 5*time.Second)
		a.ReachesNot(b, 22)
		b.ReachesNot(a, 22)
		for _, n := range m.nodes {
			n.stop()
			n.clock.reboot(-2 * time.Hour)
			n.start()
		}
		a.ReachesNot(b, 22)
		b.ReachesNot(a, 22)
	})
}
