package coordinator

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/api"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// clone returns a second machine with a copy of the first one's disk.
func (m *machine) clone() *machine {
	c := *m
	return &c
}

// peerOf returns the certificate that a node has of another one.
func (s *stream) peerOf(t *testing.T, id proto.NodeID) *cert.Node {
	t.Helper()
	for _, p := range s.netmap().Peers {
		if p.ID == id {
			n, err := cert.ParseNode(p.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return nil
}

// TestKeysInCertificates checks that a certificate has the current key and its successor, which is the next certificate's first
// key.
func TestKeysInCertificates(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		s := m.attach(nil)
		if len(m.cert.Keys) != 1 || m.cert.Keys[0].Public != m.node.Public() {
			t.Fatalf("the first certificate: %+v", m.cert.Keys)
		}
		current := m.node.Public()
		for range 4 {
			time.Sleep(30 * time.Minute)
			if err := s.renew(); err != nil {
				t.Fatal(err)
			}
			k := m.cert.Keys
			if len(k) != 2 || k[0].Public != current || !k[0].NotBefore.Equal(m.cert.NotBefore) ||
				!k[1].NotBefore.Equal(m.cert.NotBefore.Add(15*time.Minute)) || !k[1].NotAfter.Equal(m.cert.NotAfter) {
				t.Fatalf("%+v, of a certificate from %v to %v", k, m.cert.NotBefore, m.cert.NotAfter)
			}
			current = k[1].Public
		}
		s.close()
	})
}

// TestWhoLearnsOfARenewal checks that nodes talking with the renewed node learn of it at once, the others within a minute.
func TestWhoLearnsOfARenewal(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(`{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["tag:a"], "dst": ["tag:a"], "ip": ["*"]}]}`)
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		talks, silent := r.join("talks", &redoubtv1.CreateTokenRequest{}), r.join("silent", &redoubtv1.CreateTokenRequest{})
		stranger := r.join("stranger", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:b"}})
		s, st, ss, sx := m.attach(nil), talks.attach(nil), silent.attach(nil), stranger.attach(nil)
		time.Sleep(30 * time.Minute)
		s.talking = []uint64{uint64(talks.cert.ID), uint64(stranger.cert.ID), 12345}
		_, before := sx.counts()
		if err := s.renew(); err != nil {
			t.Fatal(err)
		}
		settle()
		if got := st.peerOf(t, m.cert.ID); got.Sequence != 2 || len(got.Keys) != 2 {
			t.Errorf("the peer that talks with it has certificate %d with %d keys", got.Sequence, len(got.Keys))
		}
		if got := ss.peerOf(t, m.cert.ID); got.Sequence != 1 {
			t.Error("a peer that is silent is told at once")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := ss.peerOf(t, m.cert.ID); got.Sequence != 2 {
			t.Error("a peer that is silent is not told within a minute")
		}
		if _, after := sx.counts(); after != before {
			t.Error("a stranger is told something because the node named it")
		}
		for _, x := range []*stream{s, st, ss, sx} {
			x.close()
		}
	})
}

// TestClonedMachine checks that two machines with one identity are both quarantined until an administrator releases the node.
func TestClonedMachine(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		m, other := r.join("m", &redoubtv1.CreateTokenRequest{}), r.join("other", &redoubtv1.CreateTokenRequest{})
		so := other.attach(nil)
		time.Sleep(10 * time.Minute)
		thief := m.clone()
		time.Sleep(20 * time.Minute)
		s := m.attach(nil)
		if err := s.renew(); err != nil {
			t.Fatal(err)
		}
		if err := so.renew(); err != nil {
			t.Fatal(err)
		}
		s.close()

		x := thief.attach(nil)
		if !x.welcome.GetRenewFirst() || x.welcome.GetQuarantine() != "" {
			t.Errorf("the copy is welcomed with %v", x.welcome)
		}
		refusedWith(t, x.renew(), redoubtv1.Refusal_CODE_QUARANTINED, "release")
		x.close()
		settle()
		if so.peerOf(t, m.cert.ID) != nil {
			t.Error("peers still know of the node")
		}
		for name, who := range map[string]*machine{"the machine": m, "its copy": thief} {
			s := who.attach(nil)
			settle()
			if nm := s.netmap(); nm == nil || len(nm.Peers)+len(nm.Rules)+len(nm.Sets) != 0 {
				t.Errorf("%s has peers or rules: %v, %v", name, nm, s.failed())
			} else if err := nm.Validate(); err != nil {
				t.Error(err)
			}
			if q := s.welcome.GetQuarantine(); !strings.Contains(q, "release") || !strings.Contains(q, "ticket 1") {
				t.Errorf("%s is told %q", name, q)
			}
			refusedWith(t, s.renew(), redoubtv1.Refusal_CODE_QUARANTINED, "release")
			who.next = key.NodePrivate{}
			s.close()
		}
		ctx := context.Background()
		got, err := r.co.Admin().GetNode(ctx, &redoubtv1.GetNodeRequest{Node: "m"})
		if err != nil || got.GetNode().GetState() != api.NodeQuarantined || got.GetNode().GetQuarantine().GetReason() == "" || got.GetNode().GetQuarantine().GetSince() == 0 {
			t.Errorf("%v, %v", got, err)
		}

		s = m.attach(nil)
		settle()
		if _, err := r.co.Admin().ReleaseNode(ctx, &redoubtv1.ReleaseNodeRequest{Node: "m"}); err != nil {
			t.Fatal(err)
		}
		<-s.done // it must reconnect: nobody knows which of the two it is
		s.close()
		s = m.attach(nil)
		if err := s.renew(); err != nil {
			t.Fatal(err)
		}
		settle()
		if nm := s.netmap(); nm == nil || len(nm.Peers) != 1 || s.welcome.GetQuarantine() != "" {
			t.Errorf("after the release: %v, %v", nm, s.failed())
		}
		if so.peerOf(t, m.cert.ID) == nil {
			t.Error("peers do not know of the node after its release")
		}
		s.close()
		// The copy still exists.
		x = thief.attach(nil)
		refusedWith(t, x.renew(), redoubtv1.Refusal_CODE_QUARANTINED, "release")
		x.close()
		so.close()
	})
}

