package tun

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/redoubt-mesh/redoubt/netstack/poll"
)

// errNothing means that there is nothing to read.
var errNothing = errors.New("nothing to read")

// queue is an open TUN device. Its system calls are raw and never block. What they point to is part of the struct, since it must
// not be on a stack.
type queue struct {
	file *poll.File

	buf       []byte
	got       int
	readErrno syscall.Errno
	callRead  func(fd uintptr)

	vector     [maxParts]unix.Iovec
	parts      int
	writeErrno syscall.Errno
	callWrite  func(fd uintptr)
}

// openQueue opens a queue of a device and returns the device's name. The first queue creates the device.
func openQueue(name string, flags uint16) (*queue, string, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", &os.PathError{Op: "open", Path: clonePath, Err: err}
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("name %q: %w", name, err), unix.Close(fd))
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, "", errors.Join(os.NewSyscallError("TUNSETIFF", err), unix.Close(fd))
	}
	q := &queue{}
	q.callRead, q.callWrite = q.tryRead, q.tryWrite
	// The poller needs an attached descriptor: before, there is nothing to wait for.
	q.file, err = poll.New(fd, clonePath)
	return q, req.Name(), err
}

// attach attaches or detaches the queue.
func (q *queue) attach(how uint16) error {
	req, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	req.SetUint16(how)
	e := q.file.Do(func(fd uintptr) {
		err = os.NewSyscallError("TUNSETQUEUE", unix.IoctlIfreq(int(fd), unix.TUNSETQUEUE, req))
	})
	return errors.Join(e, err)
}

// offload makes the host leave packets joined and without checksums. It reports whether this includes UDP, which Linux supports
// since 6.2.
func (q *queue) offload() (udp bool, err error) {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	e := q.file.Do(func(fd uintptr) {
		if unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6) == nil {
			udp = true
			return
		}
		err = os.NewSyscallError("TUNSETOFFLOAD", unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, tcp))
	})
	return udp, errors.Join(e, err)
}

func (q *queue) tryRead(fd uintptr) {
	for {
		n, _, errno := syscall.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&q.buf[0])), uintptr(len(q.buf)))
		if q.got, q.readErrno = int(n), errno; errno != unix.EINTR {
			return
		}
	}
}

// read reads a virtio header and a packet. It returns errNothing if there is none and wait is false.
func (q *queue) read(buf []byte, wait bool) (int, error) {
	q.buf = buf
	for {
		if q.readErrno == unix.EAGAIN && wait { // the last read found nothing
			if err := q.file.WaitRead(); err != nil {
				return 0, err
			}
		}
		if err := q.file.Do(q.callRead); err != nil {
			return 0, err
		}
		switch {
		case q.readErrno != unix.EAGAIN:
			return q.got, q.failure("read", q.readErrno)
		case !wait:
			return 0, errNothing
		}
	}
}

func (q *queue) tryWrite(fd uintptr) {
	for {
		_, _, q.writeErrno = syscall.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&q.vector[0])), uintptr(q.parts))
		if q.writeErrno != unix.EINTR {
			return
		}
	}
}

// write writes a virtio header and a packet given in parts.
func (q *queue) write(parts [][]byte) error {
	for i, p := range parts {
		q.vector[i].Base = &p[0]
		q.vector[i].SetLen(len(p))
	}
	q.parts = len(parts)
	if err := q.file.Do(q.callWrite); err != nil {
		return err
	}
	return q.failure("write", q.writeErrno)
}

func (q *queue) failure(op string, errno syscall.Errno) error {
	switch errno {
	case 0:
		return nil
	case unix.EBADFD: // the device was removed
		return os.ErrClosed
	}
	return &os.PathError{Op: op, Path: clonePath, Err: errno}
}
