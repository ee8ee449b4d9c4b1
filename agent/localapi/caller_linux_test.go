package localapi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// upAsSomebody is this test run as another user: it looks, and tries to make a change.
func upAsSomebody(socket string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c := Client(socket)
	if _, err := c.Status(ctx, &redoubtv1.StatusRequest{}); err != nil {
		fmt.Println("status:", err)
		return 1
	}
	_, err := c.Down(ctx, &redoubtv1.DownRequest{})
	var denied *connect.Error
	if errors.As(err, &denied) && denied.Code() == connect.CodePermissionDenied {
		fmt.Println("denied")
		return 0
	}
	if err != nil {
		fmt.Println("down:", err)
		return 1
	}
	fmt.Println("done")
	return 0
}

// TestCallersOfTheKernel checks that the kernel identifies the caller, whatever the caller says.
func TestCallersOfTheKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: only this user's own calls are tried")
	}
	b := running()
	socket := serve(t, b)
	program := copyOf(t, os.Args[0], socket)
	for uid, want := range map[uint32]string{0: "done", 4242: "done", 65534: "denied"} {
		if os.Geteuid() != 0 {
			if uid != 65534 || os.Geteuid() == 4242 {
				continue
			}
			uid = uint32(os.Geteuid())
		}
		cmd := exec.CommandContext(t.Context(), program)
		cmd.Dir = "/"
		cmd.Env = []string{"REDOUBT_TEST_UP=" + socket}
		if os.Geteuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		}
		out, err := cmd.Output()
		if got := strings.TrimSpace(string(out)); got != want || err != nil {
			t.Errorf("user %d: %q, want %q; %v", uid, got, want, err)
		}
	}
}

// copyOf copies the test's program to where every user may run it: beside the socket.
func copyOf(t *testing.T, program, socket string) string {
	t.Helper()
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	name := socket + ".test"
	if err := os.WriteFile(name, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}
