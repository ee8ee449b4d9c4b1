//go:build linux

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// helperName is the name under which this program is executed again, to enter a host and become another program.
const helperName = "redoubt-lab-exec"

// netFD is the file descriptor with which the helper inherits the host's network namespace.
const netFD = 3

// entry tells the helper what to enter and what to run.
type entry struct {
	Name  string            // of the host
	Binds map[string]string // target: directory mounted there for this host's processes
	Dir   string            // working directory
	UID   int               // user and group to become
	Path  string            // program
	Args  []string          // including the name
}

// init becomes the requested program if this one was executed as the helper. It must run before main, so that no program that
// builds worlds can forget it and execute itself endlessly.
func init() {
	if len(os.Args) != 2 || os.Args[0] != helperName {
		return
	}
	runtime.LockOSThread()
	err := become(os.Args[1])
	fmt.Fprintln(os.Stderr, "lab:", err)
	os.Exit(127)
}

// become executes the program. It returns only on failure.
func become(text string) error {
	var e entry
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return fmt.Errorf("read what to run: %w", err)
	}
	if err := unix.Setns(netFD, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the host's network: %w", err)
	}
	if err := unix.Close(netFD); err != nil {
		return fmt.Errorf("close the host's network: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("make namespaces for mounts and the name: %w", err)
	}
	if err := unix.Sethostname([]byte(e.Name)); err != nil {
		return fmt.Errorf("take the name %s: %w", e.Name, err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts from the system: %w", err)
	}
	for target, dir := range e.Binds {
		if err := unix.Mount(dir, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("put %s at %s: %w", dir, target, err)
		}
	}
	if e.Dir != "" {
		if err := unix.Chdir(e.Dir); err != nil {
			return fmt.Errorf("change to %s: %w", e.Dir, err)
		}
	}
	if e.UID != 0 {
		if err := drop(e.UID); err != nil {
			return fmt.Errorf("become user %d: %w", e.UID, err)
		}
	}
	err := syscall.Exec(e.Path, e.Args, os.Environ())
	return fmt.Errorf("execute %s: %w", e.Path, err)
}

// drop gives up root for a user without privileges. A change of user clears the parent death signal, so it is set again.
func drop(uid int) error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("leave all groups: %w", err)
	}
	if err := errors.Join(syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
}
