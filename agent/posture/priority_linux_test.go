package posture

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProgramsStandBack(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := start(cmd); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	const base = 20 // the system call returns 20 minus the niceness
	if got, err := unix.Getpriority(unix.PRIO_PROCESS, cmd.Process.Pid); err != nil || base-got != niceness {
		t.Errorf("a program has niceness %d (%v), want %d", base-got, err, niceness)
	}
	if err := start(exec.Command("/no/such/program")); err == nil {
		t.Error("a program that is not there starts")
	}
}
