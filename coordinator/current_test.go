package coordinator

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// restoreTo stops the coordinator and continues from a backup, with its existing keys.
func (r *rig) restoreTo(backup string) {
	r.t.Helper()
	r.stop()
	restored := filepath.Join(r.t.TempDir(), "data")
	_, err := Restore(backup, restored, time.Now(), "test")
	pki := filepath.Join(restored, "pki")
	if err := errors.Join(err, os.CopyFS(pki, os.DirFS(filepath.Join(r.dir, "pki"))), private(pki)); err != nil {
		r.t.Fatal(err)
	}
	r.dir = restored
	r.start(Config{})
}

// TestRestoredCoordinatorShowsNewCertificates checks that after a restore, where certificates have expired and are older than
// those that peers have seen since, peers get new ones as soon as their nodes are back, and not only when those would have
// renewed.
func TestRestoredCoordinatorShowsNewCertificates(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		a, b := r.join("a", &redoubtv1.CreateTokenRequest{}), r.join("b", &redoubtv1.CreateTokenRequest{})
		backup := filepath.Join(t.TempDir(), "backup")
		f, err := os.Create(backup)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(r.co.store.Backup(context.Background(), f), f.Close()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		for range 4 {
			for _, m := range []*machine{a, b} {
				s := m.attach(nil)
				if err := s.renew(); err != nil {
					t.Fatal(err)
				}
				s.close()
			}
			time.Sleep(30 * time.Minute)
		}
		r.restoreTo(backup)

		sa, sb := a.attach(nil), b.attach(nil)
		for _, s := range []*stream{sa, sb} {
			if !s.welcome.GetRenewFirst() {
				t.Errorf("%s is not asked to renew, though others are shown another certificate of it", s.m.host)
				continue
			}
			seen := s.m.cert.Sequence
			if err := s.renew(); err != nil {
				t.Fatal(err)
			}
			if s.m.cert.Sequence <= seen {
				t.Errorf("certificate %d after %d", s.m.cert.Sequence, seen)
			}
		}
		settle()
		peers := sa.netmap().Peers
		if len(peers) != 1 {
			t.Fatalf("%d peers after the restore", len(peers))
		}
		n, err := cert.ParseNode(peers[0].Certificate)
		if err != nil || n.Sequence != b.cert.Sequence || !n.NotAfter.After(time.Now()) {
			t.Errorf("certificate %d until %v, %v; want %d", n.Sequence, n.NotAfter, err, b.cert.Sequence)
		}
		sa.close()
		sb.close()
	})
}

// TestExpiredNodeIsCutOffWhateverHappens checks that a node that does not renew is sent nothing after its certificate has
// expired, even if other nodes cause updates all the time.
func TestExpiredNodeIsCutOffWhateverHappens(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		late, busy := r.join("late", &redoubtv1.CreateTokenRequest{}), r.join("busy", &redoubtv1.CreateTokenRequest{})
		sl, sb := late.attach(nil), busy.attach(nil)
		settle()
		for i := range 400 {
			time.Sleep(10 * time.Second)
			if i == 180 {
				if err := sb.renew(); err != nil {
					t.Fatal(err)
				}
			}
			report := &redoubtv1.Report{ListenPort: uint32(1000 + i)}
			if _, err := sb.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Report{Report: report}}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		if code := codeOf(sl.failed()); code != redoubtv1.Refusal_CODE_EXPIRED {
			t.Errorf("%v after its certificate ended it hears %v, and is at %v of %v", time.Since(late.cert.NotAfter), sl.failed(),
				sl.netmap().Version, r.co.directory.Snapshot().Version())
		}
		sl.close()
		sb.close()
	})
}
