package agenttest

import (
	"testing"
)

func TestNodesMeet(t *testing.T) {
	inBubble(t, func(m *mesh) {
		a, b := m.Join("laptop", user("ann@example.com")), m.Join("db", tags("tag:db"))
		b.Listen(22)
		if err := a.Ping(b.V4()); err == nil {
			t.Error("ping without a policy")
		}
		m.Policy(open)
		if err := a.Ping(b.V4()); err != nil {
			t.Error(err)
		}
		if err := a.Visit(b.V6(), 22); err != nil {
			t.Error(err)
		}
	})
}
