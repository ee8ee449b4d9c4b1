package coordinator

import (
	"sync/atomic"
	"testing"
	"time"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// TestClockThatWasAhead checks that nodes whose certificates are not yet valid, because the coordinator's clock was ahead when
// it issued them, return as soon as the clock is right, without waiting for the certificates to become valid.
func TestClockThatWasAhead(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		var ahead atomic.Int64
		r.stop()
		r.start(Config{Clock: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
		r.apply(openPolicy)
		m, other := r.join("m", &redoubtv1.CreateTokenRequest{}), r.join("other", &redoubtv1.CreateTokenRequest{}).attach(nil)
		s := m.attach(nil)
		ahead.Store(int64(40 * time.Minute))
		if err := s.renew(); err != nil {
			t.Fatal(err)
		}
		s.close()
		ahead.Store(0)
		if !m.cert.NotBefore.After(time.Now()) {
			t.Fatal("the test's certificate is valid already")
		}

		s = m.attach(nil)
		if !s.welcome.GetRenewFirst() {
			t.Error("the node is not asked to renew")
		}
		before := m.cert.Sequence
		if err := s.renew(); err != nil {
			t.Fatal(err)
		}
		if m.cert.NotBefore.After(time.Now()) || m.cert.Sequence <= before {
			t.Errorf("certificate %d after %d, valid in %v", m.cert.Sequence, before, time.Until(m.cert.NotBefore))
		}
		settle()
		if nm := s.netmap(); nm == nil || len(nm.Peers) != 1 {
			t.Errorf("after the renewal: %v", s.failed())
		}
		s.close()
		other.close()
	})
}
