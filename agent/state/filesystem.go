package state

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
)

// filesystem is the operations of a Dir on a disk, step by step, so that tests can interrupt it after each one.
type filesystem interface {
	Read(name string, limit int64) ([]byte, error)
	Create(name string) (file, error) // empty, mode 0600
	Append(name string) (file, error) // exists already
	Rename(from, to string) error
	Remove(name string) error
	Truncate(name string, size int64) error
	SyncDir() error
}

type file interface {
	io.WriteCloser
	Sync() error
}

// directory is the real filesystem.
type directory string

func (d directory) path(name string) string { return filepath.Join(string(d), name) }

func (d directory) Read(name string, limit int64) ([]byte, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, &CorruptError{
			d.path(name), fmt.Sprintf("mode %04o lets other users access it", info.Mode().Perm()),
			"run chmod 600 on it, and enrol again if somebody may have read it",
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes", d.path(name), limit)
	}
	return b, nil
}

func (d directory) Create(name string) (file, error) {
	return os.OpenFile(d.path(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
}

func (d directory) Append(name string) (file, error) {
	return os.OpenFile(d.path(name), os.O_WRONLY|os.O_APPEND, 0o600)
}

func (d directory) Rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

func (d directory) Remove(name string) error { return os.Remove(d.path(name)) }

func (d directory) Truncate(name string, size int64) error {
	f, err := os.OpenFile(d.path(name), os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}

func (d directory) SyncDir() error {
	if runtime.GOOS == "windows" { // directories cannot be synced there; renames are journalled
		return nil
	}
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Ask makes every further step that changes the disk call before first; if that fails, so does the step.
func (d *Dir) Ask(before func(step string) error) { d.fs = asking{d.fs, before} }

// asking is a filesystem that calls before ahead of each change.
type asking struct {
	filesystem
	before func(step string) error
}

func (a asking) file(step string, open func() (file, error)) (file, error) {
	if err := a.before(step); err != nil {
		return nil, err
	}
	f, err := open()
	if err != nil {
		return nil, err
	}
	return askingFile{f, a.before}, nil
}

func (a asking) Create(name string) (file, error) {
	return a.file("create "+name, func() (file, error) { return a.filesystem.Create(name) })
}

func (a asking) Append(name string) (file, error) {
	return a.file("open "+name, func() (file, error) { return a.filesystem.Append(name) })
}

func (a asking) Rename(from, to string) error {
	if err := a.before("rename " + from); err != nil {
		return err
	}
	return a.filesystem.Rename(from, to)
}

func (a asking) Remove(name string) error {
	if err := a.before("remove " + name); err != nil {
		return err
	}
	return a.filesystem.Remove(name)
}

func (a asking) Truncate(name string, size int64) error {
	if err := a.before("truncate " + name); err != nil {
		return err
	}
	return a.filesystem.Truncate(name, size)
}

func (a asking) SyncDir() error {
	if err := a.before("sync the directory"); err != nil {
		return err
	}
	return a.filesystem.SyncDir()
}

type askingFile struct {
	file
	before func(step string) error
}

func (f askingFile) Write(b []byte) (int, error) {
	if err := f.before("write"); err != nil {
		return 0, err
	}
	return f.file.Write(b)
}

func (f askingFile) Sync() error {
	if err := f.before("sync"); err != nil {
		return err
	}
	return f.file.Sync()
}
