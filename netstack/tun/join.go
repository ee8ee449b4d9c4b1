package tun

import (
	"bytes"
	"encoding/binary"
)

// joiner joins consecutive packets of a flow into super-packets without copying: each part is written from where it lies, and
// the first carries the headers for all.
type joiner struct {
	write func(parts [][]byte) // virtio header and packet, in one or more parts
	udp   bool                 // the host accepts joined UDP

	parts     [maxParts][]byte
	n         int
	shape     shape
	room      []byte // the virtio header and the first packet
	payload   int    // total length
	next      uint32
	checked   bool // the first packet's checksum is right
	closed    bool // nothing more can be joined
	lastFlags byte
}

// shape is what the joiner needs to know about a packet; protocol 0 means that it cannot be joined.
type shape struct {
	protocol  byte
	transport int // offset of the transport header
	header    int // length of all headers
	size      int // of the payload
}

const (
	maxParts    = 128
	maxUDPParts = 64 // as many as Linux can split
	flagACK     = 0x10
)

// add adds the packet buf[offset:]. The ten bytes before it are overwritten.
func (j *joiner) add(buf []byte, offset int) {
	p := buf[offset:]
	if len(p) == 0 {
		return
	}
	s := shapeOf(p)
	if s.protocol == protocolUDP && !j.udp {
		s.protocol = 0
	}
	if j.n > 0 && s.protocol != 0 && j.follows(p, &s) {
		j.parts[j.n] = p[s.header:]
		j.n++
		j.payload += s.size
		j.next += uint32(s.size)
		j.closed = s.size < j.shape.size
		j.flagged(p, &s)
		return
	}
	j.flush()
	j.room, j.shape, j.payload = buf[offset-virtioSize:], s, s.size
	j.parts[0], j.n = j.room, 1
	j.checked, j.closed, j.lastFlags = false, s.protocol == 0, 0
	if s.protocol == protocolTCP {
		j.next = binary.BigEndian.Uint32(p[s.transport+4:]) + uint32(s.size)
		j.flagged(p, &s)
	}
}

// flagged closes a run after a segment with PSH, which the receiver must not have to wait for.
func (j *joiner) flagged(p []byte, s *shape) {
	if s.protocol == protocolTCP && p[s.transport+13]&flagPSH != 0 {
		j.closed, j.lastFlags = true, flagPSH
	}
}

// shapeOf returns the shape of a packet. These can be joined: TCP with payload and no flags but ACK and PSH, or UDP with payload
// and checksum, in an unfragmented IPv4 packet without options or in IPv6 without extension headers.
func shapeOf(p []byte) (s shape) {
	switch {
	case len(p) > 28 && p[0] == 0x45:
		if p[6]&^0x40|p[7] != 0 || int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			return s
		}
		s.protocol, s.transport = p[9], 20
	case len(p) > 48 && p[0]>>4 == 6:
		if int(binary.BigEndian.Uint16(p[4:]))+40 != len(p) {
			return s
		}
		s.protocol, s.transport = p[6], 40
	}
	t := p[s.transport:]
	switch s.protocol {
	case protocolTCP:
		if len(t) < 20 || t[12]&0xf != 0 || t[12]>>4 < 5 || t[13]&^flagPSH != flagACK {
			return shape{}
		}
		s.header = s.transport + int(t[12]>>4)*4
	case protocolUDP:
		if int(binary.BigEndian.Uint16(t[4:])) != len(t) || t[6]|t[7] == 0 {
			return shape{}
		}
		s.header = s.transport + 8
	default:
		return shape{}
	}
	if s.size = len(p) - s.header; s.size <= 0 {
		return shape{}
	}
	return s
}

