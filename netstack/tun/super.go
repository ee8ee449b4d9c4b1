package tun

import (
	"encoding/binary"
	"errors"
)

// SuperReader reads packets from the host, as large as the host joined them. Only one goroutine may read.
type SuperReader interface {
	// ReadSuper reads into s. If wait is set it blocks until there is a packet; otherwise it reports whether there was one.
	ReadSuper(s *Super, wait bool) (bool, error)
}

// Supers returns the queues of a device, each with its own flows in order; none if the device does not support super-packets.
func Supers(d Device) []SuperReader {
	if q, ok := d.(interface{ Supers() []SuperReader }); ok {
		return q.Supers()
	}
	return nil
}

// ErrMalformed means that the host sent an invalid packet, or described it wrongly. The next one may be valid.
var ErrMalformed = errors.New("malformed packet of the host")

// Super is a packet from the host, or a super-packet: several packets of one flow with common headers, which the host left to
// the device to split. It is split in place. A packet returned by Next is valid until the next call.
//
//	room   │ virtio │ headers │ payload 1 │ payload 2 │ payload 3 │
//	Next 1          │ headers │ payload 1 │
//	Next 2                    │   headers │ payload 2 │               the headers overwrite what was already sent
type Super struct {
	room []byte
	pkt  []byte

	size      int  // of a payload; 0 means a single packet
	cut       bool // split into IP fragments
	transport int  // offset of the transport header
	header    int  // length of all headers
	sumAt     int  // offset of the transport checksum
	protocol  byte

	at       int // offset of the next payload
	headers  [maxHeaders]byte
	fixed    uint64 // sum of the IP header without the fields that vary
	id       uint16
	sequence uint32
	flags    byte
}

const (
	virtioSize = 10
	maxPacket  = 1<<16 - 1
	maxHeaders = 160
	// tailRoom follows each packet: callers may pad in place there, and must restore the bytes afterwards.
	tailRoom = 64

	protocolTCP = 6
	protocolUDP = 17
)

// Fields of the virtio header as Linux and we use them: flags, kind, length of the headers (not to be relied on), size of a
// payload, where the checksum starts, and the offset from there at which it is stored. All are in host byte order.
const (
	needsChecksum = 1
	kindMask      = 0x7f // the remaining bit signals congestion (ECN)
	kindNone      = 0
	kindTCP4      = 1
	kindTCP6      = 4
	kindUDP       = 5
)

// NewSuper returns a Super with room for any packet.
func NewSuper() *Super { return &Super{room: make([]byte, virtioSize+maxPacket+tailRoom)} }

// Set makes s hold the single packet pkt.
func (s *Super) Set(pkt []byte) {
	n := copy(s.room[virtioSize:virtioSize+maxPacket], pkt)
	s.pkt, s.size, s.cut, s.at = s.room[virtioSize:virtioSize+n], 0, false, 0
}

// Packet returns all of it as one packet, as long as its header says. It is no longer valid after Next.
func (s *Super) Packet() []byte { return s.pkt }

// Count returns the number of packets.
func (s *Super) Count() int {
	if s.size == 0 {
		return 1
	}
	return (len(s.pkt) - s.header + s.size - 1) / s.size
}

// take parses a virtio header and a packet, n bytes in total, from the start of room.
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

// writeSum writes a checksum; UDP sends zero as 0xffff, as zero means none.
func writeSum(b []byte, s uint64, udp bool) {
	c := ^fold(s)
	if udp && c == 0 {
		c = 0xffff
	}
	putSum(b, c)
}

// takeJoined parses a super-packet.
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

// keepHeaders saves the headers, without the fields that are rewritten for each packet.
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

// TCP flags that not every segment of a super-packet carries: FIN and PSH only the last, CWR only the first.
const (
	flagFIN = 0x01
	flagPSH = 0x08
	flagCWR = 0x80
)

// Next returns the next packet, or nil at the end. It is followed by room for padding, which must be left as it was.
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

// segment writes the TCP header fields that differ between segments.
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
