package directory

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

func TestKeysTakeTurns(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	first := n.Key
	var keys []key.NodePublic
	for i := range 4 {
		r.clock.pass(30 * time.Minute)
		k := newNodeKey(t)
		before := n
		n, _ = r.Renew(t.Context(), r.renewal(n, k))
		if n == nil || n.Next != k || n.Certificate.Sequence != uint64(i)+2 || !n.NextFrom.Equal(r.clock.now().Add(15*time.Minute)) ||
			!n.Certificate.NotAfter.Equal(r.clock.now().Add(time.Hour)) || bytes.Equal(n.NextTicket(), before.NextTicket()) {
			t.Fatalf("renewal %d: %+v", i, n)
		}
		want := first
		if i > 0 {
			want = keys[i-1]
		}
		if n.Key != want {
			t.Errorf("renewal %d: the key in use is not the one that was next before", i)
		}
		keys = append(keys, k)
	}
	r.reopen()
	m, _ := r.Snapshot().Lookup(n.ID)
	if !cmp.Equal(m, n, opaque) || !bytes.Equal(m.NextTicket(), n.NextTicket()) {
		t.Errorf("after a restart: %s", cmp.Diff(m, n, opaque))
	}
	r.clock.pass(10 * time.Hour)
	if n = r.renew(n); n.Key != keys[3] {
		t.Error("after its end the certificate goes on with another key than the next")
	}
}

