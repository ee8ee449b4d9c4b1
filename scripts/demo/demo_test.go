//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// TestDemo runs the demo as `make demo` does, then breaks each of its steps and checks that it fails.
func TestDemo(t *testing.T) {
	labtest.World(t) // skips the test if worlds cannot be created
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin+"/", "./cmd/redoubt", "./cmd/redoubt-coordinator", "./scripts/demo")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	demo := func(t *testing.T, sabotage string) (string, error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "demo"), "-bin", bin, "-sabotage", sabotage)
		cmd.Env = append(os.Environ(), "NO_COLOR=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := demo(t, "")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(out) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > width {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, want := range []string{"ann@example.com", "refused after", "the connection was dead", "All of it happened"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	for _, c := range []struct{ sabotage, step string }{
		{"enrol", "step 2"}, {"tunnel", "step 3"}, {"allow", "step 4"}, {"deny", "step 3"}, {"revoke", "step 6"},
	} {
		t.Run(c.sabotage, func(t *testing.T) {
			t.Parallel()
			out, err := demo(t, c.sabotage)
			if err == nil {
				t.Fatalf("the demo does not notice:\n%s", out)
			}
			if !strings.Contains(out, "The demo failed: "+c.step) {
				t.Errorf("it should fail in %s:\n%s", c.step, out)
			}
		})
	}
}
