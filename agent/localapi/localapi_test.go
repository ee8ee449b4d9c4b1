package localapi

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func TestMain(m *testing.M) {
	if socket := os.Getenv("REDOUBT_TEST_UP"); socket != "" {
		os.Exit(upAsSomebody(socket))
	}
	goleak.VerifyTestMain(m)
}

func serve(t *testing.T, b Backend) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "redoubt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "run", "agent.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	access, err := Operator("4242")
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, b, access, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { s.Close() })
	return socket
}

// running returns an agent of which little is known.
func running() *Fake {
	f := &Fake{}
	f.SetStatus(&redoubtv1.Status{State: "running", Node: &redoubtv1.LocalNode{Name: "web", Addresses: []string{"100.64.0.1"}}})
	return f
}

func TestCalls(t *testing.T) {
	b := running()
	socket := serve(t, b)
	c := Client(socket)
	ctx := t.Context()
	if r, err := c.Status(ctx, &redoubtv1.StatusRequest{}); err != nil || r.GetStatus().GetState() != "running" {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := c.Whois(ctx, &redoubtv1.WhoisRequest{Address: "100.64.0.1:22"}); err != nil || r.GetNode().GetName() != "web" {
		t.Errorf("%v, %v", r, err)
	}
	for address, code := range map[string]connect.Code{"100.64.0.9": connect.CodeNotFound, "web": connect.CodeInvalidArgument} {
		if _, err := c.Whois(ctx, &redoubtv1.WhoisRequest{Address: address}); connect.CodeOf(err) != code {
			t.Errorf("whois %s: %v", address, err)
		}
	}
	pings, err := c.Ping(ctx, &redoubtv1.PingRequest{Peer: "db", Count: 3, IntervalMs: 1})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; pings.Receive(); n++ {
		if pings.Msg().GetRttUs() != uint64(MinPingInterval.Microseconds()) {
			t.Errorf("an interval of %d us was taken", pings.Msg().GetRttUs())
		}
	}
	if n != 3 || pings.Err() != nil {
		t.Errorf("%d answers, %v", n, pings.Err())
	}
	if os.Geteuid() == 0 {
		up, err := c.Up(ctx, &redoubtv1.UpRequest{Code: "x", Hostname: "y"})
		if err != nil {
			t.Fatal(err)
		}
		var said []string
		for up.Receive() {
			said = append(said, up.Msg().GetStep())
		}
		if strings.Join(said, "|") != "code of 1 characters, hostname \"y\"|" || up.Err() != nil {
			t.Errorf("%q, %v", said, up.Err())
		}
	}
}

func TestWatch(t *testing.T) {
	b := running()
	socket := serve(t, b)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w, err := Client(socket).Watch(ctx, &redoubtv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !w.Receive() || w.Msg().GetStatus().GetState() != "running" {
		t.Errorf("%v, %v", w.Msg(), w.Err())
	}
	cancel()
	if w.Receive() {
		t.Error("sent again although nothing changed")
	}
}

// TestNotForBrowsers checks that what a browser could be made to send is refused, whoever asks.
func TestNotForBrowsers(t *testing.T) {
	b := running()
	socket := serve(t, b)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	post := func(host, origin string, body io.Reader) int {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://redoubt/redoubt.v1.LocalService/Down", body)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		r.Header.Set("Content-Type", "application/json")
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		response, err := client.Do(r)
		if err != nil {
			return -1
		}
		response.Body.Close()
		return response.StatusCode
	}
	for _, c := range []struct{ host, origin string }{
		{"evil.example", ""}, {"localhost", ""}, {"redoubt.evil.example", ""}, {"redoubt", "https://evil.example"}, {"redoubt", "null"},
	} {
		if got := post(c.host, c.origin, strings.NewReader("{}")); got != http.StatusForbidden {
			t.Errorf("host %q, origin %q: %d", c.host, c.origin, got)
		}
	}
	if got := post("redoubt", "", bytes.NewReader(make([]byte, 10<<20))); got == http.StatusOK {
		t.Error("a body of 10 MB was taken")
	}
	if b.Downs() != 0 {
		t.Error("the node was taken down")
	}
}

func TestAccess(t *testing.T) {
	nobody, err := Operator("")
	if err != nil {
		t.Fatal(err)
	}
	operator, err := Operator("1000")
	if err != nil {
		t.Fatal(err)
	}
	root, err := Operator("root")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		access Access
		caller Caller
		want   bool
	}{
		{nobody, Caller{Known: true}, true},
		{nobody, Caller{Known: true, UID: 1000}, false},
		{nobody, Caller{}, false}, // an unknown caller is not root
		{operator, Caller{Known: true, UID: 1000}, true},
		{operator, Caller{Known: true, UID: 1001}, false},
		{operator, Caller{UID: 1000}, false},
		{root, Caller{Known: true}, true},
		{root, Caller{Known: true, UID: 1}, false},
	} {
		if got := c.access.MayChange(c.caller); got != c.want {
			t.Errorf("%+v, %+v: %v", c.access, c.caller, got)
		}
	}
	for _, name := range []string{"no-such-user-here", "-1", "4294967296"} {
		if _, err := Operator(name); err == nil {
			t.Errorf("operator %q was taken", name)
		}
	}
}

// TestDoorkeeper checks that one user cannot keep others out, least of all root.
func TestDoorkeeper(t *testing.T) {
	d := &doorkeeper{}
	var in []*guest
	come := func(c Caller) bool {
		g := &guest{Conn: &net.UnixConn{}, caller: c}
		ok := d.admit(g)
		if ok {
			in = append(in, g)
		}
		return ok
	}
	enter := func(uid uint32) bool { return come(Caller{Known: true, UID: uid, PID: int32(len(in))}) }
	for n := range 200 {
		if enter(1000) != (n < maxPerUser) {
			t.Fatalf("connection %d of one user", n+1)
		}
	}
	if !enter(1001) || !enter(0) {
		t.Error("another was kept out")
	}
	for range 2 * maxPerUser {
		if !enter(0) {
			t.Fatal("root was kept out")
		}
	}
	for n := range 200 {
		if come(Caller{}) != (n < maxPerUser) {
			t.Fatalf("connection %d of somebody whom the kernel does not name", n+1)
		}
	}
	in[0].leave()
	in[0].leave()
	if !enter(1000) || enter(1000) {
		t.Error("one went, and not exactly one came in")
	}
	for _, g := range in {
		g.leave()
	}
	if len(d.count) != 0 {
		t.Errorf("all are gone, and %v are counted", d.count)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "agent.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{path: 0o666, filepath.Dir(path): 0o755} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
		}
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another agent answers") {
		t.Errorf("a second agent: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as a crash leaves it
	l.Close()
	l, err = Listen(path)
	if err != nil {
		t.Fatalf("a socket that a crash left: %v", err)
	}
	l.Close()
	if err := os.WriteFile(path, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("a file of somebody's was taken for a socket")
	}
}
