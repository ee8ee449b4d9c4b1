package posture

import (
	"os/exec"
	"syscall"

	"golang.org/x/sys/windows"
)

// start starts a program that stands back behind what the machine is there for, the data path included.
func start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.BELOW_NORMAL_PRIORITY_CLASS}
	return cmd.Start()
}
