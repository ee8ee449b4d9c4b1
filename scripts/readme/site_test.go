//go:build linux

package readme

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

var (
	// again matches commands that only look: their output may take a moment to become true.
	again = regexp.MustCompile(`(^|redoubt |redoubt-coordinator )(\w+ )?(status|whois|ping|list|show|ssh|journalctl)\b|journalctl|^ssh `)
	// failure matches how the output of a failing command begins.
	failure = regexp.MustCompile(`^(ssh|redoubt|redoubt-coordinator|\S+:\d+:\d+: error): `)
)

// cloned is appended to a host's name for the terminal in which its user works in the clone of the repository.
const cloned = "+clone"

// moment is how long an action may take to become visible.
const moment = time.Minute

// site is the hosts that README.md sets up, and what is known about them.
type site struct {
	checkout string
	dir      string
	hosts    map[string]*lab.Host
	env      []string
	world    world
}

// newSite creates the hosts, without any of our files.
func newSite(t *testing.T, checkout string) *site {
	w := labtest.World(t)
	lan := labtest.LAN(t, w, "internet")
	s := &site{checkout: checkout, dir: filepath.Join(w.Dir, "site"), hosts: map[string]*lab.Host{}, world: world{}}
	bin := filepath.Join(s.dir, "bin")
	build(t, checkout, bin)
	s.env = []string{
		"PATH=" + os.Getenv("PATH") + ":/usr/local/bin:/usr/sbin:/sbin", "LC_ALL=C", "TZ=UTC",
		// The programs are already built, and once is enough.
		"MAKEFLAGS=GO=true",
		checkoutVar + "=" + checkout, binVar + "=" + bin, homesVar + "=" + s.dir,
	}
	for _, name := range hosts {
		h := labtest.Host(t, w, name, lan)
		s.hosts[name] = h
		s.furnish(t, h, filepath.Join(s.dir, name+".root"))
		home := filepath.Join(s.dir, name)
		err := errors.Join(os.Mkdir(home, 0o755), os.WriteFile(s.cwd(name), []byte(home), 0o600), os.WriteFile(s.cwd(name+cloned), []byte(home), 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.point("vm"); err != nil {
		t.Fatal(err)
	}
	return s
}

// point makes vm.example.com resolve to a host, on all of them.
func (s *site) point(to string) error {
	var errs []error
	names := fmt.Sprintf("127.0.0.1 localhost\n%v vm.example.com\n", s.hosts[to].V4())
	for host := range s.hosts {
		errs = append(errs, os.WriteFile(filepath.Join(s.dir, host+".root", "etc/hosts"), []byte(names), 0o644))
	}
	return errors.Join(errs...)
}

// cwd returns the file that holds the current directory of a terminal.
func (s *site) cwd(terminal string) string { return filepath.Join(s.dir, terminal+".cwd") }

func build(t *testing.T, checkout, bin string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "./cmd/redoubt", "./cmd/redoubt-coordinator")
	cmd.Dir = checkout
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
}

// furnish gives a host its own directories where installations write.
func (s *site) furnish(t *testing.T, h *lab.Host, root string) {
	t.Helper()
	h.Mounts = map[string]string{}
	for _, dir := range []string{"/etc", "/usr/local/bin", "/var/lib"} {
		h.Mounts[dir] = filepath.Join(root, dir)
	}
	var errs []error
	for _, dir := range []string{"etc/default", "etc/systemd/system", "usr/local/bin", "var/lib"} {
		errs = append(errs, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for _, name := range []string{"passwd", "group", "nsswitch.conf", "ld.so.cache"} {
		b, err := os.ReadFile(filepath.Join("/etc", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, err, os.WriteFile(filepath.Join(root, "etc", name), b, 0o644))
	}
	m, err := newManager(h, root)
	if err := errors.Join(append(errs, err)...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}

// nothingLeft checks that README.md tells how to remove everything.
func (s *site) nothingLeft(t *testing.T, host string) {
	err := filepath.WalkDir(filepath.Join(s.dir, host+".root"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), "redoubt") {
			t.Errorf("%s has %s after all that README.md says", host, path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// make checks that the Makefile has a target. `sudo make install` is really run, by on.
func (s *site) make(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command("make", append([]string{"-n", "-C", s.checkout}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		ts.Fatalf("make %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// write TERMINAL FILE writes a file of the script to the current directory.
func (s *site) write(ts *testscript.TestScript, _ bool, args []string) {
	dir, err := os.ReadFile(s.cwd(args[0]))
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(strings.TrimSpace(string(dir)), args[1]), []byte(ts.ReadFile(args[1])), 0o644))
}

// on TERMINAL COMMAND [SHOWN] runs a command and compares its output with the file SHOWN.
func (s *site) on(ts *testscript.TestScript, _ bool, args []string) {
	terminal, command := args[0], args[1]
	shown := ""
	if len(args) > 2 {
		shown = ts.ReadFile(args[2])
	}
	if strings.Contains(command, " restore ") {
		// At this point README.md says in words that the name resolves to the new machine.
		ts.Check(s.point(terminal))
	}
	end := time.Now().Add(moment)
	for {
		err := s.once(ts, terminal, command, shown)
		if err == nil {
			return
		}
		if !again.MatchString(command) || time.Now().After(end) {
			ts.Fatalf("%s$ %s: %v", terminal, command, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *site) once(ts *testscript.TestScript, terminal, command, shown string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*moment)
	defer cancel()
	const script = `exec 2>&1; cd "$(cat "$1")" && eval "$2"; code=$?; pwd >"$1"; exit $code`
	real := s.world.real(command)
	host, _, _ := strings.Cut(terminal, "+")
	out, err := s.hosts[host].Run(ctx, lab.Command{
		Path: "sh", Args: []string{"-c", script, "sh", s.cwd(terminal), real}, Env: slices.Clone(s.env),
	})
	ts.Logf("%s$ %s\n%s", host, real, out)
	switch fails := failure.MatchString(shown); {
	case err != nil && !fails:
		return fmt.Errorf("%w\n%s", err, out)
	case err == nil && fails:
		return fmt.Errorf("it should fail, and printed\n%s", out)
	}
	return s.world.compare(shown, out)
}
