//go:build unix

package state

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A child that is being forked shares the parent's files until exec. The directory must be free all the same once it was closed.
func TestClosedWhileAProcessStarts(t *testing.T) {
	dir := t.TempDir()
	d := opened(t, dir)
	shared, err := unix.Dup(int(d.lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(shared)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	opened(t, dir).Close()
}
