package tun

import (
	"encoding/binary"
	"errors"
)

// SuperReader gives packets of the host as the host joined them. One goroutine reads.
type SuperReader interface {
	// ReadSuper fills s. With wait it blocks until there is something; else it says if there was.
	ReadSuper(s *Super, wait bool) (bool, error)
}

// Supers are the queues of a device, each with flows of its own in their order; none where the device has no super-packets.
func Supers(d Device) []SuperReader {
	if q, ok := d.(interface{ Supers() []SuperReader }); ok {
		return q.Supers()
	}
	return nil
}

// ErrMalformed says that the host gave what is no packet, or described it wrongly. The next one may be good.
var ErrMalformed = errors.New("malformed packet of the host")

// Super is a packet of the host, or a super-packet: several of one flow that have their headers in common, which the host
// left to the device to split. It is split in place. What Next gives is good until Next is called again.
//
//	room   │ virtio │ headers │ payload 1 │ payload 2 │ payload 3 │
//	Next 1          │ headers │ payload 1 │
//	Next 2                    │   headers │ payload 2 │               the headers lie over what was sent already
type Super struct {
	room []byte
	pkt  []byte

	size      int  // of a payload; 0: this is one packet
	cut       bool // they are fragments
	transport int  // where the transport header begins
	header    int  // how long all headers are
	sumAt     int  // where the transport's checksum is
	protocol  byte

	at       int // where the next payload begins
	headers  [maxHeaders]byte
	fixed    uint64 // sum of the IP header without what differs
	id       uint16
	sequence uint32
	flags    byte
}

const (
	virtioSize = 10
	maxPacket  = 1<<16 - 1
	maxHeaders = 160
	// tailRoom is behind each packet: whoever pads in place may write there, and has to put back what was there before.
	tailRoom = 64

	protocolTCP = 6
	protocolUDP = 17
)

// The fields of a virtio header as Linux and we use them: flags, kind, length of the headers (which is not to be relied
// on), size of a payload, where the checksum begins, and where in that it is written. All are in the host's byte order.
const (
	needsChecksum = 1
	kindMask      = 0x7f // the rest says that there is congestion
	kindNone      = 0
	kindTCP4      = 1
	kindTCP6      = 4
	kindUDP       = 5
)

// NewSuper makes room for any packet.
func NewSuper() *Super { return &Super{room: make([]byte, virtioSize+maxPacket+tailRoom)} }

// Set makes s a single packet.
func (s *Super) Set(pkt []byte) {
	n := copy(s.room[virtioSize:virtioSize+maxPacket], pkt)
	s.pkt, s.size, s.cut, s.at = s.room[virtioSize:virtioSize+n], 0, false, 0
}

// Packet is all of it, in one packet as long as its header says. After Next it is no use any more.
func (s *Super) Packet() []byte { return s.pkt }

// Count is how many packets it is.
func (s *Super) Count() int {
	if s.size == 0 {
		return 1
	}
	return (len(s.pkt) - s.header + s.size - 1) / s.size
}

// take reads a virtio header and a packet, of n bytes together, from where room begins.
func (s *Super) take(n int) error {
	if n < virtioSize+20 {
		return ErrMalformed
	}
	v := s.room[:virtioSize]
	s.pkt, s.size, s.cut, s.at = s.room[virtioSize:n], 0, false, 0
	size, sumFrom := int(binary.NativeEndian.Uint16(v[4:])), int(binary.NativeEndian.Uint16(v[6:]))
	sumAt := sumFrom + int(binary.NativeEndian.Uint16(v[8:]))
	needs := v[0]&needsChecksum != 0
	if needs && (sumFrom < 20 || sumAt+2 > len(s.pkt)) {
		return ErrMalformed
	}
	switch kind := v[1] & kindMask; {
	case kind != kindNone:
		if !needs {
			return ErrMalformed
		}
		return s.takeJoined(kind, size, sumFrom, sumAt)
	case needs:
		writeSum(s.pkt[sumAt:], addUp(0, s.pkt[sumFrom:]), sumAt-sumFrom == udpSumAt)
	}
	return nil
}

const (
	tcpSumAt = 16
	udpSumAt = 6
)

