package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/proto/join"
)

func TestMain(m *testing.M) {
	testscript.Main(leakless{m}, map[string]func(){"redoubt-coordinator": main})
}

// leakless fails the tests if they leave goroutines behind.
type leakless struct{ m *testing.M }

func (l leakless) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// shell runs commands within the test's process.
type shell struct {
	t    *testing.T
	data string
}

func (s *shell) try(stdin string, args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	var out, errs bytes.Buffer
	env := map[string]string{"REDOUBT_DATA": s.data}
	p := &program{in: strings.NewReader(stdin), out: &out, err: &errs, lookup: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
	code = p.run(s.t.Context(), args)
	return code, out.String(), errs.String()
}

// ok runs a command that must succeed, and returns what it printed.
func (s *shell) ok(args ...string) string {
	s.t.Helper()
	code, out, errs := s.try("", args...)
	if code != 0 {
		s.t.Fatalf("%v: exit %d\n%s%s", args, code, out, errs)
	}
	narrow(s.t, out)
	return out
}

// no runs a command that must fail and print want.
func (s *shell) no(want string, args ...string) {
	s.t.Helper()
	code, out, errs := s.try("", args...)
	if code == 0 || !strings.Contains(errs+out, want) {
		s.t.Errorf("%v: exit %d, want %q in\n%s%s", args, code, want, out, errs)
	}
}

func narrow(t *testing.T, out string) {
	t.Helper()
	for line := range strings.Lines(out) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 && !strings.HasPrefix(line, "redoubt1-") && !strings.HasPrefix(strings.TrimSpace(line), `"`) {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
}

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// start runs serve, and waits until it reports to systemd that it is ready.
func start(t *testing.T, args ...string) (s *shell, stdout, stderr *bytes.Buffer, stop func() int) {
	t.Helper()
	s, stdout, stderr, stop, _ = started(t, args...)
	return s, stdout, stderr, stop
}

// started is like start, and also returns a function that waits for a message to systemd.
func started(t *testing.T, args ...string) (s *shell, stdout, stderr *bytes.Buffer, stop func() int, heard func(string)) {
	t.Helper()
	return startedIn(t, place(t), args...)
}

func place(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rc") // short, since it holds unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// startedIn is like started, in a directory that may contain data of an earlier start.
func startedIn(t *testing.T, dir string, args ...string) (s *shell, stdout, stderr *bytes.Buffer, stop func() int, heard func(string)) {
	t.Helper()
	_ = os.Remove(filepath.Join(dir, "notify"))
	s = &shell{t: t, data: filepath.Join(dir, "data")}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { notify.Close() })
	t.Setenv("NOTIFY_SOCKET", notify.LocalAddr().String())
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	p := &program{in: strings.NewReader(""), out: stdout, err: stderr, lookup: func(string) (string, bool) { return "", false }}
	go func() {
		done <- p.run(ctx, append([]string{"serve", "--data", s.data, "--listen", "127.0.0.1:0", "--url", "https://c.example"}, args...))
	}()
	heard = func(want string) {
		t.Helper()
		_ = notify.SetReadDeadline(time.Now().Add(time.Minute))
		for b := make([]byte, 256); ; {
			n, err := notify.Read(b)
			if got := string(b[:n]); got == want {
				return
			} else if err != nil || got != daemon.SdNotifyWatchdog {
				t.Errorf("systemd hears %q (%v), want %s\n%s", got, err, want, stderr)
				return
			}
		}
	}
	heard(daemon.SdNotifyReady)
	return s, stdout, stderr, func() int {
		cancel()
		heard(daemon.SdNotifyStopping)
		return <-done
	}, heard
}

func TestWatchdog(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "30000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	_, _, _, stop, heard := started(t)
	heard(daemon.SdNotifyWatchdog)
	heard(daemon.SdNotifyWatchdog)
	stop()
}

func TestCommands(t *testing.T) {
	s, first, _, stop := start(t)
	for _, want := range []string{"A new mesh", "token create --user", "policy apply", "names      NAME.mesh.internal"} {
		if !strings.Contains(first.String(), want) {
			t.Errorf("want %q in\n%s", want, first)
		}
	}

	code, out, errs := s.try("", "token", "create", "--user", "ann@example.com")
	joined, err := join.Parse(out)
	if code != 0 || err != nil || strings.Count(out, "\n") != 1 || joined.URLs[0] != "https://c.example" || !strings.Contains(errs, "one machine of ann@example.com") {
		t.Errorf("token create: exit %d, %v\n%s%s", code, err, out, errs)
	}
	made := decode[struct {
		Code  string
		Token token
	}](t, s.ok("token", "create", "--tag", "tag:b", "--tag", "tag:a", "--reusable", "--ttl", "24h", "--json"))
	if len(made.Token.Tags) != 2 || made.Token.State != "valid" || !made.Token.Reusable {
		t.Errorf("%+v", made.Token)
	}
	list := s.ok("token", "list")
	if !strings.Contains(list, made.Token.ID) || !strings.Contains(list, "tag:a,tag:b") || strings.Contains(list, strings.TrimSpace(out)[:30]) {
		t.Error(list)
	}
	s.ok("token", "revoke", made.Token.ID)
	if l := decode[struct{ Tokens []token }](t, s.ok("token", "list", "--json")); len(l.Tokens) != 2 || l.Tokens[1].User != "ann@example.com" {
		t.Errorf("%+v", l)
	}
	s.no("not known", "token", "revoke", "t0000000000000")
	if _, _, errs := s.try("", "token", "create"); !strings.Contains(errs, "one machine of nobody") {
		t.Error(errs)
	}
	s.no("want either a user or tags", "token", "create", "--user", "ann@example.com", "--tag", "tag:a")
	s.no("want tag:", "token", "create", "--tag", "a")
	s.no("want a time", "token", "create", "--user", "a@b", "--ttl", "-1h")

	if n := decode[struct{ Nodes []node }](t, s.ok("node", "list", "--json")); n.Nodes == nil || len(n.Nodes) != 0 {
		t.Errorf("%+v", n)
	}
	s.ok("node", "list")
	s.no(`no node "nobody"`, "node", "show", "nobody")
	s.no(`no node "nobody"`, "node", "revoke", "nobody")
	s.no(`no node "nobody"`, "node", "delete", "nobody")

	if code := stop(); code != 0 {
		t.Errorf("serve: exit %d", code)
	}
	if _, err := os.Lstat(filepath.Join(s.data, socketName)); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
	s.no("no coordinator listens on", "node", "list")
}

func TestPolicyCommands(t *testing.T) {
	s, _, _, stop := start(t)
	defer stop()
	s.no("no packet passes", "policy", "show")
	if out := s.ok("policy", "status"); !strings.Contains(out, "no policy has been applied") {
		t.Error(out)
	}
	file := filepath.Join(t.TempDir(), "p.hujson")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("{\n  \"grantz\": [],\n  \"acls\": [{\"action\": \"accept\", \"src\": [\"group:x\"], \"dst\": [\"*:*\"]}]\n}")
	for _, cmd := range []string{"check", "apply"} {
		code, out, errs := s.try("", "policy", cmd, file)
		if code != 1 || out != "" || !strings.Contains(errs, file+":2:3: error: ") || !strings.Contains(errs, file+":3:") {
			t.Errorf("policy %s: exit %d\n%s%s", cmd, code, out, errs)
		}
		code, out, _ = s.try("", "policy", cmd, file, "--json")
		if d := decode[struct{ Diagnostics []diagnostic }](t, out); code != 1 || len(d.Diagnostics) < 2 || d.Diagnostics[0].Severity != "error" {
			t.Errorf("policy %s --json: exit %d\n%s", cmd, code, out)
		}
	}
	write(`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]} // all` + "\n")
	if out := s.ok("policy", "check", file); !strings.Contains(out, "no errors") {
		t.Error(out)
	}
	if out := s.ok("policy", "apply", file, "--wait"); !strings.Contains(out, "policy 1 is in force") || !strings.Contains(out, "0 of 0 nodes") {
		t.Error(out)
	}
	if out := s.ok("policy", "apply", file); !strings.Contains(out, "already") {
		t.Error(out)
	}
	s.no("policy 1 is in force, not 7", "policy", "apply", "--expect", "7", filepath.Join(s.data, "policy.example.hujson"))
	if out := s.ok("policy", "show"); !strings.HasSuffix(out, "// all\n") {
		t.Error(out)
	}
	code, out, _ := s.try(`{}`, "policy", "apply", "-", "--json")
	if a := decode[struct {
		Number  int
		Applied bool
	}](t, out); code != 0 || a.Number != 2 || !a.Applied {
		t.Errorf("exit %d: %s", code, out)
	}
	file = filepath.Join(s.data, "policy.example.hujson")
	if a := decode[struct {
		Number, Nodes, TookMs *int
		Applied, DryRun       *bool
		Diagnostics           []diagnostic
		Changes               *impact
		Laggards              []laggard
	}](t, s.ok("policy", "apply", file, "--wait", "--json")); a.Number == nil || *a.Number != 3 || a.Nodes == nil || a.TookMs == nil ||
		a.Applied == nil || !*a.Applied || a.DryRun == nil || *a.DryRun || a.Diagnostics == nil || a.Changes == nil || a.Changes.Base != 2 || a.Laggards == nil {
		t.Errorf("%+v", a)
	}
	if st := decode[struct {
		Number   int
		Laggards []laggard
	}](t, s.ok("policy", "status", "--wait=1s", "--json")); st.Number != 3 || st.Laggards == nil {
		t.Errorf("%+v", st)
	}
	s.no("no such file", "policy", "apply", "/nowhere/p")
}

func TestBackupAndRestore(t *testing.T) {
	s, _, _, stop := start(t)
	s.ok("token", "create", "--user", "ann@example.com")
	file := filepath.Join(t.TempDir(), "b")
	if out := s.ok("backup", file, "--json"); decode[struct{ Bytes int64 }](t, out).Bytes == 0 {
		t.Error(out)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	s.no("in use by process", "restore", file)
	stop()
	target := &shell{t: t, data: filepath.Join(t.TempDir(), "data")}
	if out := target.ok("restore", file); !strings.Contains(out, "1 join codes") {
		t.Error(out)
	}
	target.no("", "restore", file)
	target.no("not a whole backup", "restore", os.Args[0])
}

func TestServeRefuses(t *testing.T) {
	s := &shell{t: t, data: filepath.Join(t.TempDir(), "data")}
	s.no("want https://HOST", "serve", "--listen", "127.0.0.1:0", "--url", "http://c")
	s.no("want a range", "serve", "--listen", "127.0.0.1:0", "--range", "here")
	s.no("metrics", "serve", "--listen", "127.0.0.1:0", "--metrics", "here")
	s.no("lifetime", "serve", "--listen", "127.0.0.1:0", "--cert-lifetime", "soon")
	s.no("unknown", "serve", "--no-such-flag")
	s.no("unknown command", "surf")
	if _, err := os.Stat(s.data); !os.IsNotExist(err) {
		t.Errorf("refused after something was made: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	_, _, _, stop := start(t, "--metrics", port)
	defer stop()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get("http://127.0.0.1:" + port + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	for _, want := range []string{"redoubt_coordinator_nodes 0", "redoubt_coordinator_connected_nodes 0", "redoubt_coordinator_lobby_connections 0", "go_goroutines"} {
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("want %s (%v)", want, err)
		}
	}
}

func TestMetricsAddress(t *testing.T) {
	for in, want := range map[string]string{"9090": "127.0.0.1:9090", ":9090": "127.0.0.1:9090", "0.0.0.0:9090": "0.0.0.0:9090", "[::1]:1": "[::1]:1", "": ""} {
		if got, err := metricsAddress(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"x", "1.2.3.4", "host:http", "70000"} {
		if got, err := metricsAddress(in); err == nil {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestHelpFits(t *testing.T) {
	s := &shell{t: t, data: t.TempDir()}
	for _, args := range [][]string{{"--help"}, {"version"}, {"version", "--json"}, {"token", "--help"}, {"node", "--help"}, {"policy", "--help"}} {
		s.ok(args...)
	}
}
