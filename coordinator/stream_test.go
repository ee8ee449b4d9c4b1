package coordinator

import (
	"context"
	"crypto/x509"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

func TestRenewals(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		s := m.attach(nil)
		for n := range 20 {
			time.Sleep(30 * time.Minute)
			if err := s.renew(); err != nil {
				t.Fatal(err)
			}
			if m.cert.Sequence != uint64(n+2) {
				t.Fatalf("sequence %d after %d renewals", m.cert.Sequence, n+1)
			}
		}
		if s.failed() != nil {
			t.Errorf("ten hours later: %v", s.failed())
		}
		s.close()
	})
}

func TestRenewalsWithLostReplies(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		time.Sleep(30 * time.Minute)
		s := m.attach(nil)
		// The challenge is lost.
		if _, err := s.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Renew{Renew: &redoubtv1.Renew{NodePublic: m.node.Public().Bytes()}}}); err != nil {
			t.Fatal(err)
		}
		s.close()
		// The result is lost.
		s = m.attach(s.netmap())
		if err := s.askNext(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s.close()
		s = m.attach(s.netmap())
		if err := s.renew(); err != nil {
			t.Fatal(err)
		}
		if m.cert.Sequence != 2 {
			t.Errorf("sequence %d: a renewal whose result was lost was not taken for the same", m.cert.Sequence)
		}
		s.close()
	})
}

func TestRenewalsThatAreRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		// A key that the node already uses cannot be its next.
		m.next = m.node
		s := m.attach(nil)
		refusedWith(t, s.renew(), redoubtv1.Refusal_CODE_KEY_USED, "")
		s.close()

		m.next = key.NodePrivate{}
		ticket := m.result.GetTicket()
		m.result.Ticket = nil
		s = m.attach(nil)
		refusedWith(t, s.renew(), redoubtv1.Refusal_CODE_PROOF, "ticket")
		s.close()
		m.result.Ticket = ticket

		var err error
		device := m.device
		s = m.attach(nil)
		if m.device, err = key.NewDevice(random); err != nil {
			t.Fatal(err)
		}
		refusedWith(t, s.renew(), redoubtv1.Refusal_CODE_PROOF, "")
		s.close()

		m.device = device
		s = m.attach(nil)
		if _, err := s.c.send(up(&redoubtv1.Proof{NodeKeyMac: make([]byte, 32), DeviceSignature: make([]byte, 70)})); err != nil {
			t.Fatal(err)
		}
		<-s.done
		refusedWith(t, s.failed(), redoubtv1.Refusal_CODE_MALFORMED, "nobody asked")
		s.close()
	})
}

func TestExpiredCertificateRenewsFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		other := r.join("other", &redoubtv1.CreateTokenRequest{})
		time.Sleep(time.Hour + DefaultGrace + directory.Patience + 2*time.Minute)
		s := m.attach(nil)
		if !s.welcome.GetRenewFirst() {
			t.Error("the welcome does not ask for a renewal")
		}
		settle()
		if s.netmap() != nil {
			t.Error("a node with an expired certificate got a netmap")
		}
		if _, err := s.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Report{Report: &redoubtv1.Report{ListenPort: 41641}}}); err != nil {
			t.Fatal(err)
		}
		if err := s.renew(); err != nil {
			t.Fatal(err)
		}
		settle()
		if s.netmap() == nil || s.failed() != nil {
			t.Errorf("after the renewal: %v", s.failed())
		}
		if e := r.co.directory.Snapshot().Reach(m.cert.ID).Endpoints; len(e) != 1 {
			t.Errorf("what the node reported before it had renewed: %v", e)
		}
		if len(s.netmap().Peers) != 0 {
			t.Error("a peer whom nobody may trust any more is in the netmap")
		}
		s.close()

		// A node that does not renew is soon cut off.
		idle, _, err := other.open(proto.Version{})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := idle.read(); err == nil || time.Since(start) > time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		idle.t.Close()
		if _, err := r.co.Admin().RevokeNode(context.Background(), &redoubtv1.RevokeNodeRequest{Node: "other"}); err != nil {
			t.Fatal(err)
		}
		_, _, err = other.open(proto.Version{})
		refusedWith(t, err, redoubtv1.Refusal_CODE_REVOKED, "")
	})
}

func TestCertificateEndsDuringTheStream(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		s := r.join("m", &redoubtv1.CreateTokenRequest{}).attach(nil)
		start := time.Now()
		<-s.done
		refusedWith(t, s.failed(), redoubtv1.Refusal_CODE_EXPIRED, "renew")
		if d := time.Since(start); d < time.Hour || d > time.Hour+2*time.Minute {
			t.Errorf("after %v", d)
		}
		s.close()
	})
}

