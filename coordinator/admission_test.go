package coordinator

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/proto/join"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

const (
	approvalPolicy = `{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
		"admission": [{"tags": ["tag:a"], "approval": true}]}`
	levelPolicy = `{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
		"admission": [
			{"tags": ["tag:a"], "attestation": "tpm"}]}`
)

// apply requests a certificate that requires approval, and returns the stream on which the machine waits.
func (m *machine) apply(code join.Code) (*wireConn, *redoubtv1.Pending) {
	m.r.t.Helper()
	c, sum, challenge, err := m.ask(code)
	if err != nil {
		m.r.t.Fatal(err)
	}
	if _, err := c.send(up(m.proof(c, m.node, wire.DomainEnrol, sum, challenge, &code.Secret))); err != nil {
		m.r.t.Fatal(err)
	}
	down, err := c.read()
	if err != nil || down.GetPending() == nil {
		m.r.t.Fatalf("%v, %v: want to wait", down, err)
	}
	return c, down.GetPending()
}

// ended waits for the end of a stream on which only keepalives may still arrive.
func (c *wireConn) ended(t *testing.T) {
	t.Helper()
	if down, err := c.read(); err == nil {
		t.Fatalf("in place of the end: %v", down)
	}
}

func TestALevelIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(levelPolicy)
		code := r.code(&redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}})
		for range 2 { // nothing is used up
			err := r.machine("web").enrol(code)
			refusedWith(t, err, redoubtv1.Refusal_CODE_ADMISSION, "tag:a requires attestation by tpm or better (admission[0], line 3 of the policy), "+
				"and this machine is attested by token: it takes a TPM that the agent can open (`redoubt status` says what is wrong with it); the join code was not used up")
		}
		a, err := r.co.Admin().ListAudit(context.Background(), &redoubtv1.ListAuditRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if x := a.GetRecords()[0]; x.GetAction() != audit.NodeRefuse || !strings.HasPrefix(x.GetFrom(), "198.51.100.") || x.GetName() != "web" || !strings.Contains(x.GetReason(), "requires attestation by tpm or better") {
			t.Errorf("audit: %v", x)
		}
		r.join("db", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:b"}})
		r.apply(`{"tagOwners": {"tag:a": []}}`)
		if err := r.machine("web").enrol(code); err != nil {
			t.Error(err)
		}
	})
}

// TestAnApproval waits for approval on a stream, across restarts of the coordinator and of the machine.
func TestAnApproval(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		r.apply(approvalPolicy)
		code := r.code(&redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}, TtlSeconds: 3600})
		m := r.machine("web")
		c, p := m.apply(code)
		if p.GetName() != "web" || p.GetHoldSeconds() == 0 || !strings.Contains(p.GetMessage(), "node approve "+p.GetCode()) {
			t.Fatalf("%v", p)
		}
		// It may wait as long as it sends keepalives. A newer stream replaces the previous one.
		for range 100 {
			time.Sleep(25 * time.Second)
			if _, err := c.send(&redoubtv1.Up{Message: &redoubtv1.Up_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}}); err != nil {
				t.Fatal(err)
			}
		}
		second, again := m.apply(code)
		c.ended(t)
		if again.GetCode() != p.GetCode() {
			t.Errorf("another code: %v", again)
		}
		r.stop()
		second.ended(t)
		r.start(Config{})
		list, err := r.co.Admin().ListNodes(ctx, &redoubtv1.ListNodesRequest{})
		if err != nil || len(list.GetNodes()) != 0 || len(list.GetCandidates()) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		if x := list.GetCandidates()[0]; x.GetCode() != p.GetCode() || x.GetState() != "waiting" || x.GetAttestation() != "token" || !slices.Equal(x.GetTags(), []string{"tag:a"}) ||
			!strings.HasPrefix(x.GetFrom(), "198.51.100.") || x.GetDevicePublic() != m.device.Device().String() {
			t.Errorf("%v", x)
		}
		third, _ := m.apply(code)
		if _, err := r.co.Admin().ApproveNode(ctx, &redoubtv1.ApproveNodeRequest{Node: "web", Reason: "ticket 7"}); err != nil {
			t.Fatal(err)
		}
		third.ended(t)
		if err := m.enrol(code); err != nil {
			t.Fatal(err)
		}
		n, err := r.co.Admin().GetNode(ctx, &redoubtv1.GetNodeRequest{Node: "web"})
		if v := n.GetNode().GetVerdict(); err != nil || v.GetDenied() || v.GetReason() != "ticket 7" || n.GetNode().GetWithheld() != "" {
			t.Errorf("%v, %v", n, err)
		}
		if got := r.actions(p.GetCode()); !slices.Equal(got, []string{audit.NodeApprove, audit.NodePending}) {
			t.Errorf("audit: %v", got)
		}
	})
}

