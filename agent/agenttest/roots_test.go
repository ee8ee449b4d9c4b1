package agenttest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/machine"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func (m *mesh) roots() *redoubtv1.GetRootsResponse {
	m.Helper()
	r, err := m.center.admin().GetRoots(context.Background(), &redoubtv1.GetRootsRequest{})
	if err != nil {
		m.Fatal(err)
	}
	return r
}

func (m *mesh) retire(force bool) error {
	_, err := m.center.admin().RetireRoot(context.Background(), &redoubtv1.RetireRootRequest{Force: force})
	return err
}

// acts returns what the audit log records about roots and intermediates, oldest first.
func (m *mesh) acts() (list []string) {
	m.Helper()
	a, err := m.center.admin().ListAudit(context.Background(), &redoubtv1.ListAuditRequest{Limit: 1000})
	if err != nil {
		m.Fatal(err)
	}
	for _, r := range a.GetRecords() {
		if strings.HasPrefix(r.GetAction(), "root.") || strings.HasPrefix(r.GetAction(), "intermediate.") {
			list = append([]string{r.GetAction()}, list...)
		}
	}
	return list
}

// TestTheRootIsReplaced replaces the root while two nodes talk, and has the old one retire by itself. A node that was away
// meanwhile, one that joins with an earlier code and one with a later code all get along.
func TestTheRootIsReplaced(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b, away := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db")), m.Join("away", tags("tag:db"))
		b.Listen(22)
		m.Policy(shortLives)
		before := m.Code(tags("tag:db"))
		stale := m.Code(tags("tag:db"), func(r *redoubtv1.CreateTokenRequest) { r.TtlSeconds = 80 * 60 })
		c := m.counts(a, b)
		talk, err := a.Connect(b.V4(), 22)
		if err != nil {
			t.Fatal(err)
		}
		c.run(time.Second, 20*time.Minute)
		away.stop()

		if _, err := m.center.admin().RotateRoot(context.Background(), &redoubtv1.RotateRootRequest{}); err != nil {
			t.Fatal(err)
		}
		if r := m.roots(); len(r.GetRoots()) != 2 || !r.GetRoots()[0].GetIssues() || len(r.GetNodes()) != 3 || len(r.GetTokens()) != 2 {
			t.Errorf("rotated: %v", r)
		}
		if err := m.retire(false); err == nil || !strings.Contains(err.Error(), "node away") || !strings.Contains(err.Error(), "node a") {
			t.Errorf("retired while nodes hang on it: %v", err)
		}
		m.Join("new", tags("tag:db")).Reaches(b, 22) // b has not renewed yet, and knows only the old root
		old := m.Machine("old")
		old.Up(before)
		old.Reaches(b, 22)
		c.run(time.Second, 20*time.Minute)
		c.check(m)
		if err := a.Talk(talk); err != nil {
			t.Errorf("the connection from before: %v", err)
		}
		if r := m.roots(); len(r.GetRoots()) != 2 || len(r.GetNodes()) != 1 || r.GetNodes()[0] != "away" || len(r.GetTokens()) != 1 {
			t.Errorf("after all who are there have renewed: %v", r)
		}
		away.start()
		away.AwaitState(machine.StateRunning, time.Minute)
		time.Sleep(time.Minute) // until others hear of its certificate
		m.Agree()
		away.Reaches(b, 22)
		a.Reaches(b, 22)
		m.Await(2*time.Hour, "the old root is retired", func() bool { return len(m.roots().GetRoots()) == 1 })
		time.Sleep(10 * time.Minute) // all renew once more
		late := m.Machine("late")
		if _, err := late.TryUp(stale, time.Minute); err == nil || !strings.Contains(err.Error(), "ask for a new code") {
			t.Errorf("a join code that names the retired root: %v", err)
		}
		for _, n := range []*node{a, away, old} {
			n.restart()
		}
		time.Sleep(time.Minute)
		m.Settle()
		for _, n := range []*node{a, away, old} {
			n.Reaches(b, 22)
		}
		if got := strings.Join(m.acts(), " "); got != "root.rotate intermediate.replace root.retire" {
			t.Errorf("the audit book tells %q", got)
		}
	})
}

// TestARootRetiredByForce checks that a node that was away for the whole time still gets to the new root, as long as the
// coordinator knows who issued its certificate.
func TestARootRetiredByForce(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, away := m.Join("a", tags("tag:web")), m.Join("away", tags("tag:db"))
		away.Listen(22)
		m.Policy(open)
		away.stop()
		if _, err := m.center.admin().RotateRoot(context.Background(), &redoubtv1.RotateRootRequest{}); err != nil {
			t.Fatal(err)
		}
		if err := m.retire(true); err != nil {
			t.Fatal(err)
		}
		m.center.restart()
		time.Sleep(12 * time.Hour) // beyond certificates and grace
		away.start()
		away.AwaitState(machine.StateRunning, time.Minute)
		time.Sleep(time.Minute) // until others hear of its certificate
		m.Agree()
		a.Reaches(away, 22)
		if got := strings.Join(m.acts(), " "); got != "root.rotate intermediate.replace root.retire" {
			t.Errorf("the audit book tells %q", got)
		}
	})
}
