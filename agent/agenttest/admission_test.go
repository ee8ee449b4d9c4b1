package agenttest

import (
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/machine"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// approval is open, except that an administrator must approve databases.
const approval = `{"tagOwners": {"tag:db": [], "tag:web": []}, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
	"admission": [{"tags": ["tag:db"], "approval": true}]}`

// approve approves the machine that is waiting under a name.
func (m *mesh) approve(name string) {
	m.Helper()
	if _, err := m.center.admin().ApproveNode(m.Context(), &redoubtv1.ApproveNodeRequest{Node: name}); err != nil {
		m.Fatal(err)
	}
}

// TestWaitingForAnApproval checks that a machine waits for hours, past the end of its join code, through an outage and restarts
// of both ends.
func TestWaitingForAnApproval(t *testing.T) {
	inBubble(t, func(m *mesh) {
		m.Policy(approval)
		web := m.Join("web", tags("tag:web"))
		web.Listen(80)
		db := m.Machine("db")
		code := m.Code(tags("tag:db"), func(r *redoubtv1.CreateTokenRequest) { r.TtlSeconds = 3600 })
		if _, err := db.TryUp(code, 10*time.Second); err == nil {
			t.Fatal("it is a node though nobody approved it")
		}
		db.AwaitState(machine.StatePending, time.Second)
		p := db.Status().GetPending()
		if p.GetName() != "db" || !db.Problem("node approve "+p.GetCode()) {
			t.Fatalf("%v", db.Status())
		}
		waiting := func(what string) {
			t.Helper()
			st := db.Status()
			if st.GetState() != string(machine.StatePending) || st.GetPending().GetCode() != p.GetCode() || !st.GetCoordinator().GetConnected() || len(st.GetProblems()) != 1 {
				t.Errorf("%s: %v", what, st)
			}
		}
		time.Sleep(3 * time.Hour) // the code expires meanwhile
		waiting("hours later")
		m.center.stop()
		time.Sleep(time.Hour)
		if st := db.Status(); st.GetState() != string(machine.StatePending) || !db.Problem("no coordinator since") {
			t.Errorf("in an outage: %v", st)
		}
		m.center.start()
		time.Sleep(3 * time.Minute)
		waiting("after the outage")
		db.restart()
		db.AwaitState(machine.StatePending, time.Minute)
		waiting("after a restart")

		m.approve(p.GetCode())
		db.AwaitState(machine.StateRunning, 2*time.Second)
		m.Agree()
		db.Reaches(web, 80)
		if db.Status().GetPending() != nil {
			t.Errorf("afterwards: %v", db.Status())
		}
	})
}

// TestADeniedMachine checks that a denied machine is told so and gives up, and that its code is still good for another one.
func TestADeniedMachine(t *testing.T) {
	inBubble(t, func(m *mesh) {
		m.Policy(approval)
		code := m.Code(tags("tag:db"))
		db := m.Machine("db")
		if _, err := db.TryUp(code, 10*time.Second); err == nil {
			t.Fatal("it is a node though nobody approved it")
		}
		if _, err := m.center.admin().DenyNode(m.Context(), &redoubtv1.DenyNodeRequest{Node: "db", Reason: "who is that?"}); err != nil {
			t.Fatal(err)
		}
		db.AwaitState(machine.StateDown, 2*time.Second)
		if !db.Problem("denied") || !db.Problem("who is that?") {
			t.Errorf("%v", db.Status())
		}
		other := m.Machine("other")
		if _, err := other.TryUp(code, 10*time.Second); err == nil {
			t.Fatal("it is a node though nobody approved it")
		}
		m.approve("other")
		other.AwaitState(machine.StateRunning, 2*time.Second)
	})
}

// TestAPolicyThatAsksNodesForMore checks that nodes keep what they have until it ends, and are readmitted once they are approved.
func TestAPolicyThatAsksNodesForMore(t *testing.T) {
	inBubble(t, func(m *mesh) {
		m.Policy(open)
		web, db := m.Join("web", tags("tag:web")), m.Join("db", tags("tag:db"))
		late := m.Join("late", tags("tag:db"))
		web.Listen(80)
		late.Listen(80)
		m.Policy(approval)
		time.Sleep(50 * time.Minute) // all have requested another certificate
		for _, n := range []*node{db, late} {
			if !n.Problem("the certificate was not renewed: an administrator has to approve this machine, " + n.name) {
				t.Errorf("%s: %v", n.name, n.Status())
			}
			n.Reaches(web, 80)
		}
		connected := m.Nodes()["db"].GetLastSeen()
		if n := m.Nodes()["db"]; n.GetWithheld() != "not approved" || !n.GetConnected() || connected == 0 {
			t.Errorf("%v", n)
		}
		before := db.Status().GetNode().GetCertificateExpires()
		m.approve("db")
		m.Await(5*time.Second, "the one that was approved has another certificate", func() bool {
			return db.Status().GetNode().GetCertificateExpires() > before
		})
		if len(db.Status().GetProblems()) != 0 {
			t.Errorf("%v", db.Status())
		}

		time.Sleep(30 * time.Minute)
		if !late.Problem("certificate expired at") || !late.Problem("node approve late") {
			t.Errorf("%v", late.Status())
		}
		db.ReachesNot(late, 80)
		db.Reaches(web, 80)
		time.Sleep(9 * time.Hour) // beyond any grace
		late.AwaitState(machine.StateExpired, time.Second)
		if !late.Problem("node approve late") {
			t.Errorf("%v", late.Status())
		}
		m.approve("late")
		late.AwaitState(machine.StateRunning, 5*time.Second)
		m.Agree()
		late.Reaches(web, 80)
	})
}

// TestTheEndOfALockIsHeardAtOnce checks that a node hears of it at once, however long the lock lasted.
func TestTheEndOfALockIsHeardAtOnce(t *testing.T) {
	inBubble(t, func(m *mesh) {
		m.Policy(open)
		web, db := m.Join("web", tags("tag:web")), m.Join("db", tags("tag:db"))
		web.Listen(80)
		for _, d := range []time.Duration{10 * time.Second, 20 * time.Minute} {
			lock, err := m.center.admin().CreateLock(m.Context(), &redoubtv1.CreateLockRequest{Kind: "node", Subject: "db", Reason: "looked into"})
			if err != nil {
				t.Fatal(err)
			}
			db.AwaitState(machine.StateLocked, time.Second)
			time.Sleep(d)
			if st := db.Status(); st.GetState() != string(machine.StateLocked) || !strings.Contains(strings.Join(st.GetProblems(), " "), "looked into") {
				t.Errorf("after %v: %v", d, st)
			}
			if _, err := m.center.admin().DeleteLock(m.Context(), &redoubtv1.DeleteLockRequest{Id: lock.GetLock().GetId()}); err != nil {
				t.Fatal(err)
			}
			db.AwaitState(machine.StateRunning, time.Second)
			m.Agree()
			db.Reaches(web, 80)
		}
	})
}
