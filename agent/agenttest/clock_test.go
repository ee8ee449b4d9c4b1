package agenttest

import (
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/machine"
)

// TestWrongClocks is machines whose own clocks are wrong when they start. Once they hear the coordinator it is of no account; until
// then time never goes below what was heard before, and one clock that was ahead for a while does not keep a node out for ever.
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
				a.clock.reboot(min(wrong, 0)) // and again, when nobody can be asked
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