func TestKeepAlive(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		s := m.attach(nil)
		time.Sleep(20 * time.Minute)
		if s.failed() != nil {
			t.Errorf("a stream on which nothing happens: %v", s.failed())
		}
		s.close()
		c, _, err := m.open(proto.Version{})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		heard, silence := start, time.Duration(0)
		for {
			b, err := wire.ReadFrame(c.r, nil, wire.MaxFrame)
			silence = max(silence, time.Since(heard))
			heard = time.Now()
			if err != nil {
				break
			}
			if _, err := wire.DecodeDown(b); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d != 55*time.Second || silence > 38*time.Second {
			t.Errorf("a node that says nothing: cut off after %v, told nothing for up to %v", d, silence)
		}
		c.t.Close()
		settle()
		n, err := r.co.Admin().GetNode(context.Background(), &redoubtv1.GetNodeRequest{Node: "m"})
		if err != nil || n.GetNode().GetConnected() || n.GetNode().GetLastSeen() == 0 {
			t.Errorf("afterwards: %v, %v", n, err)
		}
	})
}

func TestNewerStreamReplacesTheOlder(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		first := m.attach(nil)
		settle()
		second := m.attach(first.netmap())
		<-first.done
		refusedWith(t, first.failed(), redoubtv1.Refusal_CODE_REPLACED, "copied")
		// Messages on the replaced stream are ignored.
		if _, err := first.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Report{Report: &redoubtv1.Report{ListenPort: 666}}}); err != nil {
			t.Fatal(err)
		}
		settle()
		if e := r.co.directory.Snapshot().Reach(m.cert.ID).Endpoints; len(e) != 0 {
			t.Errorf("the stream that was replaced set the endpoints to %v", e)
		}
		first.close()
		settle()
		n, err := r.co.Admin().GetNode(context.Background(), &redoubtv1.GetNodeRequest{Node: "m"})
		if err != nil || !n.GetNode().GetConnected() || second.failed() != nil {
			t.Errorf("%v %v %v", n, err, second.failed())
		}
		if full, deltas := second.counts(); full+deltas != 0 {
			t.Errorf("the second stream had everything and was sent %d snapshots and %d deltas", full, deltas)
		}
		second.close()
	})
}

func TestEndpoints(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		a, b := r.join("a", &redoubtv1.CreateTokenRequest{}), r.join("b", &redoubtv1.CreateTokenRequest{})
		sa, sb := a.attach(nil), b.attach(nil)
		settle()
		report := &redoubtv1.Report{ListenPort: 41641, Endpoints: []*redoubtv1.Endpoint{
			{Address: []byte{10, 0, 0, 7}, Port: 41641, Kind: redoubtv1.Endpoint_KIND_INTERFACE},
		}}
		if _, err := sa.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Report{Report: report}}); err != nil {
			t.Fatal(err)
		}
		settle()
		want := "[" + sa.c.t.LocalAddr().(interface{ String() string }).String()
		if p := sb.netmap().Peers; len(p) != 1 || len(p[0].Endpoints) != 2 {
			t.Fatalf("%+v", p)
		} else if e := p[0].Endpoints; e[0].Kind != proto.EndpointObserved || e[0].Addr.Port() != 41641 || "["+e[0].Addr.Addr().String()+":50000" != want || e[1].Addr.String() != "10.0.0.7:41641" {
			t.Errorf("endpoints %v, want the observed one %v first", e, want)
		}
		report.Endpoints[0].Address = a.cert.Addrs.V4.AsSlice() // a mesh address is not a valid endpoint
		if _, err := sa.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Report{Report: report}}); err != nil {
			t.Fatal(err)
		}
		<-sa.done
		refusedWith(t, sa.failed(), redoubtv1.Refusal_CODE_MALFORMED, "endpoint")
		sa.close()
		sb.close()
	})
}

// TestStuckReader checks that nodes that request much and read nothing do not slow down others.
func TestStuckReader(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		var stuck []*wireConn
		for i := range 40 { // more than there are writers
			m := r.join(fmt.Sprintf("stuck%d", i), &redoubtv1.CreateTokenRequest{})
			c, _, err := m.open(proto.Version{})
			if err != nil {
				t.Fatal(err)
			}
			stuck = append(stuck, c)
		}
		s := r.join("honest", &redoubtv1.CreateTokenRequest{}).attach(nil)
		settle()
		for i := range 200 { // until their buffers are full
			source := fmt.Sprintf(`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["tcp:%d", "udp:%s"]}]}`, i+1, ports(i))
			r.apply(source)
			time.Sleep(25 * time.Millisecond)
			synctest.Wait()
			if got := s.netmap().Version; got != r.co.directory.Snapshot().Version() {
				t.Fatalf("change %d: the node that reads is at %v, not %v", i, got, r.co.directory.Snapshot().Version())
			}
		}
		time.Sleep(time.Minute)
		for _, c := range stuck {
			c.t.Close()
		}
		s.close()
	})
}

// ports returns a port range that differs for each i.
func ports(i int) string {
	return fmt.Sprintf("%d-%d", 1000+i, 2000+i)
}

