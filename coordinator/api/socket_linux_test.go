package api

import (
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// TestStrangers checks that other users are disconnected even if the socket's mode lets them connect.
func TestStrangers(t *testing.T) {
	if path := os.Getenv("TEST_ADMIN_SOCKET"); path != "" {
		c, err := net.Dial("unix", path)
		if err != nil {
			os.Exit(3)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: coordinator\r\n\r\n")
		if n, _ := c.Read(make([]byte, 1)); n != 0 {
			os.Exit(4)
		}
		os.Exit(0)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, to run a process of another user")
	}
	path := place(t)
	serve(t, path)
	for _, name := range []string{path[:len(path)-2], path} {
		if err := os.Chmod(name, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	copied := path[:len(path)-2] + "/test"
	if err := os.WriteFile(copied, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), copied, "-test.run", "^TestStrangers$")
	cmd.Env = append(os.Environ(), "TEST_ADMIN_SOCKET="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("a stranger: %v\n%s", err, out)
	}
}
