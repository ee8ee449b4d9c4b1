package bolt

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"

	"github.com/redoubt-mesh/redoubt/coordinator/durable"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// mark comes between the pages of a backup and their SHA-256.
const mark = "\nredoubt backup 1\n"

const trailer = len(mark) + sha256.Size

// maxDamage is how many findings in a damaged file are reported.
const maxDamage = 5

// ErrNotBackup means that a file was not written by Backup, is incomplete, or was changed.
var ErrNotBackup = errors.New("not a whole backup of a coordinator's store")

// keysDir is where a coordinator keeps its keys. No backup contains them; they must be put back by hand.
const keysDir = "pki"

// Restore creates the store in dir from a backup. The directory must not exist, or be empty except for keys put there. change
// runs in the same step, so that no store exists that was restored without it. A crash leaves no store, and Restore can be
// run again.
func Restore(backup, dir string, o Options, change store.Edit) error {
	f, err := os.Open(backup)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	defer f.Close()
	size, err := verify(f)
	if err != nil {
		return fmt.Errorf("restore %s: %w", backup, err)
	}
	lock, err := Acquire(dir)
	if err != nil {
		return err
	}
	return errors.Join(restoreLocked(f, size, dir, o, change), lock.Release())
}

func restoreLocked(f *os.File, size int64, dir string, o Options, change store.Edit) error {
	if err := checkEmpty(dir); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	tmp := filepath.Join(dir, restoring)
	if err := fill(tmp, io.NewSectionReader(f, 0, size)); err != nil {
		return fmt.Errorf("restore to %s: %w", dir, err)
	}
	if err := bring(tmp, o, change); err != nil {
		return errors.Join(fmt.Errorf("restore %s: %w", f.Name(), err), os.Remove(tmp))
	}
	if err := durable.Rename(tmp, filepath.Join(dir, fileName)); err != nil {
		return fmt.Errorf("restore to %s: %w", dir, err)
	}
	return nil
}

// restoring is the name of the store's file until it is complete.
const restoring = fileName + ".restoring"

// verify reads the whole file and returns the size of the part with the pages.
func verify(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size() - int64(trailer)
	if !info.Mode().IsRegular() || size <= 0 {
		return 0, ErrNotBackup
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, size)); err != nil {
		return 0, err
	}
	end := make([]byte, trailer)
	if _, err := f.ReadAt(end, size); err != nil {
		return 0, err
	}
	if !bytes.Equal(end, sum.Sum([]byte(mark))) {
		return 0, ErrNotBackup
	}
	return size, nil
}

func checkEmpty(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		switch e.Name() {
		case lockName, keysDir, restoring, restoring + ".tmp":
		default:
			return fmt.Errorf("%s is not empty (it contains %s); use a new directory", dir, e.Name())
		}
	}
	return nil
}

func fill(path string, r io.Reader) error {
	return durable.Write(path, func(f *os.File) error {
		_, err := io.Copy(f, r)
		return err
	})
}

// bring checks a copy of a backup thoroughly and turns it into a store that a coordinator may open.
func bring(path string, o Options, change store.Edit) error {
	b, err := openFile(path)
	if err != nil {
		return err
	}
	err = check(b)
	if err == nil {
		err = migrate(b, o, func(uint64) error { return nil })
	}
	if err == nil {
		err = edit(b, o.schema(), change)
	}
	return errors.Join(err, b.Close())
}

// check lets bbolt verify every page.
func check(b *bbolt.DB) error {
	return b.View(func(t *bbolt.Tx) error {
		if _, err := number(t, revisionKey); err != nil {
			return err
		}
		var found []error
		for err := range t.Check() {
			if len(found) < maxDamage {
				found = append(found, err)
			}
		}
		if len(found) > 0 {
			return fmt.Errorf("the file is damaged: %w", errors.Join(found...))
		}
		return nil
	})
}
