package osnet

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dialer makes connections of the underlay: neither they nor the questions for names that come before them go by an exit node.
func Dialer() *net.Dialer {
	ask := net.Dialer{Control: mark}
	return &net.Dialer{Control: mark, Resolver: &net.Resolver{PreferGo: true, Dial: ask.DialContext}}
}

// Listener opens sockets of the underlay.
func Listener() *net.ListenConfig { return &net.ListenConfig{Control: mark} }

// mark marks a socket before it is used.
func mark(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, DefaultMark)
	}); e != nil {
		return e
	}
	// Who may not mark sockets may not have an exit node, either.
	if err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mark a socket: %w", err)
	}
	return nil
}
