package policy

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// begun is the time at which these tests take place.
var begun = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, ages directory.Ages) *directory.Directory {
	t.Helper()
	s := store.NewMemory()
	if _, err := directory.Ensure(t.Context(), s, directory.Plan{}, rand.Reader, begun); err != nil {
		t.Fatal(err)
	}
	d, err := directory.Open(t.Context(), s, directory.Config{
		Clock: func() time.Time { return begun }, Rand: rand.Reader, Ages: ages, Signer: audit.NewSigner("mesh", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))),
		Issue: func(n cert.Node, _ time.Time) (cert.Node, error) { return n, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestProgramsKnowWhenAPolicyTurns(t *testing.T) {
	var log bytes.Buffer
	p := NewPrograms(proto.Outage{Grace: time.Hour}, slog.New(slog.NewTextHandler(&log, nil)))
	d := open(t, p)
	if at := p.Until(d.Snapshot()); !at.IsZero() || p.Grace(d.Snapshot()) != time.Hour {
		t.Errorf("without a policy: %v", at)
	}
	set := func(source string) *directory.Snapshot {
		t.Helper()
		if _, err := d.SetPolicy(t.Context(), source, 0, "test"); err != nil {
			t.Fatal(err)
		}
		return d.Snapshot()
	}
	s := set(`{"outage": {"grace": "2h"}, "grants": [], "enforcement": [
		{"src": ["*"], "dst": ["*"], "mode": "monitor", "until": "2026-09-01"},
		{"src": ["*"], "dst": ["*"], "mode": "monitor", "until": "2026-08-20"},
		{"src": ["*"], "dst": ["*"], "mode": "monitor", "until": "2026-07-01"}]}`)
	if at := p.Until(s); !at.Equal(time.Date(2026, 8, 20, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("the next window ends at %v", at)
	}
	if g := p.Grace(s); g != 2*time.Hour {
		t.Errorf("grace %v", g)
	}
	if a, b := p.Program(s.Policy(), s.Mesh()), p.Program(s.Policy(), s.Mesh()); a != b {
		t.Error("a program was made twice")
	}
	s = set(`{"grantz": []}`)
	if at := p.Until(s); !at.IsZero() || p.Grace(s) != time.Hour || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("a policy that is not understood: %v, logged %q", at, &log)
	}
}
