//go:build unix

package state

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A process that is being started shares all files of this one until it executes its program. A directory that was closed in
// that moment is free all the same.
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