// writeSum writes a checksum; UDP has no zero.
func writeSum(b []byte, s uint64, udp bool) {
	c := ^fold(s)
	if udp && c == 0 {
		c = 0xffff
	}
	putSum(b, c)
}

// takeJoined reads a super-packet.
func (s *Super) takeJoined(kind byte, size, transport, sumAt int) error {
	p := s.pkt
	s.protocol = protocolTCP
	if kind == kindUDP {
		s.protocol = protocolUDP
	}
	switch version := p[0] >> 4; {
	case size == 0:
		return ErrMalformed
	case version == 4 && (kind == kindTCP4 || kind == kindUDP):
		if int(p[0]&0xf)*4 != transport || p[9] != s.protocol || p[6]&0x3f|p[7] != 0 ||
			int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			return ErrMalformed
		}
	case version == 6 && (kind == kindTCP6 || kind == kindUDP):
		if transport < 40 || len(p) < 40 || int(binary.BigEndian.Uint16(p[4:]))+40 != len(p) ||
			transport == 40 && p[6] != s.protocol {
			return ErrMalformed
		}
	default:
		return ErrMalformed
	}
	header := transport + 8
	if kind != kindUDP {
		if len(p) < transport+20 || sumAt != transport+tcpSumAt || p[transport+12]>>4 < 5 {
			return ErrMalformed
		}
		header = transport + int(p[transport+12]>>4)*4
	} else if sumAt != transport+udpSumAt {
		return ErrMalformed
	}
	if header >= len(p) || header > maxHeaders {
		return ErrMalformed
	}
	s.size, s.transport, s.header, s.sumAt, s.at = size, transport, header, sumAt, header
	s.keepHeaders()
	return nil
}

// keepHeaders keeps the headers, without what is written anew for each packet.
func (s *Super) keepHeaders() {
	h := s.headers[:copy(s.headers[:s.header], s.pkt)]
	if h[0]>>4 == 4 {
		s.id = binary.BigEndian.Uint16(h[4:])
		clear(h[2:6])
		clear(h[10:12])
		s.fixed = addUp(0, h[:s.transport])
	}
	clear(h[s.sumAt : s.sumAt+2])
	if s.protocol == protocolTCP {
		s.sequence, s.flags = binary.BigEndian.Uint32(h[s.transport+4:]), h[s.transport+13]
	}
}

// TCP flags that not every segment of a super-packet has: the last ones', and the first one's.
const (
	flagFIN = 0x01
	flagPSH = 0x08
	flagCWR = 0x80
)

// Next gives the next packet, nil at the end. Behind it is room for padding, which has to be left as it was.
func (s *Super) Next() []byte {
	if s.at >= len(s.pkt) {
		return nil
	}
	if s.size == 0 {
		s.at = len(s.pkt)
		return s.pkt
	}
	if s.cut {
		return s.nextFragment()
	}
	from, to := s.at, min(s.at+s.size, len(s.pkt))
	q := s.pkt[from-s.header : to]
	copy(q, s.headers[:s.header])
	if q[0]>>4 == 4 {
		binary.BigEndian.PutUint16(q[2:], uint16(len(q)))
		binary.BigEndian.PutUint16(q[4:], s.id)
		s.id++
		sum := s.fixed + uint64(binary.LittleEndian.Uint16(q[2:])) + uint64(binary.LittleEndian.Uint16(q[4:]))
		putSum(q[10:], ^fold(sum))
	} else {
		binary.BigEndian.PutUint16(q[4:], uint16(len(q)-40))
	}
	t := q[s.transport:]
	if s.protocol == protocolUDP {
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
	} else {
		s.segment(t, from == s.header, to == len(s.pkt), to-from)
	}
	writeSum(q[s.sumAt:], addUp(pseudo(q, s.protocol, len(t)), t), s.protocol == protocolUDP)
	s.at = to
	return q
}

// segment writes what differs in the TCP headers.
func (s *Super) segment(t []byte, first, last bool, length int) {
	binary.BigEndian.PutUint32(t[4:], s.sequence)
	s.sequence += uint32(length)
	flags := s.flags
	if !first {
		flags &^= flagCWR
	}
	if !last {
		flags &^= flagFIN | flagPSH
	}
	t[13] = flags
}
