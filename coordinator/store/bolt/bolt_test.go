package bolt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/coordinator/store/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		childMain(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func openDir(t testing.TB, dir string, o Options) *DB {
	t.Helper()
	db, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func put(t testing.TB, s store.Store, key, value string) {
	t.Helper()
	if _, err := s.Txn(t.Context(), nil, []store.Op{store.Put(key, []byte(value))}); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, s store.Store, key string) string {
	t.Helper()
	e, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(e.Value)
}

func backupFile(t testing.TB, r io.Reader) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "backup")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, r); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func unchanged(store.Tx) error { return nil }

func TestContract(t *testing.T) {
	storetest.Run(t, storetest.Engine{
		Open: func(t testing.TB) store.Store { return openDir(t, t.TempDir(), Options{}) },
		Restore: func(t testing.TB, r io.Reader) store.Store {
			dir := t.TempDir()
			if err := Restore(backupFile(t, r), dir, Options{}, unchanged); err != nil {
				t.Fatal(err)
			}
			return openDir(t, dir, Options{})
		},
	})
}

func TestSecondOpenSaysWhoHoldsIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	db := openDir(t, dir, Options{})
	_, err := Open(dir, Options{})
	var held *HeldError
	if !errors.As(err, &held) {
		t.Fatalf("second open: %v, want a HeldError", err)
	}
	host, _ := os.Hostname()
	if h := held.Holder; h.PID != os.Getpid() || h.Host != host || h.Since.IsZero() || h.Command == "" || held.Dir != dir {
		t.Errorf("holder: %+v of %s", h, held.Dir)
	}
	if err := Restore(backupFile(t, new(bytes.Buffer)), dir, Options{}, unchanged); err == nil {
		t.Error("restored over a store that is open")
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	openDir(t, dir, Options{})
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	openDir(t, dir, Options{})
	for name, want := range map[string]os.FileMode{".": 0o700, fileName: 0o600, lockName: 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode().Perm(), want)
		}
	}
}

func TestReopenKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	db := openDir(t, dir, Options{})
	put(t, db, "a", "1")
	put(t, db, "b", "2")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = openDir(t, dir, Options{})
	list, rev, err := db.List(t.Context(), "")
	if err != nil || rev != 2 || len(list) != 2 {
		t.Fatalf("after reopening: %v at %d, %v", list, rev, err)
	}
	for _, err := range db.Watch(t.Context(), "", rev) {
		if !errors.Is(err, store.ErrCompacted) {
			t.Errorf("watch from before the store was opened: %v, want ErrCompacted", err)
		}
	}
}

func TestAHalfMadeStoreIsMadeAgain(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, fileName+".new"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(t, openDir(t, dir, Options{}), "a", "1")
}

func TestADamagedStoreIsNotOpened(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, fileName), bytes.Repeat([]byte("x"), 20000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil {
		t.Fatal("opened a file that is no store")
	}
	if _, err := Open(dir, Options{}); errors.As(err, new(*HeldError)) {
		t.Error("the lock was kept after a failed open")
	}
}

// rename1 and add2 are migrations.
func rename1(t store.Tx) error {
	list, err := t.List("old/")
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := errors.Join(t.Put("new/"+e.Key[len("old/"):], e.Value), t.Delete(e.Key)); err != nil {
			return err
		}
	}
	return nil
}

func add2(t store.Tx) error {
	v, ok := t.Get("new/a")
	if !ok {
		return errors.New("no new/a")
	}
	return t.Put("sum", append(v, '!'))
}

func TestMigrations(t *testing.T) {
	dir := t.TempDir()
	db := openDir(t, dir, Options{})
	put(t, db, "old/a", "1")
	db.Close()

	broken := errors.New("broken")
	_, err := Open(dir, Options{Migrations: []store.Edit{rename1, func(t store.Tx) error {
		return errors.Join(t.Put("half", nil), broken)
	}}})
	if !errors.Is(err, broken) {
		t.Fatalf("a migration that fails: %v", err)
	}

	db = openDir(t, dir, Options{Migrations: []store.Edit{rename1, add2}})
	if got := get(t, db, "new/a") + get(t, db, "sum"); got != "11!" {
		t.Errorf("after the migrations: %s", got)
	}
	for _, gone := range []string{"old/a", "half"} {
		if _, err := db.Get(t.Context(), gone); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", gone, err)
		}
	}
	db.Close()

	if _, err := Open(dir, Options{Migrations: []store.Edit{rename1}}); err == nil {
		t.Error("an older program opened a store of a newer one")
	}
	// The copies are stores with the previous schemas.
	for schema, key := range map[int]string{1: "old/a", 2: "new/a"} {
		old := t.TempDir()
		from := filepath.Join(dir, fmt.Sprintf("%s.schema-%d", fileName, schema))
		if err := os.Rename(from, filepath.Join(old, fileName)); err != nil {
			t.Fatal(err)
		}
		o := Options{Migrations: []store.Edit{rename1, add2}[:schema-1]}
		if got := get(t, openDir(t, old, o), key); got != "1" {
			t.Errorf("copy of schema %d: %s is %q", schema, key, got)
		}
	}
}