func TestADenial(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		r.apply(approvalPolicy)
		code := r.code(&redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}})
		m := r.machine("web")
		c, p := m.apply(code)
		refusedWith(t, r.machine("other").enrol(code), redoubtv1.Refusal_CODE_TOKEN, "reserved for another machine")
		if _, err := r.co.Admin().DenyNode(ctx, &redoubtv1.DenyNodeRequest{Node: p.GetCode(), Reason: "who is that?"}); err != nil {
			t.Fatal(err)
		}
		c.ended(t)
		refusedWith(t, m.enrol(code), redoubtv1.Refusal_CODE_DENIED, "who is that?")
		if got := r.actions(p.GetCode()); !slices.Equal(got, []string{audit.NodeDeny, audit.NodePending}) {
			t.Errorf("audit: %v", got)
		}
		for _, bad := range []string{"nobody", "", "BCDF-GHJK"} {
			if _, err := r.co.Admin().ApproveNode(ctx, &redoubtv1.ApproveNodeRequest{Node: bad}); err == nil {
				t.Errorf("%q was approved", bad)
			}
		}
		// A policy that requires no approval admits waiting machines.
		free := r.machine("free")
		c, _ = free.apply(code)
		r.apply(openPolicy)
		c.ended(t)
		if err := free.enrol(code); err != nil {
			t.Error(err)
		}
		if _, err := r.co.Admin().ApproveNode(ctx, &redoubtv1.ApproveNodeRequest{Node: "web"}); err == nil {
			t.Error("a machine that was denied is found by its name")
		}
	})
}

// TestAPolicyThatAsksForMore checks that under a stricter policy existing nodes keep what they have, and get nothing more.
func TestAPolicyThatAsksForMore(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		r.apply(openPolicy)
		m := r.join("web", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}})
		r.join("db", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:b"}})
		s := m.attach(nil)
		tried, err := r.co.Admin().ApplyPolicy(ctx, &redoubtv1.ApplyPolicyRequest{Source: levelPolicy, DryRun: true})
		if err != nil {
			t.Fatal(err)
		}
		impact := tried.GetImpact()
		if x := impact.GetNotAdmitted(); impact.GetUnadmitted() != 1 || len(x) != 1 || x[0].GetName() != "web" || x[0].GetLacks() != "attested by token, not tpm" ||
			x[0].GetUntil() != m.cert.NotAfter.Unix() || x[0].GetBefore() {
			t.Errorf("tried: %v", impact)
		}
		withheld := func(policy, want string) *redoubtv1.Pending {
			t.Helper()
			r.apply(policy)
			if err := s.askNext(); err != nil {
				t.Fatal(err)
			}
			down := <-s.answers
			p := down.GetPending()
			if p == nil || p.GetRetryAfterSeconds() == 0 || p.GetHoldSeconds() != 0 || !strings.Contains(p.GetMessage(), want) {
				t.Fatalf("%v, want %q", down, want)
			}
			return p
		}
		withheld(levelPolicy, "requires attestation by tpm or better")
		withheld(approvalPolicy, "node approve web")
		settle()
		if nm := s.netmap(); nm == nil || len(nm.Peers) != 1 {
			t.Errorf("meanwhile it holds %+v", nm)
		}
		n, err := r.co.Admin().GetNode(ctx, &redoubtv1.GetNodeRequest{Node: "web"})
		if err != nil || n.GetNode().GetState() != "active" || n.GetNode().GetWithheld() != "not approved" {
			t.Errorf("%v, %v", n, err)
		}
		if got := r.actions("web"); got[0] != audit.RenewRefuse {
			t.Errorf("audit: %v", got)
		}
		if _, err := r.co.Admin().ApproveNode(ctx, &redoubtv1.ApproveNodeRequest{Node: "web"}); err != nil {
			t.Fatal(err)
		}
		<-s.done // it is notified at once
		refusedWith(t, s.failed(), redoubtv1.Refusal_CODE_BUSY, "something has changed")
		s = m.attach(s.netmap())
		if err := s.renew(); err != nil {
			t.Error(err)
		}
		s.close()
	})
}

