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

// socket is one UDP socket. Its calls are made raw and never block: a goroutine that a call does not take off its thread
// costs a third less.
type socket struct {
	file     *poll.File
	is6      bool
	port     uint16
	segments atomic.Bool // the kernel splits what is sent
	calls    sync.Pool   // of *sending
}

const (
	infoWords  = 5 // a control message with the longer of the two kinds of packet information, in words of 8 bytes
	splitWords = 3 // one with a segment size
)

// sending is one call of sendmsg at a time. It is made once, since what a call points to must not be on a stack.
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

// closed says of a socket that was closed what others say of theirs.
func closed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

// gather takes as many messages as can go by one call, and says how many.
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

// send sends what the vectors hold, in messages of size bytes.
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

// sendSingly sends what could not be sent together. Where the network device cannot write checksums (EIO), that will not
// be tried again; else the messages are larger than this way's MTU, and the system fragments them.
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

// splitControl writes a control message that has the kernel split what is sent, and says how many words that took.
func splitControl(b []uint64, size int) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Add(unsafe.Pointer(h), unix.CmsgLen(0))) = uint16(size)
	return unix.CmsgSpace(2) / 8
}

// udpEndpoint is an address to send to, as the kernel wants it, and what it said of a packet that came from there: to which
// of our addresses, by which interface.
type udpEndpoint struct {
	dst       netip.AddrPort
	name      [unix.SizeofSockaddrInet6]byte
	nameLen   uint32
	src       netip.Addr
	ifindex   int32
	info      [infoWords]uint64 // a control message that has the answer leave from there
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

// scopeOf is the number of the interface that an IPv6 zone names.
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

// SrcIfidx is by which interface a packet came; 0 is unknown.
func (e *udpEndpoint) SrcIfidx() int32 { return e.ifindex }

// Port is the peer's.
func (e *udpEndpoint) Port() uint16 { return e.dst.Port() }

// SrcToString implements conn.Endpoint.
func (e *udpEndpoint) SrcToString() string { return e.SrcIP().String() }

// DstIP implements conn.Endpoint.
func (e *udpEndpoint) DstIP() netip.Addr { return e.dst.Addr() }

// DstToString implements conn.Endpoint.
func (e *udpEndpoint) DstToString() string { return e.dst.String() }

// DstToBytes implements conn.Endpoint.
func (e *udpEndpoint) DstToBytes() []byte {
	b, _ := e.dst.MarshalBinary() // has no errors
	return b
}

// receiving is one call of recvmsg at a time, of one goroutine.
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

// origin is where a packet came from and to.
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

// readControl reads what the kernel says of a packet: how long the messages are that it joined, and where it came to.
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
			copy(c.from.local[:], data[4:8]) // the address to answer from, which is not the one of a broadcast
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			copy(c.from.local[:], data[:16])
			c.from.ifindex = int32(binary.NativeEndian.Uint32(data[16:]))
		}
	}
	return size
}

// endpoint has one endpoint for each origin, so that none need be made for each packet.
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

// addrPort reads a socket address.
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

// remember has what is sent to e leave from where a packet from there came to.
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