func TestRestore(t *testing.T) {
	db := openDir(t, t.TempDir(), Options{})
	put(t, db, "old/a", "1")
	var file bytes.Buffer
	if err := db.Backup(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	whole := file.Bytes()

	t.Run("damaged backups touch nothing", func(t *testing.T) {
		flipped := bytes.Clone(whole)
		flipped[len(flipped)/2] ^= 1
		for name, b := range map[string][]byte{
			"empty": nil, "cut short": whole[:len(whole)-1], "half": whole[:len(whole)/2], "a bit flipped": flipped,
			"without its end": whole[:len(whole)-trailer], "with more": append(bytes.Clone(whole), 0),
		} {
			dir := filepath.Join(t.TempDir(), "data")
			err := Restore(backupFile(t, bytes.NewReader(b)), dir, Options{}, unchanged)
			if !errors.Is(err, ErrNotBackup) {
				t.Errorf("%s: %v, want ErrNotBackup", name, err)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: the directory was touched", name)
			}
		}
		if err := Restore(t.TempDir(), t.TempDir(), Options{}, unchanged); err == nil {
			t.Error("restored a directory")
		}
	})

	t.Run("a directory with something in it is refused", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "something"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Restore(backupFile(t, bytes.NewReader(whole)), dir, Options{}, unchanged); err == nil {
			t.Error("restored into a directory that is not empty")
		}
	})

	t.Run("the change and the migrations belong to it", func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range []string{restoring, restoring + ".tmp"} { // left by a crash
			if err := os.WriteFile(filepath.Join(dir, name), []byte("torn"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(filepath.Join(dir, keysDir), 0o700); err != nil {
			t.Fatal(err)
		}
		path, o := backupFile(t, bytes.NewReader(whole)), Options{Migrations: []store.Edit{rename1}}
		broken := errors.New("broken")
		if err := Restore(path, dir, o, func(store.Tx) error { return broken }); !errors.Is(err, broken) {
			t.Fatalf("a change that fails: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, fileName)); !errors.Is(err, os.ErrNotExist) {
			t.Error("a store without the change is there")
		}
		if err := Restore(path, dir, o, func(t store.Tx) error { return t.Put("restored", []byte("yes")) }); err != nil {
			t.Fatal(err)
		}
		db := openDir(t, dir, o)
		if got := get(t, db, "new/a") + get(t, db, "restored"); got != "1yes" {
			t.Errorf("restored %q", got)
		}
	})
}

func TestAfterAWriteThatMayHaveHappenedNothingIsWritten(t *testing.T) {
	db := openDir(t, t.TempDir(), Options{})
	put(t, db, "a", "1")
	disk := errors.New("input/output error")

	if err := db.failure(disk, true); errors.Is(err, store.ErrFailed) || !errors.Is(err, disk) {
		t.Errorf("a write that did not happen: %v", err)
	}
	put(t, db, "a", "2")

	db.revision-- // as if the file showed an unacknowledged revision
	if err := db.failure(disk, true); !errors.Is(err, store.ErrFailed) || !errors.Is(err, disk) {
		t.Errorf("a write that may have happened: %v, want ErrFailed", err)
	}
	if _, err := db.Txn(t.Context(), nil, []store.Op{store.Put("b", nil)}); !errors.Is(err, store.ErrFailed) {
		t.Errorf("the next write: %v, want ErrFailed", err)
	}
}

// TestDamageIsAnError truncates the file and overwrites its pages one by one: opening it must fail with an error that says
// so, or everything in the store must be readable.
func TestDamageIsAnError(t *testing.T) {
	dir := t.TempDir()
	db := openDir(t, dir, Options{})
	for i := range 60 {
		put(t, db, fmt.Sprintf("key/%d", i), strings.Repeat("value", 200))
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	used := len(bytes.TrimRight(whole, "\x00"))/page + 1
	whole = whole[:used*page] // the rest is empty and only costs time
	random := rand.NewChaCha8([32]byte{1})
	damaged := map[string][]byte{"empty": {}}
	for i := range used {
		damaged[fmt.Sprintf("cut short at page %d", i)] = whole[:i*page]
		over := bytes.Clone(whole)
		random.Read(over[i*page:][:page])
		damaged[fmt.Sprintf("page %d overwritten", i)] = over
		zero := bytes.Clone(whole)
		clear(zero[i*page:][:page])
		damaged[fmt.Sprintf("page %d zeroed", i)] = zero
	}
	refused := 0
	for name, b := range damaged {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fileName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(dir, Options{})
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), "restore a backup") && !strings.Contains(err.Error(), "not a store") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		_, _, _ = db.List(t.Context(), "") // the entries may differ; it must not crash
		if err := db.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
	}
	if refused < used {
		t.Errorf("only %d of %d damaged files were refused", refused, len(damaged))
	}
}
