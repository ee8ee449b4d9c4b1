package agenttest

import (
	"testing"

	"go.uber.org/goleak"
)

// A bubble fails by itself if anything in it goes on after its end; this is for what runs outside of bubbles.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
