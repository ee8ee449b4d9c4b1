package directory

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/ipam"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

func TestEnroll(t *testing.T) {
	r := newRig(t)
	if fresh, err := Fresh(t.Context(), r.store); err != nil || !fresh {
		t.Errorf("before the first node: fresh %v, %v", fresh, err)
	}
	tok := r.token(func(s *TokenSpec) { s.Tags, s.User = nil, "ann@example.com" })
	q := machine(t, tok, "Anns-Laptop.local")
	n := r.enroll(q)

	if fresh, err := Fresh(t.Context(), r.store); err != nil || fresh {
		t.Errorf("after the first node: fresh %v, %v", fresh, err)
	}
	s := r.Snapshot()
	mesh := s.Mesh()
	if n.Name != "anns-laptop" || n.Device != q.Device || n.Key != q.Key || n.Token != tok.ID || n.Hostname != q.Hostname ||
		n.Level != cert.LevelToken || !n.Created.Equal(start) || n.Revoked != nil || n.Ephemeral {
		t.Errorf("node: %+v", n)
	}
	if want := (proto.User{Issuer: proto.IssuerToken, Subject: "ann@example.com", Name: "ann@example.com"}); n.User != want || n.Tags != nil {
		t.Errorf("identity: %+v with tags %v", n.User, n.Tags)
	}
	if !mesh.V4.Contains(n.Addrs.V4) || !mesh.V6.Contains(n.Addrs.V6) {
		t.Errorf("addresses %v are not of %v", n.Addrs, mesh)
	}
	c := n.Certificate
	if want := n.ID.String() + " anns-laptop.mesh.internal 1"; string(c.DER) != want || c.Sequence != 1 || c.Serial != "1" ||
		!c.Issued.Equal(start) || !c.NotBefore.Equal(start.Add(-time.Minute)) || !c.NotAfter.Equal(start.Add(time.Hour)) {
		t.Errorf("certificate: %+v", c)
	}
	for what, got := range map[string]func() (*Node, bool){
		"id":      func() (*Node, bool) { return s.Lookup(n.ID) },
		"name":    func() (*Node, bool) { return s.Named("anns-laptop") },
		"device":  func() (*Node, bool) { return s.Device(q.Device) },
		"find id": func() (*Node, bool) { return s.Find(n.ID.String()) },
		"find v4": func() (*Node, bool) { return s.Find(n.Addrs.V4.String()) },
		"find v6": func() (*Node, bool) { return s.Find(n.Addrs.V6.String()) },
	} {
		if m, ok := got(); !ok || m != n {
			t.Errorf("by %s: %v, %v", what, m, ok)
		}
	}
	if spent, _ := s.Token(tok.Public); spent.State(start) != TokenSpent || spent.Spent != q.Device || spent.SpentBy != n.ID || spent.Uses != 1 {
		t.Errorf("token afterwards: %+v", spent)
	}
	book, err := r.Audit(t.Context(), 0, 10, AuditQuery{})
	if err != nil || len(book) != 4 || book[0].Action != audit.NodeEnroll || book[0].Subject != n.ID.String() || book[0].By != "token "+tok.ID {
		t.Errorf("audit: %+v, %v", book, err)
	}
}

// refused attempts an enrolment that must fail, and checks that it left no trace.
func (r *rig) refused(q EnrollRequest, want error) {
	r.t.Helper()
	before, snap := contents(r.t, r.store), r.Snapshot()
	if _, err := r.Enroll(r.t.Context(), q); !errors.Is(err, want) {
		r.t.Errorf("enrolment: %v, want %v", err, want)
	}
	if diff := cmp.Diff(before, contents(r.t, r.store)); diff != "" {
		r.t.Errorf("a refused enrolment wrote: %s", diff)
	}
	if r.Snapshot().Version() != snap.Version() || r.Snapshot().Len() != snap.Len() {
		r.t.Error("a refused enrolment is visible")
	}
}

