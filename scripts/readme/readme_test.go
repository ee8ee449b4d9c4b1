//go:build linux

package readme

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

// tests runs the tests where namespaces are available.
type tests struct{ m *testing.M }

func (t tests) Run() int { return labtest.Main(t.m) }

func TestMain(m *testing.M) {
	if _, ok := standins[filepath.Base(os.Args[0])]; !ok {
		// Do this before testscript creates its directory, which would be left behind. labtest reports its error later.
		_ = lab.Enter()
	}
	testscript.Main(tests{m}, standins)
}

// TestReadme does what README.md says, in order.
func TestReadme(t *testing.T) {
	labtest.TUN(t)
	checkout, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(checkout, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	steps, err := parse(string(text))
	if err != nil {
		t.Fatalf("README.md: %v", err)
	}
	file := filepath.Join(t.TempDir(), "README.txtar")
	if err := os.WriteFile(file, script(steps), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, checkout)
	t.Cleanup(func() {
		if !t.Failed() {
			s.nothingLeft(t, "server")
		}
	})
	testscript.Run(t, testscript.Params{
		Files: []string{file}, RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"make": s.make, "write": s.write, "on": s.on},
	})
}

// script returns the testscript for the steps.
func script(steps []step) []byte {
	var b, files bytes.Buffer
	for _, s := range steps {
		fmt.Fprintf(&b, "# README.md:%d\n", s.line)
		name := fmt.Sprintf("%d.shown", s.line)
		if s.file != "" {
			name = s.file
			fmt.Fprintf(&files, "-- %s --\n%s", name, s.content)
		} else if s.want != "" {
			fmt.Fprintf(&files, "-- %s --\n%s", name, s.want)
		}
		if strings.HasPrefix(s.command, "make ") && s.command != "make build" {
			fmt.Fprintf(&b, "make %s\n", strings.TrimPrefix(s.command, "make "))
			continue
		}
		for _, h := range s.hosts {
			if s.clone {
				h += cloned
			}
			switch {
			case s.file != "":
				fmt.Fprintf(&b, "write %s %s\n", h, name)
			case s.want != "":
				fmt.Fprintf(&b, "on %s %s %s\n", h, quote(s.command), name)
			default:
				fmt.Fprintf(&b, "on %s %s\n", h, quote(s.command))
			}
		}
	}
	b.Write(files.Bytes())
	return b.Bytes()
}

// quote turns a text into one argument.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
