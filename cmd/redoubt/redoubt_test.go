package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/agent/localapi"
	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// fake serves a fake agent on a socket.
func fake(t *testing.T, st *redoubtv1.Status) (f *localapi.Fake, socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "redoubt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "agent.sock")
	l, err := localapi.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	access, err := localapi.Operator(uidText())
	if err != nil {
		t.Fatal(err)
	}
	f = &localapi.Fake{}
	f.SetStatus(st)
	s := localapi.Serve(l, f, access, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { s.Close() })
	return f, socket
}

type result struct {
	code     int
	out, err string
}

func redoubt(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	var out, err bytes.Buffer
	code := run(t.Context(), args, program{
		in: strings.NewReader(stdin), out: &out, err: &err, env: func(string) (string, bool) { return "", false },
	})
	return result{code, out.String(), err.String()}
}

func status() *redoubtv1.Status {
	return &redoubtv1.Status{
		State: "running", Program: "v1.2.3", Interface: "redoubt0", ListenPort: 41641, MeshDomain: "mesh.internal", PolicyVersion: "1.12", DeviceKey: "tpm",
		Node: &redoubtv1.LocalNode{
			Id: "n0000000000002", Name: "web-1", Addresses: []string{"100.64.0.1", "fd00::1"}, User: "ann@example.com",
			CertificateExpires: noon.Add(47 * time.Minute).Unix(), Attestation: "measured",
		},
		Coordinator: &redoubtv1.Coordinator{Connected: true, LastHeard: noon.Add(-3 * time.Second).UnixMilli(), Url: "https://coordinator.example.com"},
		Peers: []*redoubtv1.LocalPeer{
			{
				Id: "n0000000000004", Name: "db-1", Addresses: []string{"100.64.0.2", "fd00::2"}, Tags: []string{"tag:db", "tag:prod"}, Path: "direct",
				Endpoint: "[2001:db8:1234:5678:9abc:def0:1234:5678]:41641", LastHandshake: noon.Add(-90 * time.Second).UnixMilli(),
				PathSince: noon.Add(-80 * time.Minute).UnixMilli(), PathRttUs: 1912, PathMtu: 1420,
				RxBytes: 123, TxBytes: 7 << 20, CertificateExpires: noon.Add(time.Hour).Unix(),
				Tunnel: &redoubtv1.Tunnel{
					PublicKey: "mPnjfjfIfNDAdo3XhwaI91Ia6UK8wJMQPdmk8T4LI2E=", KeySince: noon.Add(-12 * time.Minute).UnixMilli(), Keys: 2, Sessions: 3,
					SessionSince: noon.Add(-90 * time.Second).UnixMilli(), Handshakes: 14, Unanswered: 2,
					Drops: map[string]uint64{"replay": 3, "bad source": 12, "no answer": 1},
				},
				Denied: map[string]uint64{"no rule lets these nodes connect": 4, "no rule names this protocol and port": 1},
			},
			{
				Id: "n0000000000006", Name: "a-machine-with-a-name-of-some-length", Addresses: []string{"100.64.255.255", "fd00::3"},
				User: "someone-with-a-long-name@department.example.com", CertificateExpires: noon.Add(time.Hour).Unix(),
				Tunnel: &redoubtv1.Tunnel{
					PublicKey: "YmFzZTY0IG9mIDMyIGJ5dGVzIHRoYXQgYXJlIGEga2U=", KeySince: noon.Add(-30 * time.Hour).UnixMilli(), Keys: 1,
				},
			},
		},
		Problems: []string{"other users of 100.64.0.0/10 on this host: cni0 has 100.64.3.1/24; packets to both meshes would go to one of them only, so choose another --range"},
		Filter:   &redoubtv1.FilterCounters{Flows: 3, AllowedPackets: 1234, DeniedPackets: 5, Drops: map[string]uint64{"no rule lets these nodes connect": 5}},
		Wireguard: &redoubtv1.WireGuard{
			Keys: []*redoubtv1.NodeKey{
				{PublicKey: "bmV3ZXN0IGtleSBvZiB0aGlzIG5vZGUuLi4uLi4uLi4=", Since: noon.Add(-40 * time.Second).UnixMilli()},
				{
					PublicKey: "dGhlIG9uZSBiZWZvcmUgaXQuLi4uLi4uLi4uLi4uLi4=", Since: noon.Add(-30 * time.Minute).UnixMilli(),
					Until: noon.Add(140 * time.Second).UnixMilli(),
				},
			},
			Drops: map[string]uint64{"stranger": 1000, "no cookie": 70, "bad source": 12, "wrong key": 5, "replay": 3, "no answer": 1},
		},
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: %s", path, diff)
	}
}