func TestRenewalRefusals(t *testing.T) {
	r := newRig(t)
	n, other := r.renew(r.node("host")), r.node("other")
	for what, q := range map[string]struct {
		q    Renewal
		want error
	}{
		"its own key":          {r.renewal(n, n.Key), ErrKeyUsed},
		"its own next key":     {r.renewal(n, n.Next), ErrKeyUsed},
		"another node's key":   {r.renewal(n, other.Key), ErrKeyUsed},
		"no key":               {r.renewal(n, key.NodePublic{}), ErrInvalid},
		"nobody":               {Renewal{ID: 12345, Key: newNodeKey(t)}, ErrUnknown},
		"no ticket":            {Renewal{ID: n.ID, Key: newNodeKey(t)}, ErrTicket},
		"another's ticket":     {Renewal{ID: n.ID, Key: newNodeKey(t), Ticket: other.NextTicket()}, ErrTicket},
		"a ticket of nothing":  {Renewal{ID: n.ID, Key: newNodeKey(t), Ticket: make([]byte, TicketSize)}, ErrTicket},
		"half a ticket":        {Renewal{ID: n.ID, Key: newNodeKey(t), Ticket: n.NextTicket()[:20]}, ErrTicket},
		"a ticket with a flaw": {Renewal{ID: n.ID, Key: newNodeKey(t), Ticket: flip(n.NextTicket())}, ErrTicket},
	} {
		before := contents(t, r.store)
		if _, err := r.Renew(t.Context(), q.q); !errors.Is(err, q.want) {
			t.Errorf("%s: %v, want %v", what, err, q.want)
		}
		if diff := cmp.Diff(before, contents(t, r.store)); diff != "" {
			t.Errorf("%s: a refused renewal wrote %s", what, diff)
		}
	}
	if _, err := r.RevokeNode(t.Context(), n.ID, "", "uid 0"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Renew(t.Context(), r.renewal(n, newNodeKey(t))); !errors.Is(err, ErrRevoked) {
		t.Errorf("of a revoked node: %v, want ErrRevoked", err)
	}
}

func flip(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

// TestALostReplyRenewsOnce checks that repeating a request after a lost reply, any time and any number of times, returns the
// missed reply without a quarantine.
func TestALostReplyRenewsOnce(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	for range 3 {
		q := r.renewal(n, newNodeKey(t))
		next, err := r.Renew(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, pause := range []time.Duration{0, time.Second, 20 * time.Minute, 3 * time.Hour} {
			r.clock.pass(pause)
			r.reopen()
			again, err := r.Renew(t.Context(), q)
			if err != nil || !bytes.Equal(again.Certificate.DER, next.Certificate.DER) || !bytes.Equal(again.NextTicket(), next.NextTicket()) {
				t.Fatalf("%v later: %+v, %v; want the certificate that was issued", pause, again, err)
			}
		}
		n = next
	}
}

func TestTwoMachinesWithOneIdentity(t *testing.T) {
	for name, c := range map[string]struct {
		second func(r *rig, old, n *Node) Renewal
	}{
		"the same ticket with another key": {func(r *rig, old, _ *Node) Renewal { return r.renewal(old, newNodeKey(r.t)) }},
		"a ticket whose time is over": {func(r *rig, old, n *Node) Renewal {
			r.renew(n)
			return r.renewal(old, newNodeKey(r.t))
		}},
		"a retry after the next ticket was used": {func(r *rig, old, n *Node) Renewal {
			r.renew(n)
			return r.renewal(old, n.Next)
		}},
		"an old copy": {func(r *rig, old, n *Node) Renewal {
			for range 5 {
				n = r.renew(n)
			}
			return Renewal{ID: old.ID, Key: newNodeKey(r.t), Ticket: old.ticketOf(1)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			old := r.renew(r.node("host"))
			n := r.renew(old)
			q := c.second(r, old, n)
			now, _ := r.Snapshot().Lookup(n.ID)
			if _, err := r.Renew(t.Context(), q); !errors.Is(err, ErrQuarantined) {
				t.Fatalf("%v, want quarantine", err)
			}
			for range 2 {
				got, _ := r.Snapshot().Lookup(n.ID)
				if got.Quarantine == nil || !bytes.Equal(got.Certificate.DER, now.Certificate.DER) {
					t.Fatalf("%+v", got)
				}
				if _, ok := r.Snapshot().Node(n.ID); ok {
					t.Error("policies know of it")
				}
				// Likewise for the other machine.
				if _, err := r.Renew(t.Context(), r.renewal(now, newNodeKey(t))); !errors.Is(err, ErrQuarantined) {
					t.Errorf("the machine that was first: %v", err)
				}
				r.reopen()
			}
			book, err := r.Audit(t.Context(), 0, 1, AuditQuery{})
			if err != nil || book[0].Action != audit.NodeQuarantine || book[0].Subject != n.ID.String() || book[0].Reason == "" {
				t.Errorf("audit: %+v, %v", book, err)
			}
		})
	}
}

func TestRelease(t *testing.T) {
	r := newRig(t)
	old := r.renew(r.node("host"))
	n := r.renew(old)
	if _, err := r.ReleaseNode(t.Context(), n.ID, "uid 0"); !errors.Is(err, ErrInvalid) {
		t.Errorf("of a node that is in no quarantine: %v", err)
	}
	if _, err := r.Renew(t.Context(), r.renewal(old, newNodeKey(t))); !errors.Is(err, ErrQuarantined) {
		t.Fatal(err)
	}
	release := func() {
		t.Helper()
		released, err := r.ReleaseNode(t.Context(), n.ID, "uid 0")
		if err != nil || released.Quarantine != nil {
			t.Fatalf("%+v, %v", released, err)
		}
		if _, ok := r.Snapshot().Node(n.ID); !ok {
			t.Error("policies do not know of it again")
		}
		r.reopen()
	}
	release()
	// The machine with the old disk continues: only its new key is known.
	k := newNodeKey(t)
	back, err := r.Renew(t.Context(), r.renewal(old, k))
	if err != nil || back.Key != k || !back.Next.IsZero() {
		t.Fatalf("%+v, %v", back, err)
	}
	if again, err := r.Renew(t.Context(), r.renewal(old, k)); err != nil || !bytes.Equal(again.Certificate.DER, back.Certificate.DER) {
		t.Errorf("its reply was lost: %v", err)
	}
	if back = r.renew(back); back.Key != k {
		t.Errorf("%+v", back)
	}
	// The other machine still exists.
	if _, err := r.Renew(t.Context(), r.renewal(n, newNodeKey(t))); !errors.Is(err, ErrQuarantined) {
		t.Errorf("the other machine: %v", err)
	}
	// The legitimate machine now has the newest ticket, and loses nothing.
	release()
	if n = r.renew(back); n.Key != back.Next {
		t.Errorf("%+v", n)
	}
}

// TestBeforeThereWereTickets checks that a node that joined before tickets existed needs none for its first renewal, and one
// from then on.
func TestBeforeThereWereTickets(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	old := *n
	old.Seed, old.Ticket = nil, 0
	op, err := nodeOp(&old)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.Txn(t.Context(), nil, []store.Op{op}); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	n, _ = r.Snapshot().Lookup(n.ID)
	if n.NextTicket() != nil {
		t.Fatalf("%+v", n)
	}
	q := Renewal{ID: n.ID, Key: newNodeKey(t)}
	if n, err = r.Renew(t.Context(), q); err != nil || n.NextTicket() == nil || n.Next != q.Key {
		t.Fatalf("%+v, %v", n, err)
	}
	q.Key = newNodeKey(t)
	if _, err := r.Renew(t.Context(), q); !errors.Is(err, ErrTicket) {
		t.Errorf("once more without a ticket: %v", err)
	}
	r.renew(n)
}

// TestKeysThatWereGivenUp checks that a retired key is refused as long as a certificate with it may still be in use, and then
// forgotten: a mesh of ten thousand nodes retires half a million in a day.
func TestKeysThatWereGivenUp(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	first := n.Key
	n = r.renew(r.renew(n)) // first is in no certificate any longer
	other := r.node("other")
	tries := func(want error) {
		t.Helper()
		if _, err := r.Renew(t.Context(), r.renewal(other, first)); !errors.Is(err, want) {
			t.Errorf("the key again: %v, want %v", err, want)
		}
	}
	tries(ErrKeyUsed)
	r.reopen()
	expire := func() {
		t.Helper()
		if _, err := r.Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.clock.pass(time.Hour + 2*cert.Skew + Patience - time.Second)
	expire()
	tries(ErrKeyUsed)
	held := r.Snapshot().state.held.Len()
	r.clock.pass(time.Second)
	expire()
	r.reopen()
	if got := r.Snapshot().state.held.Len(); got != held-1 {
		t.Errorf("%d keys are remembered, want one less than %d", got, held)
	}
	tries(nil)
	for range 50 {
		n = r.renew(n)
		r.clock.pass(30 * time.Minute)
		expire()
	}
	if got := r.Snapshot().state.held.Len(); got > 10 {
		t.Errorf("%d keys are remembered after 50 renewals", got)
	}
}

func TestEnrolmentIsNotAskedForAgainAfterARenewal(t *testing.T) {
	r := newRig(t)
	q := machine(t, r.token(nil), "host")
	n := r.enroll(q)
	r.renew(n)
	r.refused(q, ErrKeyUsed)
}

func FuzzTicket(f *testing.F) {
	n := &Node{Identity: proto.Identity{ID: 7}, Seed: bytes.Repeat([]byte{3}, seedSize), Ticket: 9}
	f.Add(n.NextTicket())
	f.Add(n.ticketOf(1))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		number, ok := n.readTicket(b)
		if ok && !bytes.Equal(n.ticketOf(number), b) {
			t.Fatalf("%x is taken for ticket %d", b, number)
		}
	})
}
