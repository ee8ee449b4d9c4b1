//go:build unix

package posture

import (
	"os/exec"

	"golang.org/x/sys/unix"
)

// niceness is how far programs that collect stand back behind what the machine is there for, the data path included: the
// package manager of a Debian computes for seconds.
const niceness = 10

// start starts a program that stands back. Where the system does not let it, it does not.
func start(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, niceness)
	return nil
}