func TestEnrollRefusals(t *testing.T) {
	r := newRig(t)
	held := r.node("held")
	gone := r.node("gone")
	if err := r.DeleteNode(t.Context(), gone.ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	revoked := r.node("revoked")
	if _, err := r.RevokeNode(t.Context(), revoked.ID, "stolen", "uid 0"); err != nil {
		t.Fatal(err)
	}
	tok := r.token(nil)
	with := func(change func(*EnrollRequest)) EnrollRequest {
		q := machine(t, tok, "host")
		change(&q)
		return q
	}
	r.refused(with(func(q *EnrollRequest) { q.Token = newTokenKey(t) }), ErrTokenUnknown)
	r.refused(with(func(q *EnrollRequest) { q.Token = key.TokenPublic{} }), ErrInvalid)
	r.refused(with(func(q *EnrollRequest) { q.Hostname = strings.Repeat("x", MaxHostname+1) }), ErrInvalid)
	r.refused(with(func(q *EnrollRequest) { q.Device = held.Device }), ErrKeyUsed)
	r.refused(with(func(q *EnrollRequest) { q.Key = held.Key }), ErrKeyUsed)
	r.refused(with(func(q *EnrollRequest) { q.Device, q.Key = held.Device, held.Key }), ErrKeyUsed)
	r.refused(with(func(q *EnrollRequest) { q.Device = gone.Device }), ErrKeyUsed)
	r.refused(with(func(q *EnrollRequest) { q.Key = gone.Key }), ErrKeyUsed)
	r.refused(with(func(q *EnrollRequest) { q.Device = revoked.Device }), ErrRevoked)
	r.refused(with(func(q *EnrollRequest) { q.Key = revoked.Key }), ErrKeyUsed)

	if _, err := r.RevokeToken(t.Context(), tok.ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	r.refused(machine(t, tok, "host"), ErrTokenRevoked)

	late := r.token(nil)
	spent := r.token(nil)
	r.enroll(machine(t, spent, "first"))
	r.refused(machine(t, spent, "second"), ErrTokenSpent)
	r.clock.pass(time.Hour)
	r.refused(machine(t, late, "host"), ErrTokenExpired)
}

func TestAnIssuerThatFailsSpendsNothing(t *testing.T) {
	r := newRig(t)
	tok := r.token(nil)
	r.Close()
	broken := errors.New("broken")
	d, err := Open(t.Context(), r.store, Config{Clock: r.clock.now, Rand: r.config().Rand, Signer: signer, Issue: func(cert.Node, time.Time) (cert.Node, error) {
		return cert.Node{}, broken
	}})
	if err != nil {
		t.Fatal(err)
	}
	r.Directory = d
	r.refused(machine(t, tok, "host"), broken)
	r.reopen()
	r.enroll(machine(t, tok, "host"))
}

func TestALostReplyEnrolsOnce(t *testing.T) {
	for name, reusable := range map[string]bool{"single-use": false, "reusable": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			tok := r.token(func(s *TokenSpec) { s.Reusable = reusable; s.TTL = 50 * time.Minute })
			q := machine(t, tok, "host")
			first := r.enroll(q)
			if again := r.enroll(q); again != first {
				t.Errorf("again: %+v, want the node that it is", again)
			}
			r.reopen()
			if again := r.enroll(q); again.ID != first.ID || !slices.Equal(again.Certificate.DER, first.Certificate.DER) {
				t.Errorf("again after a restart: %+v", again)
			}
			r.clock.pass(40 * time.Minute)
			if again := r.enroll(q); again.ID != first.ID || again.Certificate.Sequence != 2 {
				t.Errorf("again when the certificate is old: %+v, want the same node with a new one", again)
			}
			other := q
			other.Key = newNodeKey(t)
			r.refused(other, ErrKeyUsed)
			r.clock.pass(10 * time.Minute)
			r.refused(q, ErrTokenExpired)
			if n := r.Snapshot().Len(); n != 1 {
				t.Errorf("%d nodes, want one", n)
			}
		})
	}
}

func TestOf64WithOneTokenOneIsEnrolled(t *testing.T) {
	r := newRig(t)
	tok := r.token(nil)
	const many = 64
	nodes, errs := make([]*Node, many), make([]error, many)
	var wait sync.WaitGroup
	for i := range many {
		q := machine(t, tok, "host")
		wait.Go(func() { nodes[i], errs[i] = r.Enroll(t.Context(), q) })
	}
	wait.Wait()
	won := 0
	for i, err := range errs {
		switch {
		case err == nil:
			won++
			if s, _ := r.Snapshot().Token(tok.Public); s.SpentBy != nodes[i].ID {
				t.Errorf("the token was spent by %v, not by %v", s.SpentBy, nodes[i].ID)
			}
		case !errors.Is(err, ErrTokenSpent):
			t.Error(err)
		}
	}
	if won != 1 || r.Snapshot().Len() != 1 {
		t.Errorf("%d enrolments succeeded and made %d nodes, want one", won, r.Snapshot().Len())
	}
}

func TestAFullRange(t *testing.T) {
	r := newRigOn(t, store.NewMemory(), smallPlan)
	tok := r.reusable()
	room := ipam.Capacity(smallPlan.V4)
	seen := map[netip.Addr]bool{}
	var last *Node
	for range room {
		last = r.enroll(machine(t, tok, "host"))
		if seen[last.Addrs.V4] || seen[last.Addrs.V6] {
			t.Fatalf("%v were given twice", last.Addrs)
		}
		seen[last.Addrs.V4], seen[last.Addrs.V6] = true, true
	}
	q := machine(t, tok, "one-more")
	r.refused(q, ipam.ErrExhausted)

	if err := r.DeleteNode(t.Context(), last.ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	r.refused(q, ipam.ErrExhausted) // the address is held back
	r.reopen()
	r.refused(q, ipam.ErrExhausted)

	r.clock.pass(ipam.Rest)
	if _, err := r.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	tok = r.token(nil)
	if n := r.enroll(machine(t, tok, "one-more")); n.Addrs != last.Addrs {
		t.Errorf("got %v, only %v were left", n.Addrs, last.Addrs)
	}
}