// TestRolesAndMeshes presents certificates that do not belong to a node of this mesh.
func TestRolesAndMeshes(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		now := time.Now()
		other, err := proto.NewMeshID(random)
		if err != nil {
			t.Fatal(err)
		}
		for name, mesh := range map[string]proto.MeshID{"a root of one's own": r.co.Mesh().ID, "another mesh": other} {
			root, err := cert.NewRoot(random, mesh, now, 24*time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			mid, err := root.NewIntermediate(random, now, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			forged := *m.cert
			forged.Mesh = mesh
			issued, err := mid.IssueNode(random, forged)
			if err != nil {
				t.Fatal(err)
			}
			m.result.Certificate, m.result.Chain = issued.Raw, [][]byte{mid.Certificate().Raw, root.Certificate().Raw}
			if _, _, err := m.open(proto.Version{}); err == nil {
				t.Errorf("%s: let in", name)
			}
		}
		// A certificate of this mesh, for a node that has a different device key.
		stranger := r.machine("stranger")
		swapped := *m.cert
		swapped.Device = stranger.device.Device()
		issued, err := r.co.issuer.IssueNode(swapped, now)
		if err != nil {
			t.Fatal(err)
		}
		stranger.result = &redoubtv1.Result{Certificate: issued.Raw, Chain: r.co.issuer.Authorities()}
		_, _, err = stranger.open(proto.Version{})
		refusedWith(t, err, redoubtv1.Refusal_CODE_DELETED, "")
		// The coordinator's own certificate, presented by someone who stole its key.
		leaf, err := r.co.issuer.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := r.upgrade(leaf); err == nil {
			t.Error("a coordinator's certificate was taken for a node's")
			c.t.Close()
		}
		// A node posing as a coordinator: every agent checks for this.
		verifier, err := cert.NewVerifier(r.co.Mesh().ID, []*x509.Certificate{rootOf(t, r)})
		if err != nil {
			t.Fatal(err)
		}
		fresh := r.join("m2", &redoubtv1.CreateTokenRequest{})
		if _, err := verifier.Coordinator(append([][]byte{fresh.result.GetCertificate()}, fresh.result.GetChain()...), now); err == nil {
			t.Error("a node's certificate is taken for a coordinator's")
		}
	})
}

func rootOf(t *testing.T, r *rig) *x509.Certificate {
	t.Helper()
	root, err := x509.ParseCertificate(r.co.issuer.Roots()[0])
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// TestRevocationWithoutEverybody revokes a node while one of its peers is away: the reply does not wait for that peer, and says
// until when it may still trust the node.
func TestRevocationWithoutEverybody(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		here, away, target := r.join("here", &redoubtv1.CreateTokenRequest{}), r.join("away", &redoubtv1.CreateTokenRequest{}), r.join("target", &redoubtv1.CreateTokenRequest{})
		s, gone := here.attach(nil), away.attach(nil)
		settle()
		gone.close()
		settle()
		start := time.Now()
		a, err := r.co.Admin().RevokeNode(context.Background(), &redoubtv1.RevokeNodeRequest{Node: "target"})
		if err != nil || a.GetHolders() != 2 || a.GetEnforced() != 1 || time.Since(start) > 100*time.Millisecond {
			t.Errorf("%v, %v, after %v", a, err, time.Since(start))
		}
		if want := target.cert.NotAfter.Add(cert.Skew + DefaultGrace).Unix(); a.GetBound() != want {
			t.Errorf("bound %d, want %d", a.GetBound(), want)
		}
		s.close()
	})
}

func TestDeletedNode(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		s := m.attach(nil)
		settle()
		if _, err := r.co.Admin().DeleteNode(context.Background(), &redoubtv1.DeleteNodeRequest{Node: m.cert.ID.String()}); err != nil {
			t.Fatal(err)
		}
		<-s.done
		refusedWith(t, s.failed(), redoubtv1.Refusal_CODE_DELETED, "enrol again")
		s.close()
		_, _, err := m.open(proto.Version{})
		refusedWith(t, err, redoubtv1.Refusal_CODE_DELETED, "enrol again")
	})
}

// TestTooManyRequests checks that a node that floods reports is slowed down, and no other node.
func TestTooManyRequests(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		a, b := r.join("a", &redoubtv1.CreateTokenRequest{}), r.join("b", &redoubtv1.CreateTokenRequest{})
		sa, sb := a.attach(nil), b.attach(nil)
		settle()
		_, before := sb.counts()
		for i := range 40 {
			report := &redoubtv1.Report{ListenPort: uint32(1000 + i)}
			if _, err := sa.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Report{Report: report}}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if e := sb.netmap().Peers[0].Endpoints; len(e) != 1 || e[0].Addr.Port() > 1012 {
			t.Errorf("a second later the coordinator has heard as far as %v", e)
		}
		time.Sleep(9 * time.Second)
		synctest.Wait()
		_, after := sb.counts()
		if after-before > 12 {
			t.Errorf("%d deltas in ten seconds", after-before)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if e := sb.netmap().Peers[0].Endpoints; len(e) != 1 || e[0].Addr.Port() != 1039 {
			t.Errorf("the last report is not in force: %v", e)
		}
		sa.close()
		sb.close()
	})
}
