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

// Keys is what there is to tell of the keys that certificates hang on. They are in files; what is told of them is compared with
// what was told before, so that nothing that became of them, by whatever way, is left out of the audit book.
type Keys struct {
	Roots        []Root // that are trusted, the newest first
	Here         bool   // the newest root's key is on the coordinator's machine
	Intermediate string // serial number of the one that issues
}

// Root is one that nodes trust.
type Root struct {
	Fingerprint string    `json:"fingerprint"`
	Since       time.Time `json:"since,omitzero"` // when it took the place of the one before; zero: as the mesh began
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

// Keys is what was told last of the keys that certificates hang on; nil before that.
func (s *Snapshot) Keys() *Keys { return s.state.keys }

// NoteKeys enters into the audit book what has become of keys since the last time. The first time there is nothing to compare
// with: they are as the mesh began.
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
				r.Since = t.now
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

// RootAsked records that somebody asked for an intermediate that an offline root is to sign.
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

// same does not look at since when.
func (k *Keys) same(o Keys) bool {
	return k != nil && k.Here == o.Here && k.Intermediate == o.Intermediate &&
		slices.EqualFunc(k.Roots, o.Roots, func(a, b Root) bool { return a.Fingerprint == b.Fingerprint })
}
