package agenttest

import (
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/machine"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// enrolledOnce checks that the only node that ever joined with the only token is the one on this machine.
func enrolledOnce(m *mesh, n *node) {
	m.Helper()
	nodes := m.Nodes()
	if len(nodes) != 1 {
		m.Fatalf("%d nodes: %v", len(nodes), nodes)
	}
	known, st := nodes[n.name], n.Status()
	if st.GetState() != string(machine.StateRunning) || known.GetId() != st.GetNode().GetId() {
		m.Fatalf("the coordinator knows %v; the agent says %v", known, st)
	}
	for i, a := range st.GetNode().GetAddresses() {
		if known.GetAddresses()[i] != a {
			m.Errorf("the coordinator knows %v; the agent says %v", known, st)
		}
	}
	tokens, err := m.center.admin().ListTokens(m.Context(), &redoubtv1.ListTokensRequest{})
	if err != nil {
		m.Fatal(err)
	}
	if all := tokens.GetTokens(); len(all) != 1 || all[0].GetUses() != 1 || all[0].GetState() != "spent" {
		m.Errorf("tokens: %v", all)
	}
}

// each runs f in a bubble for each message in turn, until there is none left to lose. There must be at least that many messages.
func each(t *testing.T, least int, f func(m *mesh, tap *tap)) {
	for _, fate := range fates {
		t.Run(string(fate), func(t *testing.T) {
			t.Parallel()
			for at, hit := 0, true; hit; at++ {
				inBubble(t, func(m *mesh) {
					tap := &tap{at: at, fate: fate}
					f(m, tap)
					if hit = tap.Hit(); hit && m.Failed() {
						t.Fatalf("message %d", at)
					}
				})
				if at == 100 {
					t.Fatal("it never ends")
				}
				if !hit && at < least {
					t.Fatalf("%d messages, not %d", at, least)
				}
			}
		})
	}
}

func TestEnrolmentWithEachMessageLost(t *testing.T) {
	t.Parallel()
	each(t, 15, func(m *mesh, tap *tap) {
		n := m.Machine("laptop")
		tap.install(n)
		if _, err := n.TryUp(m.Code(user("ann@example.com")), 10*time.Minute); err != nil {
			m.Fatal(err)
		}
		m.Agree()
		enrolledOnce(m, n)
		n.restart()
		m.Agree()
		enrolledOnce(m, n)
	})
}

func TestRenewalWithEachMessageLost(t *testing.T) {
	t.Parallel()
	each(t, 4, func(m *mesh, tap *tap) {
		n := m.Join("laptop", user("ann@example.com"))
		m.Settle()
		before := n.Status().GetNode()
		tap.larger = 50
		tap.install(n)
		n.restart() // onto a stream with a tap
		tap.mu.Lock()
		tap.seen = -1000 // messages for attaching are lost in another test
		tap.mu.Unlock()
		time.Sleep(20 * time.Minute)
		tap.mu.Lock()
		tap.seen = 0
		tap.mu.Unlock()
		time.Sleep(25 * time.Minute) // a node that was cut off while renewing takes up to six more minutes to ask again
		m.Agree()
		enrolledOnce(m, n)
		after := n.Status().GetNode()
		if left := time.Until(time.Unix(after.GetCertificateExpires(), 0)); left < 40*time.Minute {
			m.Errorf("after 45 minutes the certificate is good for %v more", left)
		}
		if s := m.Nodes()["laptop"].GetCertificateSequence(); s < 2 || s > 3 {
			m.Errorf("certificate number %d", s)
		}
		if after.GetId() != before.GetId() || after.GetAddresses()[0] != before.GetAddresses()[0] {
			m.Errorf("it was %v and is %v", before, after)
		}
	})
}
