package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// Keys describes the keys that certificates depend on. The keys are in files; they are compared with what was recorded last, so
// that no change to them, however made, is missing from the audit log.
type Keys struct {
	Roots        []Root // trusted roots, newest first
	Here         bool   // the newest root's key is on the coordinator's machine
	Intermediate string // serial number of the issuing intermediate
}

// Root is a root that nodes trust.
type Root struct {
	Fingerprint string `json:"fingerprint"`
	// Since is when it replaced its predecessor, and later than the creation of every token that names the predecessor, even if
	// the clock was set back meanwhile; zero: the mesh's first.
	Since time.Time `json:"since,omitzero"`
}

type keysRecord struct {
	version
	Roots        []Root `json:"roots"`
	Here         bool   `json:"here"`
	Intermediate string `json:"intermediate"`
}

func loadKeys(ctx context.Context, st store.Store, s *state) error {
	e, err := st.Get(ctx, keysKey)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", keysKey, err)
	}
	r, err := parse[keysRecord](e)
	if err != nil {
		return err
	}
	s.keys = &Keys{Roots: r.Roots, Here: r.Here, Intermediate: r.Intermediate}
	return nil
}

// Keys returns the keys last recorded, or nil if none were.
func (s *Snapshot) Keys() *Keys { return s.state.keys }

// NoteKeys records in the audit log what has changed about the keys since the last call. The first call has nothing to compare
// with: it only stores the initial keys.
func (d *Directory) NoteKeys(ctx context.Context, k Keys, by string) error {
	if d.Snapshot().Keys().same(k) {
		return nil
	}
	return d.do(ctx, func(t *tx) error {
		old := t.keys
		if old.same(k) {
			return nil
		}
		noted := Keys{Roots: slices.Clone(k.Roots), Here: k.Here, Intermediate: k.Intermediate}
		for i := range noted.Roots {
			r := &noted.Roots[i]
			switch at := old.index(r.Fingerprint); {
			case old == nil:
				r.Since = time.Time{}
			case at >= 0:
				r.Since = old.Roots[at].Since
			default:
				r.Since = t.afterTokens()
			}
		}
		op, err := putRecord(keysKey, keysRecord{version: v1, Roots: noted.Roots, Here: noted.Here, Intermediate: noted.Intermediate})
		if err != nil {
			return err
		}
		if old != nil {
			t.recordKeys(*old, noted, by)
		}
		t.writes = append(t.writes, op)
		t.keys = &noted
		return nil
	})
}

// afterRoots returns the time or, if the newest root seems to be newer, when that began: what is created is never older than the
// root that it names.
func (t *tx) afterRoots() time.Time {
	at := t.now
	if t.keys != nil {
		for _, r := range t.keys.Roots {
			at = later(at, r.Since)
		}
	}
	return at
}

// afterTokens returns the time or, if a root or a token seems to be created later, a moment after that.
func (t *tx) afterTokens() time.Time {
	at := t.afterRoots()
	for token := range values(t.tokens) {
		if !token.Created.Before(at) {
			at = token.Created.Add(1)
		}
	}
	return at
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func (t *tx) recordKeys(old, noted Keys, by string) {
	for _, r := range noted.Roots {
		if old.index(r.Fingerprint) < 0 {
			t.record(by, audit.RootRotate, r.Fingerprint, "", "trusted beside "+old.names())
		}
	}
	for _, r := range old.Roots {
		if noted.index(r.Fingerprint) < 0 {
			t.record(by, audit.RootRetire, r.Fingerprint, "", "trusted from now on: "+noted.names())
		}
	}
	if noted.Intermediate != old.Intermediate {
		t.record(by, audit.Intermediate, noted.Intermediate, "", "in place of "+old.Intermediate)
	}
	if noted.Here != old.Here {
		action := audit.RootAway
		if noted.Here {
			action = audit.RootReturn
		}
		t.record(by, action, noted.Roots[0].Fingerprint, "", "")
	}
}

// RootAsked records a request for an intermediate to be signed by an offline root.
func (d *Directory) RootAsked(ctx context.Context, public, by string) error {
	return d.do(ctx, func(t *tx) error {
		t.record(by, audit.RootRequest, public, "", "")
		return nil
	})
}

func (k *Keys) index(fingerprint string) int {
	if k == nil {
		return -1
	}
	return slices.IndexFunc(k.Roots, func(r Root) bool { return r.Fingerprint == fingerprint })
}

func (k *Keys) names() string {
	var names []string
	for _, r := range k.Roots {
		names = append(names, r.Fingerprint)
	}
	return strings.Join(names, ", ")
}

// same ignores Since.
func (k *Keys) same(o Keys) bool {
	return k != nil && k.Here == o.Here && k.Intermediate == o.Intermediate &&
		slices.EqualFunc(k.Roots, o.Roots, func(a, b Root) bool { return a.Fingerprint == b.Fingerprint })
}
