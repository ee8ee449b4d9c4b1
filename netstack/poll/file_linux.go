package poll

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// File is an open descriptor for raw system calls that never block.
type File struct {
	file     *os.File
	raw      syscall.RawConn
	closed   atomic.Bool
	readable *bell

	writing  sync.Mutex           // one goroutine at a time waits for room
	writable atomic.Pointer[bell] // nil until the first WaitWrite, which is rare
}

// New returns a File for a descriptor. It takes ownership of fd, even if it fails.
func New(fd int, name string) (*File, error) {
	// os.NewFile registers only non-blocking descriptors with the runtime's poller, and this one must stay out of it.
	err := os.NewSyscallError("fcntl", unix.SetNonblock(fd, false))
	f := &File{file: os.NewFile(uintptr(fd), name)}
	if err == nil {
		err = os.NewSyscallError("fcntl", unix.SetNonblock(fd, true))
	}
	if err == nil {
		f.raw, err = f.file.SyscallConn()
	}
	if err == nil {
		f.readable, err = newBell(fd, unix.EPOLLIN, name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Do calls call with the descriptor, which stays open until call returns.
func (f *File) Do(call func(fd uintptr)) error { return f.failure(f.raw.Control(call)) }

// WaitRead waits until there is something to read. It may return early. Only one goroutine may call it at a time.
func (f *File) WaitRead() error { return f.failure(f.readable.wait()) }

// WaitWrite waits until there is room to write. It may return early.
func (f *File) WaitWrite() error {
	f.writing.Lock()
	defer f.writing.Unlock()
	b, err := f.bellForRoom()
	if err != nil {
		return f.failure(err)
	}
	return f.failure(b.wait())
}

func (f *File) bellForRoom() (b *bell, err error) {
	if b = f.writable.Load(); b != nil {
		return b, nil
	}
	if e := f.raw.Control(func(fd uintptr) { b, err = newBell(int(fd), unix.EPOLLOUT, f.file.Name()) }); e != nil || err != nil {
		return nil, errors.Join(e, err)
	}
	f.writable.Store(b)
	if f.closed.Load() { // Close may have missed it
		return nil, errors.Join(os.ErrClosed, f.writable.Swap(nil).close())
	}
	return b, nil
}

// failure returns os.ErrClosed for any error that follows from closing f.
func (f *File) failure(err error) error {
	if err != nil && f.closed.Load() {
		return os.ErrClosed
	}
	return err
}

// SetReadDeadline makes WaitRead fail with os.ErrDeadlineExceeded after t; the zero time means never.
func (f *File) SetReadDeadline(t time.Time) error { return f.readable.file.SetReadDeadline(t) }

// OS returns the open file, for callers that need one. It is closed with f.
func (f *File) OS() *os.File { return f.file }

// Close ends all waits with os.ErrClosed, and closes the descriptor once the last call returns.
func (f *File) Close() error {
	f.closed.Store(true)
	return errors.Join(f.readable.close(), f.writable.Swap(nil).close(), f.file.Close())
}

// bell wakes the goroutine that waits for an event on a descriptor, once per wait.
type bell struct {
	file  *os.File // an epoll instance with a single descriptor
	raw   syscall.RawConn
	event unix.EpollEvent // what to wait for; system calls point to it
	heard unix.EpollEvent // what happened
	armed bool
	errno syscall.Errno
	ring  func(epoll uintptr) bool
}

func newBell(fd int, events uint32, name string) (*bell, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	b := &bell{event: unix.EpollEvent{Events: unix.EPOLLONESHOT, Fd: int32(fd)}}
	err = os.NewSyscallError("epoll_ctl", unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &b.event))
	if err == nil {
		err = os.NewSyscallError("fcntl", unix.SetNonblock(epoll, true)) // makes os.NewFile register it with the runtime's poller
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(epoll))
	}
	b.event.Events |= events
	b.file = os.NewFile(uintptr(epoll), name)
	if b.raw, err = b.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, b.file.Close())
	}
	b.ring = b.step
	return b, nil
}

// wait blocks until the event occurs. Only one goroutine may call it at a time.
func (b *bell) wait() error {
	b.errno = 0
	if err := b.raw.Read(b.ring); err != nil {
		return err
	}
	if b.errno != 0 {
		return os.NewSyscallError("epoll", b.errno)
	}
	return nil
}

// step is called before the poller waits and after each event it sees. It reports whether the wait is over.
func (b *bell) step(epoll uintptr) bool {
	if !b.armed { // otherwise a wait that ended early left it armed
		_, _, b.errno = syscall.RawSyscall6(unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_MOD, uintptr(b.event.Fd),
			uintptr(unsafe.Pointer(&b.event)), 0, 0)
		b.armed = b.errno == 0
		return b.errno != 0
	}
	// Consume the event: while it is pending, it would not be reported again.
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, epoll, uintptr(unsafe.Pointer(&b.heard)), 1, 0, 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			b.errno = errno
			return true
		default:
			b.armed = n == 0
			return n > 0
		}
	}
}

func (b *bell) close() error {
	if b == nil {
		return nil
	}
	return b.file.Close()
}