func TestStatusText(t *testing.T) {
	text := render(status(), noon, false)
	golden(t, "status.txt", text)
	down := &redoubtv1.Status{State: "down", Problems: []string{"this machine is not in a mesh yet"}}
	golden(t, "status-down.txt", render(down, noon, false))
	pending := &redoubtv1.Status{
		State: "pending", Coordinator: &redoubtv1.Coordinator{Connected: true, Url: "https://coordinator.example.com"},
		Pending: &redoubtv1.PendingApproval{Code: "BCDF-GHJK", Name: "web-1", Since: noon.Unix()},
		Problems: []string{"since 2026-05-01T12:00:00Z: an administrator has to approve this machine, web-1, code BCDF-GHJK " +
			"(redoubt-coordinator node approve BCDF-GHJK); then it continues by itself"},
	}
	golden(t, "status-pending.txt", render(pending, noon, false))
	revoked := status()
	revoked.State, revoked.Peers, revoked.Coordinator.Connected = "revoked", nil, false
	golden(t, "status-revoked.txt", render(revoked, noon.Add(time.Hour), false))
	for _, line := range strings.Split(text, "\n") {
		if n := len([]rune(line)); n > width {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	tunnels := renderTunnels(status(), noon, false)
	golden(t, "status-tunnels.txt", tunnels)
	for _, line := range strings.Split(tunnels, "\n") {
		if n := len([]rune(line)); n > width {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	golden(t, "status-tunnels-down.txt", renderTunnels(down, noon, false))
	coloured := render(status(), noon, true) + renderTunnels(status(), noon, true)
	if !strings.Contains(coloured, "\x1b[") || strings.Contains(text, "\x1b[") {
		t.Error("colour where there should be none, or none where there should be some")
	}
}

func TestStatusJSON(t *testing.T) {
	_, socket := fake(t, status())
	r := redoubt(t, "", "--socket", socket, "status", "--json")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	golden(t, "status.json", r.out)
	for _, st := range []*redoubtv1.Status{{State: "down"}, nil} {
		_, socket := fake(t, st)
		r := redoubt(t, "", "--socket", socket, "status", "--json")
		var v map[string]any
		if err := json.Unmarshal([]byte(r.out), &v); err != nil || r.code != 0 || v["state"] != "down" {
			t.Fatalf("%+v: %v", r, err)
		}
		for _, list := range []string{"peers", "problems"} {
			if _, ok := v[list].([]any); !ok {
				t.Errorf("%s is %v, not a list", list, v[list])
			}
		}
	}
}

func TestStatusExitCode(t *testing.T) {
	_, socket := fake(t, status())
	if r := redoubt(t, "", "--socket", socket, "status"); r.code != 0 || r.err != "" {
		t.Errorf("running: %+v", r)
	}
	if r := redoubt(t, "", "--socket", socket, "status", "--tunnels"); r.code != 0 || r.err != "" || !strings.Contains(r.out, "HANDSHAKES") {
		t.Errorf("running, --tunnels: %+v", r)
	}
	_, socket = fake(t, nil)
	if r := redoubt(t, "", "--socket", socket, "status"); r.code != exitFalse || r.err != "" || !strings.Contains(r.out, "down") {
		t.Errorf("down: %+v", r)
	}
}

func code(t *testing.T) string {
	t.Helper()
	secret, err := key.NewToken(strings.NewReader(strings.Repeat("s", 32)))
	if err != nil {
		t.Fatal(err)
	}
	text, err := join.Code{URLs: []string{"https://coordinator.example.com"}, Secret: secret}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestUp(t *testing.T) {
	f, socket := fake(t, status())
	c := code(t)
	file := filepath.Join(t.TempDir(), "code")
	if err := os.WriteFile(file, []byte("\n  "+c+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]result{
		"argument": redoubt(t, "", "--socket", socket, "up", c, "--hostname", "web"),
		"input":    redoubt(t, c+"\n", "--socket", socket, "up", "-", "--hostname", "web"),
		"file":     redoubt(t, "", "--socket", socket, "up", "--code-file", file, "--hostname", "web"),
	} {
		if r.code != 0 || r.out != "web-1.mesh.internal\n100.64.0.1\nfd00::1\n" || !strings.Contains(r.err, `hostname "web"`) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	for name, args := range map[string][]string{
		"rubbish":   {"up", "rubbish"},
		"cut short": {"up", c[:len(c)/2]},
		"oversized": {"up", c + strings.Repeat("x", 4000)},
		"damaged":   {"up", c[:20] + "A" + c[21:]},
		"both":      {"up", c, "--code-file", file},
		"no file":   {"up", "--code-file", file + "x"},
		"two codes": {"up", c, c},
		"bad flag":  {"up", "--no-such-flag"},
		"bad time":  {"up", "--timeout", "soon"},
	} {
		r := redoubt(t, "", append([]string{"--socket", socket}, args...)...)
		if r.code != exitUsage || r.out != "" || r.err == "" {
			t.Errorf("%s: %+v", name, r)
		}
		if strings.Contains(r.err, c[len(c)-20:]) {
			t.Errorf("%s: the error tells the code", name)
		}
	}
	if r := redoubt(t, strings.Repeat("x", 1<<20), "--socket", socket, "up", "-"); r.code != exitUsage {
		t.Errorf("a megabyte of code: %+v", r)
	}
	f.Refuse(&localapi.Error{Code: connect.CodeFailedPrecondition, Err: errors.New("this node was revoked")})
	if r := redoubt(t, "", "--socket", socket, "up"); r.code != exitFalse || r.err != "redoubt: this node was revoked\n" {
		t.Errorf("%+v", r)
	}
}

func TestNoAgent(t *testing.T) {
	for _, args := range [][]string{{"status"}, {"up"}, {"down"}, {"ping", "x"}, {"whois", "100.64.0.1"}, {"why", "db:22"}, {"status", "--watch"}} {
		r := redoubt(t, "", append([]string{"--socket", "/nonexistent/agent.sock"}, args...)...)
		if r.code != exitNoAgent || !strings.Contains(r.err, "/nonexistent/agent.sock") || !strings.Contains(r.err, "systemctl start redoubt") {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

func TestDown(t *testing.T) {
	f, socket := fake(t, status())
	if r := redoubt(t, "", "--socket", socket, "down"); r.code != 0 || f.Downs() != 1 {
		t.Errorf("%+v", r)
	}
}

func TestWhois(t *testing.T) {
	f, socket := fake(t, status())
	if r := redoubt(t, "", "--socket", socket, "whois", "100.64.0.1"); r.code != 0 || r.out != "web-1  n0000000000002\nann@example.com\n100.64.0.1  fd00::1\n" {
		t.Errorf("%+v", r)
	}
	if r := redoubt(t, "", "--socket", socket, "whois", "100.64.0.9"); r.code != exitFalse || r.out != "" {
		t.Errorf("%+v", r)
	}
	if r := redoubt(t, "", "--socket", socket, "whois", "web"); r.code != exitUsage {
		t.Errorf("%+v", r)
	}
	f.Grant(&redoubtv1.Capability{Name: "example.com/cap/admin", Values: []string{`{"role":"owner"}`, `{}`}})
	if r := redoubt(t, "", "--socket", socket, "whois", "100.64.0.1"); !strings.HasSuffix(r.out, "\nexample.com/cap/admin {\"role\":\"owner\"} {}\n") {
		t.Errorf("%+v", r)
	}
	r := redoubt(t, "", "--socket", socket, "whois", "100.64.0.1", "--json")
	var v struct {
		Name         string
		Capabilities map[string][]map[string]string
	}
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || v.Name != "web-1" || v.Capabilities["example.com/cap/admin"][0]["role"] != "owner" {
		t.Errorf("%+v: %v", r, err)
	}
}

func TestWatch(t *testing.T) {
	_, socket := fake(t, status())
	ctx, cancel := context.WithCancel(t.Context())
	out := &stopper{stop: cancel}
	code := run(ctx, []string{"--socket", socket, "status", "--watch", "--json"}, program{
		in: strings.NewReader(""), out: out, err: &out.Buffer, env: func(string) (string, bool) { return "", false },
	})
	if code != 0 || !strings.Contains(out.String(), `"policyVersion":"1.12"`) {
		t.Errorf("%d: %s", code, out.String())
	}
}

// stopper calls stop when it is first written to.
type stopper struct {
	bytes.Buffer
	stop func()
}

func (s *stopper) Write(b []byte) (int, error) {
	defer s.stop()
	return s.Buffer.Write(b)
}

// TestAgentFlags checks that invalid settings are reported before anything is created.
func TestAgentFlags(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	socket := filepath.Join(t.TempDir(), "agent.sock")
	for name, args := range map[string][]string{
		"operator":  {"--operator", "no-such-user-here"},
		"metrics":   {"--metrics", "not an address"},
		"log level": {"--log-level", "loud"},
		"port":      {"--listen-port", "70000"},
		"argument":  {"state"},
		"config":    {"--config", "/nonexistent/config"},
	} {
		r := redoubt(t, "", append([]string{"agent", "--state", dir, "--socket", socket}, args...)...)
		if r.code != exitUsage || r.err == "" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	for _, path := range []string{dir, socket} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was made", path)
		}
	}
}

func TestVersion(t *testing.T) {
	r := redoubt(t, "", "version", "--json")
	var v map[string]string
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || v["version"] == "" || r.code != 0 {
		t.Errorf("%+v: %v", r, err)
	}
	if r := redoubt(t, "", "version"); !strings.HasPrefix(r.out, "redoubt ") {
		t.Errorf("%+v", r)
	}
}

func TestMetricsAddress(t *testing.T) {
	for addr, want := range map[string]string{"0": "127.0.0.1:", ":0": "127.0.0.1:", "127.0.0.2:0": "127.0.0.2:"} {
		l, err := listenMetrics(t.Context(), addr)
		if err != nil || !strings.HasPrefix(l.Addr().String(), want) {
			t.Errorf("%s: %v, %v", addr, l, err)
			continue
		}
		l.Close()
	}
}

// TestHelp checks that every command has help.
func TestHelp(t *testing.T) {
	for _, c := range [][]string{{}, {"agent"}, {"up"}, {"down"}, {"status"}, {"ping"}, {"whois"}, {"why"}, {"version"}} {
		r := redoubt(t, "", append(c, "--help")...)
		if r.code != 0 || r.out == "" {
			t.Errorf("%v: %+v", c, r)
		}
	}
}

func TestSizesAndSpans(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 7 << 20: "7.0 MiB", 1 << 50: "1.0 PiB", 1 << 63: "8192.0 PiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 59 * time.Second: "59s", 90 * time.Minute: "1h30m", 49 * time.Hour: "2d"} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
}

func uidText() string {
	b, err := json.Marshal(os.Geteuid())
	if err != nil {
		return ""
	}
	return string(b)
}
