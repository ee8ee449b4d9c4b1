package posture

import (
	"os"
	"strings"
	"testing"
)

// Every fact stands in the documentation, and every one that does is there.
func TestFactsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/posture.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "| `"), "` |"); ok && strings.HasPrefix(name, "posture:") {
			documented[name] = true
			if Advice(name) == "" {
				t.Errorf("nobody is told how to mend %s", name)
			}
		}
	}
	for name := range advice {
		if !documented[name] {
			t.Errorf("docs/posture.md does not have %s", name)
		}
	}
}