// TestQuarantineEndsALiveStream checks that a connected machine is notified at once when its clone is detected.
func TestQuarantineEndsALiveStream(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		thief := m.clone()
		time.Sleep(30 * time.Minute)
		x := thief.attach(nil)
		if err := x.renew(); err != nil { // the thief renews first
			t.Fatal(err)
		}
		x.close()
		x = thief.attach(nil)
		settle()
		s := m.attach(nil)
		refusedWith(t, s.renew(), redoubtv1.Refusal_CODE_QUARANTINED, "release")
		s.close()
		select {
		case <-x.done:
			refusedWith(t, x.failed(), redoubtv1.Refusal_CODE_QUARANTINED, "release")
		case <-time.After(time.Second):
			t.Error("the copy's stream goes on")
		}
		x.close()
	})
}

// TestACertificateThatWasMissedForLong checks that a node that missed a certificate can return after that has expired, too. It
// gets the missed one, which was issued, and then the next, on the same stream.
func TestACertificateThatWasMissedForLong(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		time.Sleep(30 * time.Minute)
		s := m.attach(nil)
		if err := s.askNext(); err != nil {
			t.Fatal(err)
		}
		settle()
		s.close()
		time.Sleep(5 * time.Hour)
		s = m.attach(nil)
		for want := uint64(2); want <= 3; want++ {
			if err := s.renew(); err != nil || m.cert.Sequence != want {
				t.Fatalf("certificate %d, want %d: %v", m.cert.Sequence, want, err)
			}
		}
		settle()
		if s.netmap() == nil || s.failed() != nil {
			t.Errorf("after that: %v", s.failed())
		}
		s.close()
	})
}
