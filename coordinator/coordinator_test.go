package coordinator

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

var random = rand.Reader

func TestEnrolAttachPolicy(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		a := r.join("Laptop of Ann", &redoubtv1.CreateTokenRequest{User: "ann@example.com"})
		b := r.join("db", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}})
		if a.cert.Name != "laptop-of-ann" || a.cert.User.Name != "ann@example.com" || !b.cert.HasTag("tag:a") || a.cert.Addrs == b.cert.Addrs {
			t.Errorf("certificates: %+v, %+v", a.cert, b.cert)
		}
		settle()
		sa, sb := a.attach(nil), b.attach(nil)
		settle()
		if nm := sa.netmap(); nm == nil || len(nm.Peers)+len(nm.Rules) != 0 {
			t.Fatalf("without a policy: %+v", nm)
		}
		r.apply(openPolicy)
		st, err := r.co.Admin().PolicyStatus(context.Background(), &redoubtv1.PolicyStatusRequest{WaitMs: 5000})
		if err != nil || len(st.GetLaggards()) != 0 || st.GetNodes() != 2 || st.GetNumber() != 1 {
			t.Fatalf("status %v, %v", st, err)
		}
		if nm := sb.netmap(); len(nm.Peers) != 1 || nm.Peers[0].ID != a.cert.ID || len(nm.Rules) == 0 {
			t.Errorf("with a policy: %+v", nm)
		}
		if full, deltas := sb.counts(); full != 1 || deltas != 1 {
			t.Errorf("%d snapshots, %d deltas", full, deltas)
		}
		if _, err := sa.m.r.co.Admin().GetNode(context.Background(), &redoubtv1.GetNodeRequest{Node: "db"}); err != nil {
			t.Error(err)
		}
		rev, err := r.co.Admin().RevokeNode(context.Background(), &redoubtv1.RevokeNodeRequest{Node: "db", Reason: "test"})
		if err != nil || rev.GetHolders() != 1 || rev.GetEnforced() != 1 || rev.GetEnforcedUs() > uint64(time.Second/time.Microsecond) {
			t.Errorf("revoked: %v, %v", rev, err)
		}
		if nm := sa.netmap(); len(nm.Peers) != 0 {
			t.Errorf("after the revocation: %+v", nm.Peers)
		}
		<-sb.done
		if codeOf(sb.failed()) != redoubtv1.Refusal_CODE_REVOKED {
			t.Errorf("the revoked node hears %v", sb.failed())
		}
		if _, _, err := b.open(sb.netmap().Version); codeOf(err) != redoubtv1.Refusal_CODE_REVOKED {
			t.Errorf("the revoked node comes back: %v", err)
		}
		sa.close()
		sb.close()
	})
}