// TestAnApprovalAfterTheEnd checks that a node whose certificate expired while it waited returns once it is approved.
func TestAnApprovalAfterTheEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		r.apply(openPolicy)
		m := r.join("web", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}})
		r.apply(approvalPolicy)
		time.Sleep(3 * time.Hour)
		s := m.attach(nil)
		if !s.welcome.GetRenewFirst() {
			t.Fatal("it is served")
		}
		if err := s.askNext(); err != nil {
			t.Fatal(err)
		}
		if down := <-s.answers; down.GetPending() == nil {
			t.Fatalf("%v", down)
		}
		time.Sleep(time.Hour) // with keepalives
		select {
		case <-s.done:
			t.Fatalf("it was not kept: %v", s.failed())
		default:
		}
		if s.netmap() != nil {
			t.Error("it has a netmap")
		}
		if _, err := r.co.Admin().ApproveNode(ctx, &redoubtv1.ApproveNodeRequest{Node: "web"}); err != nil {
			t.Fatal(err)
		}
		<-s.done
		refusedWith(t, s.failed(), redoubtv1.Refusal_CODE_BUSY, "something has changed")
		s = m.attach(nil)
		if err := s.renew(); err != nil {
			t.Fatal(err)
		}
		settle()
		if s.netmap() == nil {
			t.Error("it has no netmap")
		}
		s.close()
	})
}

// TestALockedNodeWaits checks that a locked node waits on a stream, which ends when the lock does.
func TestALockedNodeWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		r.apply(openPolicy)
		m := r.join("web", &redoubtv1.CreateTokenRequest{})
		lock, err := r.co.Admin().CreateLock(ctx, &redoubtv1.CreateLockRequest{Kind: "node", Subject: "web"})
		if err != nil {
			t.Fatal(err)
		}
		c, err := r.upgrade(m.leaf())
		if err != nil {
			t.Fatal(err)
		}
		hello := m.hello()
		hello.Purpose = &redoubtv1.Hello_Attach{Attach: &redoubtv1.Attach{}}
		if _, err := c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: hello}}); err != nil {
			t.Fatal(err)
		}
		_, err = c.read()
		refusedWith(t, err, redoubtv1.Refusal_CODE_LOCKED, "lock delete")
		begin := time.Now()
		if _, err := r.co.Admin().DeleteLock(ctx, &redoubtv1.DeleteLockRequest{Id: lock.GetLock().GetId()}); err != nil {
			t.Fatal(err)
		}
		c.ended(t)
		if d := time.Since(begin); d > time.Second {
			t.Errorf("told after %v", d)
		}
		// A silent node is dropped.
		if _, err := r.co.Admin().CreateLock(ctx, &redoubtv1.CreateLockRequest{Kind: "node", Subject: "web"}); err != nil {
			t.Fatal(err)
		}
		if c, err = r.upgrade(m.leaf()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: hello}}); err != nil {
			t.Fatal(err)
		}
		_, err = c.read()
		refusedWith(t, err, redoubtv1.Refusal_CODE_LOCKED, "lock delete")
		begin = time.Now()
		if _, err := c.read(); !errors.Is(err, io.EOF) && err == nil || time.Since(begin) > time.Minute {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}
