package bind

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/poll"
)

// System returns a conn.Bind over the kernel's UDP sockets, which also moves runs: a system call sends up to 64 messages to one
// address, or receives as many from one. It has readers sockets per address family, all on one port, if the kernel has room for
// them. The kernel distributes senders over them, so that several cores receive and each sender's packets stay in order.
func System(readers int) conn.Bind { return &udp{readers: min(readers, maxReaders)} }

// udp has sockets for each address family, on the same port.
type udp struct {
	only4   bool
	readers int
	mu      sync.Mutex // for Open and Close
	v4, v6  atomic.Pointer[socket]
	more    []*socket // receive only

	wholeMu sync.Mutex
	cuts    bool // the network may fragment what is sent
}

// Sibling implements Siblings.
func (u *udp) Sibling() conn.Bind { return &udp{only4: true} }

var _ Runs = (*udp)(nil)

// socketBuffer is the size of a socket's buffers. A flow that is faster than a reader waiting for its turn overruns smaller
// ones.
const socketBuffer = 8 << 20

// maxReaders is how many sockets of an address family share a port at most. Any further cores are left to the peers' tunnels
// and programs.
const maxReaders = 8

// openTries is how often another port is tried if any will do and the one IPv4 got is in use for IPv6.
const openTries = 100

// Open implements conn.Bind.
func (u *udp) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	runs, actual, err := u.OpenRuns(port)
	fns := make([]conn.ReceiveFunc, 0, len(runs))
	for _, r := range runs {
		fns = append(fns, unpack(r))
	}
	return fns, actual, err
}

// OpenRuns implements Runs.
func (u *udp) OpenRuns(port uint16) ([]RunFunc, uint16, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.v4.Load() != nil || u.v6.Load() != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	for tries := 0; ; tries++ {
		v4, v6, err := u.listen(port)
		if port == 0 && tries < openTries && errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		u.v4.Store(v4)
		u.v6.Store(v6)
		u.wholeMu.Lock()
		err = restore(u.sockets(), u.cuts)
		u.wholeMu.Unlock()
		if err != nil {
			return nil, 0, errors.Join(err, u.closeSockets())
		}
		var fns []RunFunc
		for _, s := range u.sockets() {
			port = s.port
			u.more = append(u.more, s.share(u.readers-1)...)
			fns = append(fns, newReceiving(s).run)
		}
		for _, s := range u.more {
			fns = append(fns, newReceiving(s).run)
		}
		return fns, port, nil
	}
}

// share opens up to n other sockets on the port of s, as many as possible.
func (s *socket) share(n int) (others []*socket) {
	if n < 1 {
		return nil
	}
	// Not earlier: a first socket that shares would join those of another program, and receive part of its packets.
	var err error
	if s.file.Do(func(fd uintptr) { err = sharePort(int(fd)) }) != nil || err != nil {
		return nil
	}
	network := "udp4"
	if s.is6 {
		network = "udp6"
	}
	for range n {
		o, err := listen(network, s.port, sharePort)
		if err != nil {
			break
		}
		others = append(others, o)
	}
	return others
}

func sharePort(fd int) error {
	return option("SO_REUSEPORT", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
}

func (u *udp) listen(port uint16) (v4, v6 *socket, err error) {
	if u.only4 {
		v4, err = listen("udp4", port)
		return v4, nil, err
	}
	return listenBoth(port)
}

// listenBoth opens a socket for each available address family, on the same port.
func listenBoth(port uint16) (v4, v6 *socket, err error) {
	v4, err = listen("udp4", port)
	if err != nil && !errors.Is(err, syscall.EAFNOSUPPORT) {
		return nil, nil, err
	}
	if v4 != nil {
		port = v4.port
	}
	v6, err = listen("udp6", port)
	switch {
	case err == nil:
		return v4, v6, nil
	case v4 != nil && errors.Is(err, syscall.EAFNOSUPPORT):
		return v4, nil, nil
	case v4 != nil:
		err = errors.Join(err, v4.file.Close())
	}
	return nil, nil, err
}

func listen(network string, port uint16, also ...func(fd int) error) (*socket, error) {
	s := &socket{is6: network == "udp6"}
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) {
			err = s.prepare(int(fd))
			for _, set := range also {
				err = errors.Join(err, set(int(fd)))
			}
		}), err)
	}}
	p, err := c.ListenPacket(context.Background(), network, ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, err
	}
	u := p.(*net.UDPConn) //nolint:errcheck // that is what ListenPacket gives for UDP
	s.port = u.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	if s.file, err = take(u); err != nil {
		return nil, err
	}
	s.calls.New = func() any { return newSending(s) }
	return s, nil
}

