package tun

import (
	"encoding/binary"
	"fmt"

	"github.com/redoubt-mesh/redoubt/acl/packet"
)

// Fitting is how a packet was made fit a way.
type Fitting uint8

// The ways to make it fit.
const (
	// FitsNot says that it does not: whoever sent it has to send less, and Next gives it as it is.
	FitsNot Fitting = iota
	// FitsCut says that TCP is in shorter segments now. The sender should hear of it, since some are very short.
	FitsCut
	// FitsFragments says that it is in fragments, as IPv4 permits where the sender does not forbid it.
	FitsFragments
)

// Largest is how long the longest of the packets is.
func (s *Super) Largest() int {
	if s.size == 0 {
		return len(s.pkt)
	}
	return min(s.header+s.size, len(s.pkt))
}

// Fit has Next give packets of at most mtu bytes, where that is possible. It comes before Next, and mtu is 1280 at least.
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
	dontFragment = 0x40 // of the first byte of flags and offset
	moreComes    = 0x2000
	offsetMask   = 0x1fff
)

// fragment has Next give fragments of an IPv4 packet that may be cut. Which options go into all of them is not looked at.
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

// nextFragment is Next for fragments; of the packet, s.id holds flags and offset.
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

// TooBig tells the host that a packet of it is larger than mtu, the most that gets through.
func TooBig(d Device, pkt []byte, mtu int) error {
	buf := packet.AppendTooBig(make([]byte, headroom, headroom+packet.ReplyLimit), pkt, mtu)
	if len(buf) == headroom {
		return nil // it is none that is answered
	}
	if _, err := Unwrap(d).Write([][]byte{buf}, headroom); err != nil {
		return fmt.Errorf("tell the host of an MTU: %w", err)
	}
	return nil
}
