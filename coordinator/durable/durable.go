// Package durable writes files that exist completely or not at all, even after a power cut: it writes and syncs a file beside
// the target, renames it, and syncs the directory.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// Write creates or replaces a file of mode 0600 with what fill writes.
func Write(path string, fill func(*os.File) error) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// Create it afresh, so that it has this mode whatever a crash left behind.
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(fill(f), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return Rename(tmp, path)
}

// WriteBytes creates or replaces a file of mode 0600 with b.
func WriteBytes(path string, b []byte) error {
	return Write(path, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
}

// Rename renames a file durably.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(to))
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
