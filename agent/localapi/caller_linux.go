package localapi

import (
	"net"

	"golang.org/x/sys/unix"
)

// callerAt asks the kernel who made a connection. A caller that it cannot name may look, as everyone may.
func callerAt(conn net.Conn) Caller {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return Caller{}
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Caller{}
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return Caller{}
	}
	return Caller{Known: true, UID: cred.Uid, PID: cred.Pid}
}
