package directory

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
)

// book verifies the whole audit log as an outsider would.
func book(t testing.TB, d *Directory) error {
	t.Helper()
	lines, last, err := d.AuditSeals(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var c audit.Chain
	var seals []audit.Checkpoint
	for _, l := range lines {
		p, err := audit.ParseCheckpoint(l)
		if err != nil {
			return err
		}
		c.Watch(p.Number)
		seals = append(seals, p)
	}
	for line, err := range d.AuditLines(t.Context(), 0, last, false) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Add(line); err != nil {
			return err
		}
	}
	if err := c.Ends(last); err != nil {
		return err
	}
	for _, p := range seals {
		if err := c.Holds(p); err != nil {
			return err
		}
	}
	return nil
}

func verifyBook(t testing.TB, d *Directory) {
	t.Helper()
	if err := book(t, d); err != nil {
		t.Error(err)
	}
}

// actions returns the actions of the newest n records, newest first.
func (r *rig) actions(n int) (out []string) {
	r.t.Helper()
	list, err := r.Audit(r.t.Context(), 0, n, AuditQuery{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, a := range list {
		out = append(out, a.Action)
	}
	return out
}

func TestRecordsSayAll(t *testing.T) {
	r := newRig(t)
	p, err := r.ChangePolicy(From(t.Context(), "admin socket"), PolicyChange{Source: "{}", By: "uid 0", Comment: "first"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := r.Audit(t.Context(), 0, 1, AuditQuery{})
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	got := list[0]
	if got.By != "uid 0" || got.From != "admin socket" || got.Reason != "first" || got.Policy != p.Number ||
		got.Version != r.Snapshot().Version().String() || got.Prev == "" || !got.At.Equal(start) {
		t.Errorf("%+v", got)
	}
	verifyBook(t, r.Directory)
}

func TestTheBookIsAskedForSome(t *testing.T) {
	r := newRig(t)
	n := r.node("one")
	r.node("two")
	r.clock.pass(time.Hour)
	if err := r.SetRoles(t.Context(), "ann@example.com", []string{"admin"}, "uid 0"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		q    AuditQuery
		want int
	}{
		{AuditQuery{Node: n.ID.String()}, 1},
		{AuditQuery{Node: "one"}, 1},
		{AuditQuery{User: "ann@example.com"}, 1},
		{AuditQuery{Since: start.Add(time.Minute)}, 1},
		{AuditQuery{Since: start.Add(2 * time.Hour)}, 0},
		{AuditQuery{}, 7},
	} {
		list, err := r.Audit(t.Context(), 0, 100, c.q)
		if err != nil || len(list) != c.want {
			t.Errorf("%+v: %d records, want %d; %v", c.q, len(list), c.want, err)
		}
	}
}

func TestRefusalsAreRecordedOnce(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	why := fmt.Errorf("locked")
	before := len(r.actions(100))
	for range 3 {
		r.RenewRefused(From(t.Context(), "192.0.2.7:1"), n.ID, why)
		r.RenewRefused(t.Context(), n.ID+1, why) // not a node
	}
	if got := r.actions(100); len(got) != before+1 || got[0] != audit.RenewRefuse {
		t.Errorf("records: %v", got)
	}
	r.clock.pass(refusalPause)
	r.RenewRefused(t.Context(), n.ID, why)
	if got := r.actions(100); len(got) != before+2 {
		t.Errorf("records: %v", got)
	}
}

// TestARefusalThatWasNotWrittenIsRecordedNextTime checks that a refusal whose write failed does not keep the next from being
// recorded.
func TestARefusalThatWasNotWrittenIsRecordedNextTime(t *testing.T) {
	m := store.NewMemory()
	r := newRigOn(t, m, Plan{})
	n := r.node("host")
	m.Before = func([]store.Op) error { return fmt.Errorf("no space left on device") }
	r.RenewRefused(t.Context(), n.ID, fmt.Errorf("locked"))
	m.Before = nil
	r.RenewRefused(t.Context(), n.ID, fmt.Errorf("locked"))
	if got := r.actions(1); got[0] != audit.RenewRefuse {
		t.Errorf("the last record is %s", got[0])
	}
}

// TestABookThatWasCutIsTold checks that opening a directory whose log lost its end is recorded, even if the head was altered to
// match.
func TestABookThatWasCutIsTold(t *testing.T) {
	r := newRig(t)
	r.node("host")
	verifyBook(t, r.Directory)
	r.Close()
	e, err := r.store.Get(t.Context(), headKey)
	if err != nil {
		t.Fatal(err)
	}
	head, err := parse[headRecord](e)
	if err != nil {
		t.Fatal(err)
	}
	gone := head.Audit
	last, err := r.store.Get(t.Context(), audit.Key(gone-1))
	if err != nil {
		t.Fatal(err)
	}
	var c struct{ Hash string }
	if err := json.Unmarshal(last.Value, &c); err != nil {
		t.Fatal(err)
	}
	head.Audit, head.AuditHash = gone-1, c.Hash
	op, err := putRecord(headKey, head)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.Txn(t.Context(), nil, []store.Op{op, store.Delete(audit.Key(gone))}); err != nil {
		t.Fatal(err)
	}
	r.open()
	list, err := r.Audit(t.Context(), 0, 1, AuditQuery{})
	if err != nil || list[0].Action != audit.BookUnsealed || !strings.Contains(list[0].Reason, "ends") && !strings.Contains(list[0].Reason, "known") {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestAnotherKeyIsTold(t *testing.T) {
	r := newRig(t)
	r.Close()
	c := r.config()
	c.Signer = audit.NewSigner("mesh", ed25519.NewKeyFromSeed([]byte("0123456789abcdef0123456789abcdef")))
	d, err := Open(t.Context(), r.store, c)
	if err != nil {
		t.Fatal(err)
	}
	r.Directory = d
	defer d.Close()
	list, err := r.Audit(t.Context(), 0, 1, AuditQuery{})
	if err != nil || list[0].Action != audit.KeyChange || list[0].Subject != audit.Fingerprint(c.Signer.Public()) ||
		!strings.Contains(list[0].Reason, audit.Fingerprint(signer.Public())) {
		t.Errorf("%+v, %v", list, err)
	}
	verifyBook(t, d)
}

// unchain rewrites a store's log as programs of schema 2 wrote it: five records that are not chained.
func unchain(t *testing.T, s store.Store) {
	t.Helper()
	list, _, err := s.List(t.Context(), audit.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	ops := []store.Op{store.Delete(audit.LastSeal), store.Put(headKey, []byte(`{"v":1,"epoch":1,"reserved":131072,"audit":5}`))}
	for _, e := range list {
		if e.Key > audit.Key(5) {
			ops = append(ops, store.Delete(e.Key))
		}
	}
	for n := 1; n <= 5; n++ {
		ops = append(ops, store.Put(audit.Key(uint64(n)), fmt.Appendf(nil,
			`{"v":1,"at":"2026-08-01T12:00:0%dZ","by":"uid 0","action":"node.revoke","subject":"n%d","reason":"stolen"}`, n, n)))
	}
	if _, err := s.Txn(t.Context(), nil, ops); err != nil {
		t.Fatal(err)
	}
}

// TestABookOfTheFirstFormIsChained migrates a store whose records are not chained.
func TestABookOfTheFirstFormIsChained(t *testing.T) {
	dir := t.TempDir()
	older, err := bolt.Open(dir, bolt.Options{Migrations: Migrations()[:2]})
	if err != nil {
		t.Fatal(err)
	}
	r := newRigOn(t, older, Plan{})
	r.Close()
	unchain(t, older)
	if err := older.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := bolt.Open(dir, bolt.Options{Migrations: Migrations()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d, err := Open(t.Context(), s, r.config())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	verifyBook(t, d)
	list, err := d.Audit(t.Context(), 0, 10, AuditQuery{})
	if err != nil || len(list) != 6 || list[0].Action != audit.KeyChange || !strings.Contains(list[0].Reason, "records 1 to 5") ||
		list[2].Subject != "n4" || list[2].Reason != "stolen" {
		t.Errorf("%+v, %v", list, err)
	}
}
