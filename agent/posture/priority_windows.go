package posture

import (
	"os/exec"
	"syscall"

	"golang.org/x/sys/windows"
)

// start starts a program with a lower priority than everything the machine is there for, including the data path.
func start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.BELOW_NORMAL_PRIORITY_CLASS}
	return cmd.Start()
}
