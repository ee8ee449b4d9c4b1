//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// entered marks the environment of the program that runs in the user namespace.
const entered = "REDOUBT_LAB_ENTERED"

// ErrForbidden means that this system does not let this user do what a world needs.
var ErrForbidden = errors.New("this system does not let this user make networks")

// Enter makes sure that the program may create namespaces. If it may not yet, Enter executes the program again as root of a
// user namespace, with the same arguments and files, and exits with its exit code. It returns nil in the program that may,
// and otherwise an error that names the cause and the remedy.
func Enter() error {
	direct := mayUnshare()
	if direct == nil {
		return nil
	}
	if Entered() {
		return forbidden(direct)
	}
	self := &exec.Cmd{Path: "/proc/self/exe", Args: os.Args, Env: append(os.Environ(), entered+"=1")}
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	err := relay(self)
	if err != nil && self.Process == nil {
		return forbidden(err)
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		os.Exit(exit.ExitCode())
	case errors.As(err, &exit):
		os.Exit(128 + int(exit.Sys().(syscall.WaitStatus).Signal()))
	}
	return fmt.Errorf("wait for the program in the user namespace: %w", err)
}

// Entered reports whether the program runs in the user namespace that Enter has created. It is root there, and no other user
// exists.
func Entered() bool { return os.Getenv(entered) != "" }

// relay runs the program until it ends and forwards signals to it, so that it can clean up. An interrupt from a terminal
// reaches both anyway.
func relay(self *exec.Cmd) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	runtime.LockOSThread() // the program is killed when this thread ends
	defer runtime.UnlockOSThread()
	if err := self.Start(); err != nil {
		return err
	}
	ended := make(chan error)
	go func() { ended <- self.Wait() }()
	for {
		select {
		case s := <-signals:
			if s != unix.SIGINT {
				_ = self.Process.Signal(s)
			}
		case err := <-ended:
			return err
		}
	}
}

// TUN returns an error if this program may not open tunnel devices. Most systems let everyone open them and leave the rest to
// namespaces; some allow only root.
func TUN() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %w; run it with sudo", ErrForbidden, err)
	}
	return f.Close()
}

// mayUnshare tries to create a network namespace on a thread that ends with it.
func mayUnshare() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends, and its namespace with it
		done <- unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS)
	}()
	return <-done
}

// forbidden adds the setting that is the most likely cause.
func forbidden(err error) error {
	cause := ""
	for _, s := range []struct{ path, bad, text string }{
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns is 1"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0"},
		{"/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces is 0"},
	} {
		if b, e := os.ReadFile(s.path); e == nil && strings.TrimSpace(string(b)) == s.bad {
			cause = " (" + s.text + ")"
			break
		}
	}
	return fmt.Errorf("%w%s: %w; run it with sudo", ErrForbidden, cause, err)
}
