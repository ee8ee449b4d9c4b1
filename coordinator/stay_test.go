package coordinator

import (
	"context"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// staying enrols a machine that continues on its stream.
func (r *rig) staying(host string) (*machine, *wireConn) {
	r.t.Helper()
	m := r.machine(host)
	m.stays = true
	c, err := m.enrolOn(r.code(&redoubtv1.CreateTokenRequest{}))
	if err != nil {
		r.t.Fatal(err)
	}
	if !m.result.GetStays() {
		r.t.Fatal("a machine that would stay may not")
	}
	return m, c
}

// TestStayAfterEnrolment checks that an enrolled machine is a node on the same stream: it gets its netmap, renews there, and
// can later attach elsewhere.
func TestStayAfterEnrolment(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		other := r.join("other", &redoubtv1.CreateTokenRequest{})
		m, c := r.staying("m")
		welcome, err := m.greet(c, proto.Version{})
		if err != nil {
			t.Fatal(err)
		}
		if welcome.GetRenewFirst() || welcome.GetQuarantine() != "" {
			t.Errorf("welcome %v", welcome)
		}
		s := m.serve(c, welcome, nil)
		settle()
		if nm := s.netmap(); nm == nil || nm.Self != m.cert.ID || len(nm.Peers) != 1 || nm.Peers[0].ID != other.cert.ID {
			t.Errorf("netmap %v", nm)
		}
		n, err := r.co.Admin().GetNode(context.Background(), &redoubtv1.GetNodeRequest{Node: "m"})
		if err != nil || !n.GetNode().GetConnected() {
			t.Errorf("%v, %v", n, err)
		}
		before := m.cert.Sequence
		if err := s.renew(); err != nil || m.cert.Sequence != before+1 {
			t.Errorf("renewal on the stream: %v, certificate %d after %d", err, m.cert.Sequence, before)
		}
		// The stream ends like any other: with its certificate, or for a newer stream.
		again := m.attach(s.netmap())
		<-s.done
		refusedWith(t, s.failed(), redoubtv1.Refusal_CODE_REPLACED, "")
		s.close()
		again.close()
	})
}

// TestStaysThatAreRefused checks that a stream is a node's only if a machine became that node on it.
func TestStaysThatAreRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ctx := context.Background()

		stranger, err := r.upgrade(nil)
		if err != nil {
			t.Fatal(err)
		}
		m := r.join("known", &redoubtv1.CreateTokenRequest{})
		_, err = m.greet(stranger, proto.Version{})
		refusedWith(t, err, redoubtv1.Refusal_CODE_PROOF, "certificate")
		stranger.t.Close()

		// After an invalid proof there is nothing to attach with.
		code := r.code(&redoubtv1.CreateTokenRequest{})
		liar := r.machine("liar")
		liar.stays = true
		c, sum, challenge, err := liar.ask(code)
		if err != nil {
			t.Fatal(err)
		}
		p := liar.proof(c, liar.node, wire.DomainEnrol, sum, challenge, &code.Secret)
		p.DeviceSignature = m.proof(c, liar.node, wire.DomainEnrol, sum, challenge, nil).GetDeviceSignature()
		if _, err := c.send(up(p)); err != nil {
			t.Fatal(err)
		}
		if _, err := liar.greet(c, proto.Version{}); err == nil {
			t.Error("a machine whose proof does not hold attached")
		}
		c.t.Close()

		late, c := r.staying("revoked")
		if _, err := r.co.Admin().RevokeNode(ctx, &redoubtv1.RevokeNodeRequest{Node: "revoked"}); err != nil {
			t.Fatal(err)
		}
		_, err = late.greet(c, proto.Version{})
		refusedWith(t, err, redoubtv1.Refusal_CODE_REVOKED, "")
		c.t.Close()

		for name, message := range map[string]*redoubtv1.Up{
			"another enrolment": {Message: &redoubtv1.Up_Hello{Hello: late.enrols(code)}},
			"no hello":          {Message: &redoubtv1.Up_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}},
		} {
			_, c := r.staying("m")
			if _, err := c.send(message); err != nil {
				t.Fatal(err)
			}
			_, err := c.read()
			if codeOf(err) != redoubtv1.Refusal_CODE_MALFORMED {
				t.Errorf("%s: %v", name, err)
			}
			c.t.Close()
		}

		// A silent machine is soon cut off, and a machine that did not ask to stay may not.
		_, c = r.staying("silent")
		start := time.Now()
		if down, err := c.read(); err == nil || time.Since(start) > 15*time.Second {
			t.Errorf("silence: %v, %v after %v", down, err, time.Since(start))
		}
		c.t.Close()
		leaves := r.machine("leaves")
		c, err = leaves.enrolOn(r.code(&redoubtv1.CreateTokenRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		if leaves.result.GetStays() {
			t.Error("a machine that did not ask may stay")
		}
		if welcome, err := leaves.greet(c, proto.Version{}); err == nil {
			t.Errorf("a machine that did not ask attached: %v", welcome)
		}
		c.t.Close()
	})
}
