package tun

import (
	"encoding/binary"
	"fmt"

	"github.com/redoubt-mesh/redoubt/acl/packet"
)

// Fitting describes how a packet was made to fit a path's MTU.
type Fitting uint8

// The ways to make a packet fit.
const (
	// FitsNot means that it cannot be made to fit: the sender must send less. Next returns the packet unchanged.
	FitsNot Fitting = iota
	// FitsCut means that a TCP packet was cut into shorter segments. The sender should be told, since some of them are very
	// short.
	FitsCut
	// FitsFragments means that a packet was fragmented, as IPv4 allows unless the sender forbids it.
	FitsFragments
)

// Largest returns the length of the longest of the packets.
func (s *Super) Largest() int {
	if s.size == 0 {
		return len(s.pkt)
	}
	return min(s.header+s.size, len(s.pkt))
}

// Fit makes Next return packets of at most mtu bytes, where possible. It must be called before Next, and mtu must be at least
// 1280.
func (s *Super) Fit(mtu int) Fitting {
	if s.size == 0 {
		if x := shapeOf(s.pkt); x.protocol == protocolTCP && x.header <= maxHeaders {
			s.protocol, s.transport, s.header, s.sumAt, s.at = protocolTCP, x.transport, x.header, x.transport+tcpSumAt, x.header
			s.size = mtu - x.header
			s.keepHeaders()
			return FitsCut
		}
		return s.fragment(mtu)
	}
	if s.protocol != protocolTCP {
		return FitsNot
	}
	s.size = min(s.size, mtu-s.header)
	return FitsCut
}

const (
	dontFragment = 0x40 // in the first byte of flags and offset
	moreComes    = 0x2000
	offsetMask   = 0x1fff
)

// fragment makes Next return fragments of an IPv4 packet that may be fragmented. Packets with options are left alone: it does
// not know which options go into every fragment.
func (s *Super) fragment(mtu int) Fitting {
	p := s.pkt
	if len(p) <= mtu || p[0] != 0x45 || p[6]&dontFragment != 0 || int(binary.BigEndian.Uint16(p[2:])) != len(p) {
		return FitsNot
	}
	const header = 20
	size := (mtu - header) &^ 7
	h := s.headers[:copy(s.headers[:header], p)]
	clear(h[2:4])
	clear(h[6:8])
	clear(h[10:12])
	s.fixed, s.id = addUp(0, h), binary.BigEndian.Uint16(p[6:])
	s.cut, s.size, s.header, s.at = true, size, header, header
	return FitsFragments
}

// nextFragment is Next for fragments; s.id holds the packet's own flags and offset.
func (s *Super) nextFragment() []byte {
	from, to := s.at, min(s.at+s.size, len(s.pkt))
	q := s.pkt[from-s.header : to]
	copy(q, s.headers[:s.header])
	place := s.id&moreComes | (s.id+uint16((from-s.header)/8))&offsetMask
	if to < len(s.pkt) {
		place |= moreComes
	}
	binary.BigEndian.PutUint16(q[2:], uint16(len(q)))
	binary.BigEndian.PutUint16(q[6:], place)
	putSum(q[10:], ^fold(s.fixed+uint64(binary.LittleEndian.Uint16(q[2:]))+uint64(binary.LittleEndian.Uint16(q[6:]))))
	s.at = to
	return q
}

// TooBig tells the host that one of its packets exceeds mtu, the largest size that gets through.
func TooBig(d Device, pkt []byte, mtu int) error {
	buf := packet.AppendTooBig(make([]byte, headroom, headroom+packet.ReplyLimit), pkt, mtu)
	if len(buf) == headroom {
		return nil // a packet that gets no such reply
	}
	if _, err := Unwrap(d).Write([][]byte{buf}, headroom); err != nil {
		return fmt.Errorf("tell the host of an MTU: %w", err)
	}
	return nil
}
