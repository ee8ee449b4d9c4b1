package coordinator

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/join"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// TestSecondStart opens data that is in use, and again after the first coordinator has stopped.
func TestSecondStart(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		_, err := New(context.Background(), Config{Data: r.dir})
		var held *bolt.HeldError
		if !errors.As(err, &held) || held.Holder.PID != os.Getpid() {
			t.Errorf("a second coordinator on the same data: %v", err)
		}
		r.apply(openPolicy)
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		s := m.attach(nil)
		settle()
		before := s.netmap().Version
		mesh, root := r.co.Mesh(), r.co.Fingerprint()
		r.stop()
		<-s.done
		s.close()

		r.start(Config{})
		if r.co.First() || r.co.Mesh() != mesh || r.co.Fingerprint() != root {
			t.Error("the second start is not of the same mesh")
		}
		s = m.attach(s.netmap())
		settle()
		if full, _ := s.counts(); full != 1 || !before.Less(s.netmap().Version) || s.failed() != nil {
			t.Errorf("after a restart: %d snapshots, %v after %v, %v", full, s.netmap().Version, before, s.failed())
		}
		s.close()
	})
}

func TestPlansThatAreRefused(t *testing.T) {
	for name, c := range map[string]Config{
		"URL":          {URLs: []string{"http://c.example"}},
		"domain":       {Domain: "Mesh Internal"},
		"lifetime":     {NodeLifetime: time.Second},
		"intermediate": {IntermediateLifetime: time.Hour},
		"grace":        {Grace: new(-time.Second)},
	} {
		c.Data = t.TempDir() + "/data"
		if _, err := New(t.Context(), c); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := os.Stat(c.Data); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: refused after something was made: %v", name, err)
		}
	}
}

// TestRestore checks that after a restore known nodes continue, that a node that joined since is told what to do, and that all
// versions are newer than before.
func TestRestore(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		old := r.join("old", &redoubtv1.CreateTokenRequest{})
		unused := r.code(&redoubtv1.CreateTokenRequest{})
		backup := filepath.Join(t.TempDir(), "backup")
		f, err := os.Create(backup)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(r.co.store.Backup(context.Background(), f), f.Close()); err != nil {
			t.Fatal(err)
		}
		young := r.join("young", &redoubtv1.CreateTokenRequest{})
		s := old.attach(nil)
		settle()
		before := s.netmap()
		r.stop()
		<-s.done
		s.close()

		restored := filepath.Join(t.TempDir(), "data")
		if _, err := Restore(backup, r.dir, time.Now(), "test"); err == nil {
			t.Error("restored over data that are there")
		}
		if done, err := Restore(backup, restored, time.Now(), "test"); err != nil || done.Nodes != 1 || done.Voided != 1 {
			t.Fatalf("%+v, %v", done, err)
		}
		if _, err := New(context.Background(), Config{Data: restored}); err == nil || !strings.Contains(err.Error(), "pki") {
			t.Errorf("a start without the keys: %v", err)
		}
		if err := os.CopyFS(filepath.Join(restored, "pki"), os.DirFS(filepath.Join(r.dir, "pki"))); err != nil {
			t.Fatal(err)
		}
		if err := private(filepath.Join(restored, "pki")); err != nil {
			t.Fatal(err)
		}
		r.dir = restored
		r.start(Config{})
		s = old.attach(before)
		settle()
		if now := s.netmap(); !before.Version.Less(now.Version) || now.Version.Epoch <= before.Version.Epoch || len(now.Peers) != 0 {
			t.Errorf("after the restore: %v after %v, %d peers", now.Version, before.Version, len(now.Peers))
		}
		_, _, err = young.open(proto.Version{})
		refusedWith(t, err, redoubtv1.Refusal_CODE_DELETED, "enrol again")
		refusedWith(t, r.machine("late").enrol(unused), redoubtv1.Refusal_CODE_TOKEN, "revoked")
		s.close()
	})
}

// private revokes others' access to the files, which a copy does not preserve.
func private(dir string) error {
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return os.Chmod(path, 0o600)
	})
}

// TestNothingIsShared checks that no key, nor anything keys derive from, ships with the program: two coordinators have nothing
// in common.
func TestNothingIsShared(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"one", "two"} {
		dir := t.TempDir()
		co, err := New(t.Context(), Config{Data: dir, URLs: []string{"https://c.example"}})
		if err != nil {
			t.Fatal(err)
		}
		code, err := co.Admin().CreateToken(t.Context(), &redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}})
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := join.Parse(code.GetCode())
		if err != nil {
			t.Fatal(err)
		}
		seed := parsed.Secret.Expose()
		secrets := map[string]string{"the mesh's id": string(co.Mesh().ID), "a join code's seed": string(seed[:])}
		for _, file := range []string{"root.key", "intermediate.key", "audit.key", "root.crt"} {
			b, err := os.ReadFile(filepath.Join(dir, "pki", file))
			if err != nil {
				t.Fatal(err)
			}
			secrets[file] = string(b)
		}
		for what, text := range secrets {
			if other, ok := seen[text]; ok {
				t.Errorf("%s of coordinator %s is that of coordinator %s", what, name, other)
			}
			seen[text] = name
		}
		if err := co.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnOldIntermediateIsSpokenOf checks that an aging intermediate is reported in the log, the metrics and the status if the
// root's key is elsewhere.
func TestAnOldIntermediateIsSpokenOf(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.stop()
		if err := os.Remove(filepath.Join(r.dir, "pki", "root.key")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(16 * 24 * time.Hour)
		var log bytes.Buffer
		registry := prometheus.NewRegistry()
		r.start(Config{Log: slog.New(slog.NewTextHandler(&log, nil)), Registry: registry})
		settle()
		st, err := r.co.Admin().PolicyStatus(context.Background(), &redoubtv1.PolicyStatusRequest{})
		if err != nil || len(st.GetKeyWarnings()) != 1 || !strings.Contains(st.GetKeyWarnings()[0], "root request") {
			t.Errorf("the status: %v, %v", st, err)
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		warnings := 0.0
		for _, f := range families {
			if f.GetName() == "redoubt_coordinator_key_warnings" {
				warnings = f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		if warnings != 1 {
			t.Errorf("the metrics count %v warnings", warnings)
		}
		r.stop()
		if !strings.Contains(log.String(), "root request") {
			t.Errorf("the log does not say what to do: %s", &log)
		}
	})
}
