//go:build linux || darwin || freebsd

package bolt

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// tryLock locks an open file until the file is closed.
func tryLock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return errHeld
		}
		return err
	}
}

// unlock releases the lock at once. Closing the file is not enough: a child that is being forked shares it until exec.
func unlock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_UN) }
