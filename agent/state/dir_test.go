package state

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDirectoriesOfOthers checks that an agent that is given /tmp or somebody's home by mistake does not close it to its users.
func TestDirectoriesOfOthers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "passwd"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if d, err := Open(dir, noon); err == nil || !strings.Contains(err.Error(), "directory of its own") {
		t.Errorf("a directory with another's files in it: %v", err)
		if err == nil {
			d.Close()
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("afterwards it has mode %v, %v", info.Mode(), err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("afterwards it holds %v, %v", list, err)
	}

	// An empty directory, as service managers create it, and one of ours are closed to others.
	empty := t.TempDir()
	for range 2 {
		if err := os.Chmod(empty, 0o755); err != nil {
			t.Fatal(err)
		}
		opened(t, empty).Close()
		if info, err := os.Stat(empty); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("our directory has mode %v, %v", info.Mode(), err)
		}
	}
}
