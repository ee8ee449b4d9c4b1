package directory

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
)

func openBolt(t *testing.T, dir string) *bolt.DB {
	t.Helper()
	db, err := bolt.Open(dir, bolt.Options{Migrations: Migrations()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// restored creates a directory from a backup at a given time, as an administrator would.
func restored(t *testing.T, backup string, now time.Time) (*rig, Restoration) {
	t.Helper()
	var told Restoration
	dir := filepath.Join(t.TempDir(), "data")
	err := bolt.Restore(backup, dir, bolt.Options{Migrations: Migrations()}, func(tx store.Tx) (err error) {
		told, err = Restored(tx, now, "uid 0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, store: openBolt(t, dir), clock: &clock{t: now}}
	r.open()
	return r, told
}

func TestRestore(t *testing.T) {
	r := newRigOn(t, openBolt(t, filepath.Join(t.TempDir(), "data")), Plan{})
	kept := r.node("kept")
	unused := r.token(func(s *TokenSpec) { s.TTL = 24 * time.Hour })
	spare := r.token(func(s *TokenSpec) { s.TTL, s.Reusable = 24*time.Hour, true })
	before := r.enroll(machine(t, spare, "before"))
	spentToken, _ := r.Snapshot().TokenByID(kept.Token)

	path := filepath.Join(t.TempDir(), "backup")
	var file bytes.Buffer
	if err := r.store.Backup(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	// Everything below is lost.
	lateMachine := machine(t, spare, "late")
	late := r.enroll(lateMachine)
	r.clock.pass(time.Hour)
	newest := r.renew(r.renew(kept))
	if _, err := r.RevokeNode(t.Context(), before.ID, "", "uid 0"); err != nil {
		t.Fatal(err)
	}
	lastVersion := r.Snapshot().Version()
	r.Close()

	later := start.Add(2 * time.Hour)
	first, told := restored(t, path, later)
	s := first.Snapshot()
	if told.Nodes != 2 || told.Voided != 2 || told.Epoch != s.Version().Epoch || !told.Latest.Equal(start) || told.Mesh != s.Mesh() {
		t.Errorf("told %+v", told)
	}
	if !lastVersion.Less(s.Version()) || s.Version().Epoch <= lastVersion.Epoch {
		t.Errorf("version %v after %v, want a later epoch", s.Version(), lastVersion)
	}
	for _, tok := range []*Token{unused, spare} {
		if got, _ := s.TokenByID(tok.ID); got.State(later) != TokenRevoked {
			t.Errorf("token %s is %s, want revoked", tok.ID, got.State(later))
		}
	}
	if got, _ := s.TokenByID(spentToken.ID); got.Revoked != nil {
		t.Error("a spent token was voided: its device could not finish")
	}
	if _, err := first.Renew(t.Context(), first.renewal(late, newNodeKey(t))); !errors.Is(err, ErrUnknown) {
		t.Errorf("a node that is newer than the backup: %v, want ErrUnknown", err)
	}
	// The node has a ticket and keys that this store does not know.
	k := newNodeKey(t)
	n, err := first.Renew(t.Context(), first.renewal(newest, k))
	if err != nil || n.Certificate.Sequence <= newest.Certificate.Sequence || n.Key != k || !n.Next.IsZero() {
		t.Errorf("the next certificate: %+v, %v; %d was issued", n, err, newest.Certificate.Sequence)
	}
	if n = first.renew(n); n.Key != k || n.Next.IsZero() {
		t.Errorf("and the one after it: %+v", n)
	}
	if _, err := first.Renew(t.Context(), first.renewal(newest, newNodeKey(t))); !errors.Is(err, ErrQuarantined) {
		t.Errorf("with the ticket from before the restore again: %v", err)
	}
	lateMachine.Token = first.token(nil).Public
	if again := first.enroll(lateMachine); again.ID == late.ID {
		t.Error("it came back with its old id")
	}
	book, err := first.Audit(t.Context(), 0, 100, AuditQuery{})
	if err != nil || len(book) == 0 || book[len(book)-1].Action != audit.MeshCreate || book[3].Action != audit.Restore {
		t.Errorf("audit: %+v, %v", book, err)
	}
	verifyBook(t, first.Directory)
	high := first.Snapshot().Version()

	second, _ := restored(t, path, later.Add(time.Minute))
	if v := second.Snapshot().Version(); !high.Less(v) {
		t.Errorf("the same backup again gives version %v after %v", v, high)
	}
}

func TestABackupWithoutAMeshIsNotRestored(t *testing.T) {
	db := openBolt(t, filepath.Join(t.TempDir(), "data"))
	var file bytes.Buffer
	if err := db.Backup(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	err := bolt.Restore(path, filepath.Join(t.TempDir(), "data"), bolt.Options{Migrations: Migrations()}, func(tx store.Tx) error {
		_, err := Restored(tx, start, "uid 0")
		return err
	})
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("restored: %v, want ErrNotFound", err)
	}
}
