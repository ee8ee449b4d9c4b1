package directory

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// FuzzRecords parses records from an untrusted backup. What is accepted must encode to the same record again.
func FuzzRecords(f *testing.F) {
	r := newRig(f)
	n := r.enroll(machine(f, r.token(func(s *TokenSpec) { s.Tags, s.User = nil, "ann@example.com" }), "host"))
	n = r.renew(r.renew(n))
	if _, err := r.Renew(f.Context(), Renewal{ID: n.ID, Key: newNodeKey(f), Ticket: n.ticketOf(1)}); !errors.Is(err, ErrQuarantined) {
		f.Fatal(err)
	}
	if _, err := r.RevokeNode(f.Context(), n.ID, "lost", "uid 0"); err != nil {
		f.Fatal(err)
	}
	if err := r.DeleteNode(f.Context(), r.node("gone").ID, "uid 0"); err != nil {
		f.Fatal(err)
	}
	if _, err := r.ChangePolicy(f.Context(), PolicyChange{Source: "{}", By: "uid 0", Comment: "first"}); err != nil {
		f.Fatal(err)
	}
	r.traits(r.node("router"))
	r.demand.Approval = true
	for _, hostname := range []string{"waits", "approved", "denied"} {
		code := r.waits(machine(f, r.token(nil), hostname))
		if hostname != "waits" {
			r.judge(code, hostname == "approved")
		}
	}
	for k, v := range contents(f, r.store) {
		f.Add(k, []byte(v))
	}
	f.Fuzz(func(t *testing.T, k string, v []byte) {
		e := store.Entry{Key: k, Value: v}
		if n, err := parseNode(e); err == nil {
			op, err := nodeOp(n)
			if err != nil {
				t.Fatal(err)
			}
			again, err := parseNode(store.Entry{Key: op.Key, Value: op.Value})
			if err != nil || op.Key != k || !cmp.Equal(n, again, opaque) {
				t.Fatalf("%s: %v, %s", op.Key, err, cmp.Diff(n, again, opaque))
			}
		}
		if tok, err := parseToken(e); err == nil {
			op, err := tokenOp(tok)
			if err != nil {
				t.Fatal(err)
			}
			again, err := parseToken(store.Entry{Key: op.Key, Value: op.Value})
			if err != nil || op.Key != k || !cmp.Equal(tok, again, opaque) {
				t.Fatalf("%s: %v, %s", op.Key, err, cmp.Diff(tok, again, opaque))
			}
		}
		if id, known, err := parseTraits(e); err == nil {
			op, err := traitsOp(id, known)
			if err != nil {
				t.Fatal(err)
			}
			same, again, err := parseTraits(store.Entry{Key: op.Key, Value: op.Value})
			if err != nil || op.Key != k || same != id || !cmp.Equal(known, again, opaque) {
				t.Fatalf("%s: %v, %s", op.Key, err, cmp.Diff(known, again, opaque))
			}
		}
		if c, err := parseCandidate(e); err == nil {
			op, err := candidateOp(c)
			if err != nil {
				t.Fatal(err)
			}
			again, err := parseCandidate(store.Entry{Key: op.Key, Value: op.Value})
			if err != nil || op.Key != k || !cmp.Equal(c, again, opaque) {
				t.Fatalf("%s: %v, %s", op.Key, err, cmp.Diff(c, again, opaque))
			}
		}
		s := newState()
		addTraitsNow := func(s *state, e store.Entry) error { return addTraits(s, e, start) }
		for _, add := range []func(*state, store.Entry) error{addNode, addHeld, addToken, addFreed, addRoles, addCandidate, addTraitsNow} {
			_ = add(&s, e) // errors are fine, panics are not
		}
		_, _ = parsePolicy(e)
		_, _ = parse[meshRecord](e)
		_, _ = parse[headRecord](e)
	})
}
