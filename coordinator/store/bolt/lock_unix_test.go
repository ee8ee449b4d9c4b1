//go:build linux || darwin || freebsd

package bolt

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A child that is being forked shares the parent's files until exec. The directory must be free all the same once it was closed.
func TestReleasedWhileAProcessStarts(t *testing.T) {
	dir := t.TempDir()
	l, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := unix.Dup(int(l.file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(shared)
	if err := l.Release(); err != nil {
		t.Fatal(err)
	}
	again, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Release(); err != nil {
		t.Error(err)
	}
}
