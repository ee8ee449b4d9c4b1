package agenttest

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// A bubble fails by itself if anything in it goes on after its end; goleak is for what runs outside of bubbles.
//
// Files live in memory where the system has a place for that and nobody chose another: what is written here is synced to a
// disk thousands of times, and nobody reads it after a crash.
func TestMain(m *testing.M) {
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); err == nil && info.IsDir() && os.Getenv("TMPDIR") == "" {
		os.Setenv("TMPDIR", memory)
	}
	goleak.VerifyTestMain(m)
}