// take moves a socket from the runtime's poller to ours.
func take(u *net.UDPConn) (*poll.File, error) {
	fd := -1
	raw, err := u.SyscallConn()
	if err == nil {
		e := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
		err = errors.Join(e, os.NewSyscallError("fcntl", err))
	}
	err = errors.Join(err, u.Close())
	switch {
	case fd < 0:
		return nil, err
	case err != nil:
		return nil, errors.Join(err, unix.Close(fd))
	}
	return poll.New(fd, "udp")
}

// prepare sets a socket's options, before it is bound.
func (s *socket) prepare(fd int) error {
	// Exceed the system's limit if the process may; otherwise get as much as allowed. A smaller buffer only makes it slower.
	for _, o := range [][2]int{{unix.SO_RCVBUF, unix.SO_RCVBUFFORCE}, {unix.SO_SNDBUF, unix.SO_SNDBUFFORCE}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], socketBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], socketBuffer)
		}
	}
	// If the kernel does not join received messages, each comes alone.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	s.segments.Store(err == nil && !corruptsSegments(kernelRelease()))
	if !s.is6 {
		return option("IP_PKTINFO", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1); err != nil {
		return option("IPV6_RECVPKTINFO", err)
	}
	return option("IPV6_V6ONLY", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
}

func option(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("set %s: %w", name, err)
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// corruptsSegments reports whether a Linux release corrupts what it splits: 7.0 to 7.1.4 write wrong UDP headers if the last
// message is as long as the others.
func corruptsSegments(release string) bool {
	var v [3]int
	for i, part := range strings.SplitN(release, ".", 3) {
		digits := len(part) - len(strings.TrimLeft(part, "0123456789"))
		v[i], _ = strconv.Atoi(part[:digits]) // zero if there are no digits
	}
	return v[0] == 7 && (v[1] == 0 || v[1] == 1 && v[2] <= 4)
}

// Close implements conn.Bind.
func (u *udp) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.closeSockets()
}

func (u *udp) closeSockets() error {
	var errs []error
	for _, p := range []*atomic.Pointer[socket]{&u.v4, &u.v6} {
		if s := p.Swap(nil); s != nil {
			errs = append(errs, s.file.Close())
		}
	}
	for _, s := range u.more {
		errs = append(errs, s.file.Close())
	}
	u.more = nil
	return errors.Join(errs...)
}

// SetMark implements conn.Bind.
func (u *udp) SetMark(mark uint32) error {
	var errs []error
	for _, s := range []*socket{u.v4.Load(), u.v6.Load()} {
		if s != nil {
			var err error
			errs = append(errs, s.file.Do(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
			}), err)
		}
	}
	return errors.Join(errs...)
}

// BatchSize implements conn.Bind.
func (u *udp) BatchSize() int { return conn.IdealBatchSize }

// ParseEndpoint implements conn.Bind.
func (u *udp) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return newUDPEndpoint(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
}

// SendRun implements Runs.
func (u *udp) SendRun(run []byte, size int, to conn.Endpoint) error {
	e, ok := to.(*udpEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	s := u.toward(e)
	if s == nil {
		return syscall.EAFNOSUPPORT
	}
	c := s.calls.Get().(*sending) //nolint:errcheck // calls holds nothing else
	defer s.calls.Put(c)
	for len(run) > 0 {
		n := min(len(run), size*max(1, min(MaxRunCount, MaxRun/size)))
		if !s.segments.Load() {
			n = min(len(run), size)
		}
		c.iov[0].Base, c.parts = &run[0], 1
		c.iov[0].SetLen(n)
		if err := c.send(e, n, size); err != nil {
			return err
		}
		run = run[n:]
	}
	return nil
}

// Send implements conn.Bind.
func (u *udp) Send(bufs [][]byte, to conn.Endpoint) error {
	e, ok := to.(*udpEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	s := u.toward(e)
	if s == nil {
		return syscall.EAFNOSUPPORT
	}
	c := s.calls.Get().(*sending) //nolint:errcheck // calls holds nothing else
	defer s.calls.Put(c)
	for len(bufs) > 0 {
		n := c.gather(bufs, s.segments.Load())
		if err := c.send(e, c.bytes, len(bufs[0])); err != nil {
			return err
		}
		bufs = bufs[n:]
	}
	return nil
}

func (u *udp) toward(e *udpEndpoint) *socket {
	if e.dst.Addr().Is4() {
		return u.v4.Load()
	}
	return u.v6.Load()
}
