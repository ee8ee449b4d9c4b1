package api

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// place returns a path for a socket that is short enough.
func place(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func quiet() *Admin { return New(Config{Log: slog.New(slog.DiscardHandler)}) }

func serve(t *testing.T, path string) *Server {
	t.Helper()
	s, err := Serve(path, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSocketIsPrivate(t *testing.T) {
	path := place(t)
	s := serve(t, path)
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v beside the socket, %v", entries, err)
	}
	s.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
}

func TestSocketThatIsThereAlready(t *testing.T) {
	path := place(t)
	first := serve(t, path)
	if _, err := Serve(path, quiet()); err == nil || !strings.Contains(err.Error(), "another coordinator listens") {
		t.Errorf("over one in use: %v", err)
	}
	first.Close()
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	serve(t, path).Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(path, quiet()); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file has become %q, %v", b, err)
	}
	if _, err := Serve("/"+strings.Repeat("x", 200), quiet()); err == nil || !strings.Contains(err.Error(), "--admin-socket") {
		t.Errorf("a name that is too long: %v", err)
	}
}

func TestPagesOfBrowsersGetNothing(t *testing.T) {
	path := place(t)
	serve(t, path)
	for head, want := range map[string]int{
		"Host: coordinator\r\n":                                 http.StatusOK,
		"Host: localhost\r\n":                                   http.StatusForbidden,
		"Host: evil.example\r\n":                                http.StatusForbidden,
		"Host: coordinator\r\nOrigin: https://evil.example\r\n": http.StatusForbidden,
		"Host: coordinator\r\nOrigin: null\r\n":                 http.StatusForbidden,
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		// A method that fails before it needs the directory.
		fmt.Fprintf(c, "POST /redoubt.v1.AdminService/CreateToken HTTP/1.1\r\n%sContent-Type: application/json\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", head)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if want == http.StatusOK && resp.StatusCode == http.StatusForbidden || want == http.StatusForbidden && resp.StatusCode != want {
			t.Errorf("%q: %s", head, resp.Status)
		}
		c.Close()
	}
}

func TestOversizedRequest(t *testing.T) {
	path := place(t)
	serve(t, path)
	_, err := NewClient(path).ApplyPolicy(t.Context(), &redoubtv1.ApplyPolicyRequest{Source: strings.Repeat("x", maxRequest+1)})
	if err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("%v", err)
	}
}

func TestWithoutURLNoJoinCode(t *testing.T) {
	path := place(t)
	serve(t, path)
	_, err := NewClient(path).CreateToken(t.Context(), &redoubtv1.CreateTokenRequest{})
	if err == nil || !strings.Contains(err.Error(), "--url") {
		t.Errorf("%v", err)
	}
}

func TestCaller(t *testing.T) {
	if who := Caller(context.Background()); who != "the coordinator's own process" {
		t.Error(who)
	}
	if who := Caller(WithCaller(context.Background(), "uid 7")); who != "uid 7" {
		t.Error(who)
	}
}
