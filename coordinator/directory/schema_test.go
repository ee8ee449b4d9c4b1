package directory

import (
	"crypto/rand"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
)

// TestAnOlderStoreIsTaken checks that an older store is migrated, and that an older program then refuses it.
func TestAnOlderStoreIsTaken(t *testing.T) {
	dir := t.TempDir()
	older, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := newRigOn(t, older, Plan{})
	n := r.node("host")
	r.Close()
	unchain(t, older)
	if err := older.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := bolt.Open(dir, bolt.Options{Migrations: Migrations()})
	if err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), s, Config{Clock: r.clock.now, Rand: rand.Reader, Issue: issue, Signer: signer})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := d.Snapshot().Lookup(n.ID); !ok {
		t.Error("the node is lost")
	}
	d.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := bolt.Open(dir, bolt.Options{}); err == nil || !strings.Contains(err.Error(), "newer program") {
		t.Errorf("an older program: %v, %v", s, err)
	}
}