// follows reports whether a packet can be joined to those before it.
func (j *joiner) follows(p []byte, s *shape) bool {
	q := j.room[virtioSize:]
	if j.closed || s.protocol != j.shape.protocol || s.header != j.shape.header || s.transport != j.shape.transport ||
		s.size > j.shape.size || j.n == maxParts || j.payload+s.size+s.header > maxPacket || p[0] != q[0] ||
		s.protocol == protocolUDP && j.n == maxUDPParts {
		return false
	}
	// Compare the IP header except length, ID and checksum, and then the ports. IDs are reassigned consecutively; so they must
	// already be consecutive, unless the packet must not be fragmented.
	if p[0]>>4 == 4 {
		if p[1] != q[1] || p[6] != q[6] || p[8] != q[8] || !bytes.Equal(p[12:24], q[12:24]) ||
			p[6] == 0 && binary.BigEndian.Uint16(p[4:]) != binary.BigEndian.Uint16(q[4:])+uint16(j.n) {
			return false
		}
	} else if !bytes.Equal(p[1:4], q[1:4]) || !bytes.Equal(p[7:44], q[7:44]) {
		return false
	}
	if s.protocol == protocolTCP {
		// Compare sequence and acknowledgement numbers, window, urgent pointer and options; the flags were checked before.
		t, u := p[s.transport:s.header], q[s.transport:s.header]
		if binary.BigEndian.Uint32(t[4:]) != j.next || !bytes.Equal(t[8:12], u[8:12]) || !bytes.Equal(t[14:16], u[14:16]) ||
			!bytes.Equal(t[18:], u[18:]) {
			return false
		}
	}
	// The host does not verify joined packets. A packet with a bad checksum is passed on alone, as it is.
	if !j.checked {
		if !intact(q, &j.shape) {
			j.closed = true
			return false
		}
		j.checked = true
	}
	return intact(p, s)
}

// intact reports whether a packet's checksums are right.
func intact(p []byte, s *shape) bool {
	if p[0]>>4 == 4 && fold(addUp(0, p[:20])) != 0xffff {
		return false
	}
	t := p[s.transport:]
	return fold(addUp(pseudo(p, s.protocol, len(t)), t)) == 0xffff
}

// flush writes what has been joined.
func (j *joiner) flush() {
	if j.n == 0 {
		return
	}
	v, p := j.room[:virtioSize], j.room[virtioSize:]
	clear(v)
	if j.n > 1 {
		j.finish(v, p)
	}
	j.write(j.parts[:j.n])
	clear(j.parts[:j.n])
	j.n, j.room = 0, nil
}

// finish writes the headers of a super-packet.
func (j *joiner) finish(v, p []byte) {
	s := &j.shape
	v[0] = needsChecksum
	binary.NativeEndian.PutUint16(v[2:], uint16(s.header))
	binary.NativeEndian.PutUint16(v[4:], uint16(s.size))
	binary.NativeEndian.PutUint16(v[6:], uint16(s.transport))
	total := s.header + j.payload
	t := p[s.transport:]
	if p[0]>>4 == 4 {
		v[1] = kindTCP4
		binary.BigEndian.PutUint16(p[2:], uint16(total))
		clear(p[10:12])
		putSum(p[10:], ^fold(addUp(0, p[:20])))
	} else {
		v[1] = kindTCP6
		binary.BigEndian.PutUint16(p[4:], uint16(total-40))
	}
	length := total - s.transport
	sumAt := tcpSumAt
	if s.protocol == protocolUDP {
		v[1], sumAt = kindUDP, udpSumAt
		binary.BigEndian.PutUint16(t[4:], uint16(length))
	} else {
		t[13] |= j.lastFlags
	}
	binary.NativeEndian.PutUint16(v[8:], uint16(sumAt))
	putSum(t[sumAt:], fold(pseudo(p, s.protocol, length)))
}

// flowOf returns a hash that is the same for all packets of a flow that come from its far end.
func flowOf(p []byte) (h uint32) {
	from, to, protocol := 0, 0, byte(0)
	switch {
	case len(p) >= 24 && p[0]>>4 == 4:
		from, to, protocol = 12, 20, p[9]
		if p[0] != 0x45 || p[6]&0x3f|p[7] != 0 {
			protocol = 0
		}
	case len(p) >= 44 && p[0]>>4 == 6:
		from, to, protocol = 8, 40, p[6]
	}
	if protocol == protocolTCP || protocol == protocolUDP {
		to += 4 // ports
	}
	for ; from < to; from += 4 {
		h = (h ^ binary.LittleEndian.Uint32(p[from:])) * 0x9e3779b1
	}
	return h ^ h>>15
}
