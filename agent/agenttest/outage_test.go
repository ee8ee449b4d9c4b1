package agenttest

import (
	"testing"
	"time"
)

// TestLongOutage checks that nodes that went on by grace for hours without their coordinator are not separated by its return,
// whether it was off or unreachable.
func TestLongOutage(t *testing.T) {
	t.Parallel()
	for name, outage := range map[string]struct{ begin, end func(*mesh) }{
		"off": {func(m *mesh) { m.center.stop() }, func(m *mesh) { m.center.start() }},
		"out of reach": {
			func(m *mesh) {
				for _, n := range m.nodes {
					m.net.Cut(n.host, m.center.host)
				}
			},
			func(m *mesh) {
				for _, n := range m.nodes {
					m.net.Heal(n.host, m.center.host)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(m *mesh) {
				a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
				b.Listen(22)
				m.Policy(open)
				c, err := a.Connect(b.V4(), 22)
				if err != nil {
					m.Fatal(err)
				}
				outage.begin(m)
				for range 4 * 60 {
					if err := a.Talk(c); err != nil {
						m.Fatalf("by grace: %v", err)
					}
					time.Sleep(time.Minute)
				}
				outage.end(m)
				back := time.Now()
				for time.Since(back) < 5*time.Minute {
					if err := a.Talk(c); err != nil {
						m.Fatalf("%v after the coordinator's return: %v", time.Since(back), err)
					}
					time.Sleep(time.Second)
				}
				m.Settle()
				if st := a.Status(); !st.GetCoordinator().GetConnected() || len(st.GetPeers()) != 1 || len(st.GetProblems()) > 0 {
					m.Errorf("afterwards: %v", st)
				}
			})
		})
	}
}
