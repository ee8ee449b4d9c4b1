package coordinator

import (
	"context"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// actions returns the actions of the newest audit records about a node.
func (r *rig) actions(about string) (out []string) {
	r.t.Helper()
	a, err := r.co.Admin().ListAudit(context.Background(), &redoubtv1.ListAuditRequest{Node: about})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, x := range a.GetRecords() {
		out = append(out, x.GetAction())
	}
	return out
}

// TestALockOnStreams locks and unlocks a node over real streams.
func TestALockOnStreams(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		r.apply(openPolicy)
		token := &redoubtv1.CreateTokenRequest{User: "ann@example.com", Reusable: true}
		a, b := r.join("a", &redoubtv1.CreateTokenRequest{}), r.join("b", token)
		away := r.join("away", &redoubtv1.CreateTokenRequest{})
		code := r.code(token)
		settle()
		sa, sb, gone := a.attach(nil), b.attach(nil), away.attach(nil)
		settle()
		gone.close()
		settle()

		lock, err := r.co.Admin().CreateLock(ctx, &redoubtv1.CreateLockRequest{Kind: directory.LockUser, Subject: "ann@example.com", Reason: "stolen"})
		if err != nil || lock.GetHolders() != 2 || lock.GetEnforced() != 1 || lock.GetEnforcedUs() > uint64(time.Second/time.Microsecond) || lock.GetLock().GetNodes() != 1 {
			t.Fatalf("locked: %v, %v", lock, err)
		}
		if l := lock.GetLaggards(); len(l) != 1 || l[0].GetName() != "away" || l[0].GetConnected() {
			t.Errorf("laggards: %v", l)
		}
		if lock.GetBound() < b.cert.NotAfter.Unix() {
			t.Errorf("bound %d", lock.GetBound())
		}
		nm := sa.netmap()
		if len(nm.Peers) != 1 || nm.Peers[0].ID != away.cert.ID || len(nm.Barred) != 1 || nm.Barred[0] != (proto.Barred{ID: b.cert.ID, Sequence: b.cert.Sequence}) {
			t.Errorf("who met it holds %+v", nm)
		}
		<-sb.done
		refusedWith(t, sb.failed(), redoubtv1.Refusal_CODE_LOCKED, "stolen")
		_, _, err = b.open(sb.netmap().Version)
		refusedWith(t, err, redoubtv1.Refusal_CODE_LOCKED, "lock delete "+lock.GetLock().GetId())
		refusedWith(t, r.machine("late").enrol(code), redoubtv1.Refusal_CODE_LOCKED, "stolen")
		settle()
		if got := r.actions("b"); len(got) < 2 || got[0] != audit.RenewRefuse || got[len(got)-1] != audit.NodeEnroll {
			t.Errorf("audit: %v", got)
		}
		st, err := r.co.Admin().PolicyStatus(ctx, &redoubtv1.PolicyStatusRequest{})
		if err != nil || st.GetNodes() != 2 {
			t.Errorf("%v, %v: a locked node has nothing to enforce", st, err)
		}
		if n, err := r.co.Admin().GetNode(ctx, &redoubtv1.GetNodeRequest{Node: "b"}); err != nil || n.GetNode().GetState() != "locked" || n.GetNode().GetLock() != lock.GetLock().GetId() {
			t.Errorf("%v, %v", n, err)
		}

		// A node that returns was away when the lock was created.
		gone = away.attach(nil)
		settle()
		if nm := gone.netmap(); len(nm.Peers) != 1 || len(nm.Barred) != 1 {
			t.Errorf("who was away holds %+v", nm)
		}

		free, err := r.co.Admin().DeleteLock(ctx, &redoubtv1.DeleteLockRequest{Id: lock.GetLock().GetId()})
		if err != nil || free.GetUnlocked() != 1 {
			t.Errorf("unlocked: %v, %v", free, err)
		}
		settle()
		if nm := sa.netmap(); len(nm.Peers) != 2 || len(nm.Barred) != 0 {
			t.Errorf("afterwards who met it holds %+v", nm)
		}
		back := b.attach(nil)
		settle()
		if nm := back.netmap(); nm == nil || len(nm.Peers) != 2 || len(nm.Rules) == 0 {
			t.Errorf("afterwards it holds %+v", nm)
		}
		for _, s := range []*stream{sa, sb, gone, back} {
			s.close()
		}
	})
}

// TestALockEndsOnStreams checks that a lock expires without any request.
func TestALockEndsOnStreams(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		a, b := r.join("a", &redoubtv1.CreateTokenRequest{}), r.join("b", &redoubtv1.CreateTokenRequest{})
		s := a.attach(nil)
		settle()
		if _, err := r.co.Admin().CreateLock(context.Background(), &redoubtv1.CreateLockRequest{Kind: directory.LockNode, Subject: "b", TtlSeconds: 600}); err != nil {
			t.Fatal(err)
		}
		settle()
		if nm := s.netmap(); len(nm.Peers) != 0 {
			t.Errorf("locked: %+v", nm.Peers)
		}
		time.Sleep(10*time.Minute + time.Second)
		settle()
		if nm := s.netmap(); len(nm.Peers) != 1 || nm.Peers[0].ID != b.cert.ID || len(nm.Barred) != 0 {
			t.Errorf("afterwards: %+v", nm)
		}
		s.close()
	})
}
