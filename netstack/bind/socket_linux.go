package bind

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/poll"
)

// socket is a UDP socket. Its system calls are raw and never block: a call that does not take the goroutine off its thread
// costs a third less.
type socket struct {
	file     *poll.File
	is6      bool
	port     uint16
	segments atomic.Bool // the kernel splits sent runs
	calls    sync.Pool   // of *sending
}

const (
	infoWords  = 5 // a control message with the longer of the two kinds of packet information, in 8-byte words
	splitWords = 3 // a control message with a segment size
)

// sending makes one sendmsg call at a time. It is allocated once, since what a call points to must not be on a stack.
type sending struct {
	s       *socket
	hdr     unix.Msghdr
	iov     [MaxRunCount]unix.Iovec
	parts   int
	bytes   int
	control [infoWords + splitWords]uint64
	errno   syscall.Errno
	call    func(fd uintptr)
}

func newSending(s *socket) *sending {
	c := &sending{s: s}
	c.call = c.try
	return c
}

func (c *sending) try(fd uintptr) {
	for {
		_, _, c.errno = syscall.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&c.hdr)), unix.MSG_DONTWAIT)
		if c.errno != unix.EINTR {
			return
		}
	}
}

// closed maps the error of a closed socket to net.ErrClosed.
func closed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

// gather collects as many messages as fit in one call, and returns how many.
func (c *sending) gather(bufs [][]byte, several bool) int {
	size := len(bufs[0])
	c.parts, c.bytes = 0, 0
	for _, b := range bufs {
		if c.parts > 0 && (!several || len(b) > size || len(b) == 0 || c.parts == MaxRunCount || c.bytes+len(b) > MaxRun) {
			break
		}
		c.iov[c.parts].Base = unsafe.SliceData(b)
		c.iov[c.parts].SetLen(len(b))
		c.parts++
		c.bytes += len(b)
		if len(b) < size {
			break
		}
	}
	return c.parts
}

// send sends the contents of the vectors as messages of size bytes.
func (c *sending) send(e *udpEndpoint, bytes, size int) error {
	c.hdr.Name = &e.name[0]
	c.hdr.Namelen = e.nameLen
	c.hdr.Iov = &c.iov[0]
	c.hdr.SetIovlen(c.parts)
	words := 0
	if !e.forgotten.Load() {
		words = copy(c.control[:], e.info[:e.infoWords])
	}
	if bytes > size {
		words += splitControl(c.control[words:], size)
	}
	c.hdr.Control = nil
	if words > 0 {
		c.hdr.Control = (*byte)(unsafe.Pointer(&c.control[0]))
	}
	c.hdr.SetControllen(words * 8)
	for {
		if err := c.s.file.Do(c.call); err != nil {
			return closed(err)
		}
		if c.errno != unix.EAGAIN {
			break
		}
		if err := c.s.file.WaitWrite(); err != nil {
			return closed(err)
		}
	}
	switch {
	case c.errno == 0:
		return nil
	case bytes > size && (c.errno == unix.EIO || c.errno == unix.EINVAL || c.errno == unix.EMSGSIZE):
		return c.sendSingly(e, size)
	}
	return os.NewSyscallError("sendmsg", c.errno)
}

// sendSingly sends one by one what could not be sent together. If the network device cannot compute checksums (EIO),
// segmentation is not tried again; otherwise the messages are larger than the path MTU, and the system fragments them.
func (c *sending) sendSingly(e *udpEndpoint, size int) error {
	if c.errno == unix.EIO {
		c.s.segments.Store(false)
	}
	parts, vectors := c.parts, c.iov
	c.parts = 1
	for _, v := range vectors[:parts] {
		b := unsafe.Slice(v.Base, v.Len)
		for len(b) > 0 {
			n := min(len(b), size)
			c.iov[0].Base = &b[0]
			c.iov[0].SetLen(n)
			if err := c.send(e, n, n); err != nil {
				return err
			}
			b = b[n:]
		}
	}
	return nil
}

// splitControl writes a control message that makes the kernel split a run, and returns its length in words.
func splitControl(b []uint64, size int) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Add(unsafe.Pointer(h), unix.CmsgLen(0))) = uint16(size)
	return unix.CmsgSpace(2) / 8
}

