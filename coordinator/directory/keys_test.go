package directory

import (
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
)

// TestNoteKeys checks that every change of the keys is recorded once, including changes that were not reported when they
// happened.
func TestNoteKeys(t *testing.T) {
	r := newRig(t)
	keys := Keys{Roots: []Root{{Fingerprint: "aa"}}, Here: true, Intermediate: "1"}
	for _, step := range []struct {
		change func()
		want   []string
	}{
		{func() {}, nil}, // the first call
		{func() {}, nil},
		{func() { keys.Intermediate = "2" }, []string{audit.Intermediate}},
		{func() { keys.Roots, keys.Intermediate = []Root{{Fingerprint: "bb"}, {Fingerprint: "aa"}}, "3" }, []string{audit.RootRotate, audit.Intermediate}},
		{func() { keys.Here = false }, []string{audit.RootAway}},
		{r.reopen, nil},
		{func() { keys.Roots = keys.Roots[:1] }, []string{audit.RootRetire}},
		{func() { keys.Here, keys.Roots = true, []Root{{Fingerprint: "cc"}} }, []string{audit.RootRotate, audit.RootRetire, audit.RootReturn}},
	} {
		r.clock.pass(time.Minute)
		step.change()
		before := r.auditEnd.Load()
		if err := r.NoteKeys(t.Context(), keys, "uid 0"); err != nil {
			t.Fatal(err)
		}
		var got []string
		list, err := r.Audit(t.Context(), 0, 10, AuditQuery{})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range slices.Backward(list) {
			if x.Number > before && x.By == "uid 0" {
				got = append(got, x.Action)
			}
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("%+v: the book tells %v, want %v", keys, got, step.want)
		}
	}
	roots := r.Snapshot().Keys().Roots
	if len(roots) != 1 || !roots[0].Since.Equal(r.clock.now()) {
		t.Errorf("%+v", roots)
	}
	r.reopen()
	if again := r.Snapshot().Keys().Roots; !slices.Equal(again, roots) {
		t.Errorf("read back: %+v", again)
	}
}
