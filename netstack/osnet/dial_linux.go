package osnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSegment is the payload of a TCP segment in the 1280-byte packet that every IPv6 network carries.
const maxSegment = 1280 - 40 - 20

// Dialer opens connections of the underlay: neither they nor the name lookups before them go through an exit node. Their
// segments, in both directions, are short enough to pass paths that silently drop longer ones.
func Dialer() *net.Dialer {
	ask := net.Dialer{Control: mark}
	return &net.Dialer{Control: outgoing, Resolver: &net.Resolver{PreferGo: true, Dial: ask.DialContext}}
}

// outgoing marks a socket, and limits the segment size if it is TCP.
func outgoing(network, address string, c syscall.RawConn) error {
	if err := mark(network, address, c); err != nil || !strings.HasPrefix(network, "tcp") {
		return err
	}
	var err error
	if e := c.Control(func(fd uintptr) {
		err = os.NewSyscallError("set TCP_MAXSEG", unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, maxSegment))
	}); e != nil {
		return e
	}
	return err
}

// Listener opens underlay sockets.
func Listener() *net.ListenConfig { return &net.ListenConfig{Control: mark} }

// mark marks a socket before it is used.
func mark(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, Mark)
	}); e != nil {
		return e
	}
	// A process that may not mark sockets cannot use an exit node either.
	if err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mark a socket: %w", err)
	}
	return nil
}

// ProbeListener opens underlay sockets whose packets are never fragmented, whatever the kernel knows about the path MTU. They
// serve to probe which sizes get through.
func ProbeListener() *net.ListenConfig {
	return &net.ListenConfig{Control: func(network, address string, c syscall.RawConn) error {
		if err := mark(network, address, c); err != nil {
			return err
		}
		level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
		if strings.HasSuffix(network, "6") {
			level, option, value = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
		}
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) }); e != nil {
			return e
		}
		return err
	}}
}