// udpEndpoint is a destination in the kernel's form, with what it reported about a packet from there: which of our addresses it
// came to, and on which interface.
type udpEndpoint struct {
	dst       netip.AddrPort
	name      [unix.SizeofSockaddrInet6]byte
	nameLen   uint32
	src       netip.Addr
	ifindex   int32
	info      [infoWords]uint64 // a control message that makes the answer leave from there
	infoWords int
	forgotten atomic.Bool
}

func newUDPEndpoint(dst netip.AddrPort) (*udpEndpoint, error) {
	e := &udpEndpoint{dst: dst}
	if dst.Addr().Is4() {
		e.nameLen = unix.SizeofSockaddrInet4
		binary.NativeEndian.PutUint16(e.name[:], unix.AF_INET)
		a := dst.Addr().As4()
		copy(e.name[4:], a[:])
	} else {
		scope, err := scopeOf(dst.Addr().Zone())
		if err != nil {
			return nil, err
		}
		e.nameLen = unix.SizeofSockaddrInet6
		binary.NativeEndian.PutUint16(e.name[:], unix.AF_INET6)
		a := dst.Addr().As16()
		copy(e.name[8:], a[:])
		binary.NativeEndian.PutUint32(e.name[24:], scope)
	}
	binary.BigEndian.PutUint16(e.name[2:], dst.Port())
	return e, nil
}

// scopeOf returns the index of the interface that an IPv6 zone names.
func scopeOf(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, err
	}
	return uint32(i.Index), nil
}

// ClearSrc implements conn.Endpoint.
func (e *udpEndpoint) ClearSrc() { e.forgotten.Store(true) }

// SrcIP implements conn.Endpoint.
func (e *udpEndpoint) SrcIP() netip.Addr {
	if e.forgotten.Load() {
		return netip.Addr{}
	}
	return e.src
}

// SrcIfidx returns the interface on which a packet arrived; 0 means unknown.
func (e *udpEndpoint) SrcIfidx() int32 { return e.ifindex }

// Port returns the peer's port.
func (e *udpEndpoint) Port() uint16 { return e.dst.Port() }

// SrcToString implements conn.Endpoint.
func (e *udpEndpoint) SrcToString() string { return e.SrcIP().String() }

// DstIP implements conn.Endpoint.
func (e *udpEndpoint) DstIP() netip.Addr { return e.dst.Addr() }

// DstToString implements conn.Endpoint.
func (e *udpEndpoint) DstToString() string { return e.dst.String() }

// DstToBytes implements conn.Endpoint.
func (e *udpEndpoint) DstToBytes() []byte {
	b, _ := e.dst.MarshalBinary() // never fails
	return b
}

// receiving makes one recvmsg call at a time, for one goroutine.
type receiving struct {
	s       *socket
	hdr     unix.Msghdr
	iov     unix.Iovec
	from    origin
	control [infoWords + splitWords + 4]uint64
	n       int
	errno   syscall.Errno
	call    func(fd uintptr)

	last     *udpEndpoint
	lastFrom origin
	all      map[origin]*udpEndpoint
}

// origin is the source and destination of a received packet.
type origin struct {
	name    [unix.SizeofSockaddrInet6]byte
	local   [16]byte
	ifindex int32
}

func newReceiving(s *socket) *receiving {
	c := &receiving{s: s}
	c.call = c.try
	return c
}

func (c *receiving) try(fd uintptr) {
	for {
		c.hdr.Name, c.hdr.Namelen = &c.from.name[0], uint32(len(c.from.name))
		c.hdr.Iov = &c.iov
		c.hdr.SetIovlen(1)
		c.hdr.Control = (*byte)(unsafe.Pointer(&c.control[0]))
		c.hdr.SetControllen(len(c.control) * 8)
		n, _, errno := syscall.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&c.hdr)), unix.MSG_DONTWAIT)
		if c.n, c.errno = int(n), errno; errno != unix.EINTR {
			return
		}
	}
}

