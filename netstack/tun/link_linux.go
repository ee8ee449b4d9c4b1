package tun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// link is the network interface of a TUN device: its MTU and its changes. Its sockets belong to the network namespace in which
// the device was created.
type link struct {
	name    string
	index   int
	control *os.File // a socket for ioctl
	news    *os.File // a netlink socket
	events  chan Event
	closing chan struct{}
	done    sync.WaitGroup
}

// queueLength is how many packets the host may leave in a queue. With the kernel's default, a program that sends small packets
// fills the queue before we are scheduled.
const queueLength = 2000

// openLink sets the MTU, and monitors the interface until the link is closed.
func openLink(name string, mtu int) (_ *link, err error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	l := &link{name: name, index: i.Index, events: make(chan Event, 4), closing: make(chan struct{})}
	if l.control, err = socket("ioctl", unix.AF_INET, unix.SOCK_DGRAM, 0); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.control.Close())
		}
	}()
	if err := l.setMTU(mtu); err != nil {
		return nil, err
	}
	_, _ = l.ioctl(unix.SIOCSIFTXQLEN, queueLength) // a shorter queue only loses more under load
	if l.news, err = subscribe(); err != nil {
		return nil, err
	}
	l.done.Go(l.follow)
	return l, nil
}

func socket(name string, domain, kind, protocol int) (*os.File, error) {
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// subscribe opens a netlink socket that reports interface changes.
func subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

func (l *link) close() error {
	close(l.closing)
	err := errors.Join(l.news.Close(), l.control.Close())
	l.done.Wait()
	return err
}

// ioctl makes a request about the interface.
func (l *link) ioctl(request uint, value uint32) (*unix.Ifreq, error) {
	req, err := unix.NewIfreq(l.name)
	if err != nil {
		return nil, err
	}
	req.SetUint32(value)
	raw, err := l.control.SyscallConn()
	if err != nil {
		return nil, err
	}
	e := raw.Control(func(fd uintptr) { err = unix.IoctlIfreq(int(fd), request, req) })
	return req, errors.Join(e, err)
}

func (l *link) mtu() (int, error) {
	req, err := l.ioctl(unix.SIOCGIFMTU, 0)
	if err != nil {
		return 0, fmt.Errorf("MTU of %s: %w", l.name, err)
	}
	return int(req.Uint32()), nil
}

func (l *link) setMTU(mtu int) error {
	if _, err := l.ioctl(unix.SIOCSIFMTU, uint32(mtu)); err != nil {
		return fmt.Errorf("set the MTU of %s to %d: %w", l.name, mtu, err)
	}
	return nil
}

// follow reports changes until the link is closed.
func (l *link) follow() {
	defer close(l.events)
	buf := make([]byte, 1<<13)
	mtu, up := 0, false
	for {
		now, err := l.mtu()
		if err == nil && now != mtu {
			mtu = now
			// If it cannot be set, a super-packet takes two calls to send; nothing else suffers.
			_ = l.fitSupers(mtu)
			l.tell(EventMTUUpdate)
		}
		if req, err := l.ioctl(unix.SIOCGIFFLAGS, 0); err == nil && (req.Uint16()&unix.IFF_UP != 0) != up {
			if up = !up; up {
				l.tell(EventUp)
			} else {
				l.tell(EventDown)
			}
		}
		if !l.changed(buf) {
			return
		}
	}
}

func (l *link) tell(e Event) {
	select {
	case l.events <- e:
	case <-l.closing:
	}
}

// changed waits for a change of the interface. It returns false when the link was closed.
func (l *link) changed(buf []byte) bool {
	for {
		n, err := l.news.Read(buf)
		if errors.Is(err, unix.ENOBUFS) { // messages were lost: look again
			return true
		}
		if err != nil {
			return false
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			length := int(binary.NativeEndian.Uint32(b))
			if length < unix.SizeofNlMsghdr || length > len(b) {
				break
			}
			// The index is the second word of an RTM_NEWLINK payload.
			if binary.NativeEndian.Uint16(b[4:]) == unix.RTM_NEWLINK && length >= unix.SizeofNlMsghdr+unix.SizeofIfInfomsg &&
				int(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr+4:])) == l.index {
				return true
			}
			b = b[min(len(b), (length+3)&^3):]
		}
	}
}

// superSize returns the maximum size of a super-packet such that the result can be sent by one call: as many packets of the MTU
// as fit a UDP datagram once sealed. The host subtracts in advance what it needs for headers, and the more options there are,
// the smaller each packet's payload is.
func superSize(mtu int) int {
	const (
		maxDatagram = 1<<16 - 1 - 28
		maxCount    = 64
		overhead    = 32
		mostHeaders = 60 // IPv6 without options, IPv4 with more than usual
		hostTakes   = 320
	)
	count := max(1, min(maxCount, maxDatagram/(mtu+overhead)))
	return min(1<<16, count*(mtu-mostHeaders)+hostTakes)
}

// fitSupers limits the host to super-packets that one call can send.
func (l *link) fitSupers(mtu int) error {
	const attribute = 8 // length, type, value
	b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg+attribute)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.RTM_SETLINK)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[unix.SizeofNlMsghdr+4:], uint32(l.index))
	a := b[unix.SizeofNlMsghdr+unix.SizeofIfInfomsg:]
	binary.NativeEndian.PutUint16(a, attribute)
	binary.NativeEndian.PutUint16(a[2:], unix.IFLA_GSO_MAX_SIZE)
	binary.NativeEndian.PutUint32(a[4:], uint32(superSize(mtu)))
	_, err := l.news.Write(b)
	return err
}
