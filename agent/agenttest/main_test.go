package agenttest

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// A bubble fails by itself if anything in it outlives it; goleak is for what runs outside of bubbles.
//
// Files live in memory if the system has a place for that and no other was chosen: what is written here is synced to a disk
// thousands of times, and never read after a crash.
func TestMain(m *testing.M) {
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); err == nil && info.IsDir() && os.Getenv("TMPDIR") == "" {
		os.Setenv("TMPDIR", memory)
	}
	goleak.VerifyTestMain(m)
}