// run implements RunFunc.
func (c *receiving) run(buf []byte) (n, size int, from conn.Endpoint, err error) {
	c.iov.Base = &buf[0]
	c.iov.SetLen(len(buf))
	for {
		if err := c.s.file.Do(c.call); err != nil {
			return 0, 0, nil, closed(err)
		}
		switch c.errno {
		case 0:
		case unix.EAGAIN:
			if err := c.s.file.WaitRead(); err != nil {
				return 0, 0, nil, closed(err)
			}
			continue
		case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EMSGSIZE:
			continue // about something that was sent
		default:
			return 0, 0, nil, os.NewSyscallError("recvmsg", c.errno)
		}
		if c.n == 0 || c.hdr.Flags&unix.MSG_TRUNC != 0 {
			continue
		}
		size = c.readControl()
		e, err := c.endpoint()
		if err != nil {
			return 0, 0, nil, err
		}
		return c.n, size, e, nil
	}
}

// readControl reads what the kernel reports about a packet: the size of the messages it joined, and the destination.
func (c *receiving) readControl() (size int) {
	size = c.n
	c.from.local, c.from.ifindex = [16]byte{}, 0
	rest := unsafe.Slice((*byte)(unsafe.Pointer(&c.control[0])), c.hdr.Controllen)
	for len(rest) > unix.SizeofCmsghdr {
		h, data, more, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			break
		}
		rest = more
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			if n := int(int32(binary.NativeEndian.Uint32(data))); n > 0 {
				size = n
			}
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			c.from.ifindex = int32(binary.NativeEndian.Uint32(data))
			copy(c.from.local[:], data[4:8]) // the address to answer from, which for a broadcast is not its destination
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			copy(c.from.local[:], data[:16])
			c.from.ifindex = int32(binary.NativeEndian.Uint32(data[16:]))
		}
	}
	return size
}

// endpoint returns the endpoint of an origin, so that none needs to be allocated per packet.
func (c *receiving) endpoint() (*udpEndpoint, error) {
	clear(c.from.name[c.hdr.Namelen:])
	if !c.s.is6 {
		clear(c.from.name[8:]) // padding
	} else {
		clear(c.from.name[4:8]) // flow label
	}
	if e := c.last; e != nil && c.from == c.lastFrom && !e.forgotten.Load() {
		return e, nil
	}
	e := c.all[c.from]
	if e == nil || e.forgotten.Load() {
		if c.all == nil || len(c.all) >= maxInterned {
			c.all = map[origin]*udpEndpoint{}
		}
		var err error
		if e, err = newUDPEndpoint(c.from.addrPort(c.s.is6)); err != nil {
			return nil, err
		}
		e.remember(&c.from, c.s.is6)
		c.all[c.from] = e
	}
	c.last, c.lastFrom = e, c.from
	return e, nil
}

// addrPort parses a socket address.
func (o *origin) addrPort(is6 bool) netip.AddrPort {
	port := binary.BigEndian.Uint16(o.name[2:])
	if !is6 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(o.name[4:8])), port)
	}
	a := netip.AddrFrom16([16]byte(o.name[8:24]))
	if scope := binary.NativeEndian.Uint32(o.name[24:]); scope != 0 && a.IsLinkLocalUnicast() {
		a = a.WithZone(strconv.Itoa(int(scope)))
	}
	return netip.AddrPortFrom(a, port)
}

// remember makes packets sent to e leave from the address and interface that a packet from there came to.
func (e *udpEndpoint) remember(o *origin, is6 bool) {
	e.ifindex = o.ifindex
	h := (*unix.Cmsghdr)(unsafe.Pointer(&e.info[0]))
	data := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(h), unix.CmsgLen(0))), len(e.info)*8-unix.CmsgLen(0))
	if is6 {
		e.src = netip.AddrFrom16(o.local)
		h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
		h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
		copy(data, o.local[:])
		binary.NativeEndian.PutUint32(data[16:], uint32(o.ifindex))
		e.infoWords = unix.CmsgSpace(unix.SizeofInet6Pktinfo) / 8
		return
	}
	e.src = netip.AddrFrom4([4]byte(o.local[:4]))
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	binary.NativeEndian.PutUint32(data, uint32(o.ifindex))
	copy(data[4:], o.local[:4])
	e.infoWords = unix.CmsgSpace(unix.SizeofInet4Pktinfo) / 8
}
