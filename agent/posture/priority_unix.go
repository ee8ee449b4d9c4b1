//go:build unix

package posture

import (
	"os/exec"

	"golang.org/x/sys/unix"
)

// niceness is the priority of the programs that collectors run, below that of everything the machine is there for, including
// the data path: Debian's package manager computes for seconds.
const niceness = 10

// start starts a program with low priority, if the system permits that.
func start(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, niceness)
	return nil
}
