package packet

import (
	"encoding/binary"
	"slices"
)

const (
	hopLimit        = 64
	headerLength4   = 20
	headerLength6   = 40
	tcpHeaderLength = 20
	// How much an ICMP error may quote, so that no error is longer than 576 bytes (RFC 1812) or 1280 (RFC 4443).
	quoteLimit4 = 576 - headerLength4 - icmpHeaderLength
	quoteLimit6 = 1280 - headerLength6 - icmpHeaderLength
)

// ReplyLimit is the length of the longest packet that this package builds.
const ReplyLimit = 1280

// Segment is a TCP segment without payload.
type Segment struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
	Seq, Ack         uint32
	Flags            uint8
}

// AppendSegment appends s as an IP packet to b.
func AppendSegment(b []byte, s Segment) []byte {
	start := len(b)
	b, at := appendHeader(b, s.Src, s.Dst, protoTCP, tcpHeaderLength)
	t := b[at:]
	binary.BigEndian.PutUint16(t, s.SrcPort)
	binary.BigEndian.PutUint16(t[2:], s.DstPort)
	binary.BigEndian.PutUint32(t[4:], s.Seq)
	binary.BigEndian.PutUint32(t[8:], s.Ack)
	t[12] = tcpHeaderLength / 4 << 4
	t[13] = s.Flags
	sealTransport(b[start:], at-start, 16)
	return b
}

// AppendRefusal appends the packet that reports to the sender of p, whose bytes are from, that p will not be delivered, as if
// its destination had sent it: a TCP reset that closes exactly the connection that the segment belongs to (RFC 9293,
// 3.10.7.1), or ICMP "administratively prohibited". It appends nothing in reply to what must not be answered: resets, ICMP
// errors, later fragments, and multicast packets.
func AppendRefusal(b, from []byte, p *Packet) []byte {
	switch {
	case p.Later() || p.Dst.IsGroup() || p.Src.IsGroup() || p.isICMPReport():
		return b
	case p.Proto != protoTCP:
		return AppendProhibited(b, p.Dst, p.Src, from[:p.Length])
	case p.Flags&RST != 0:
		return b
	}
	s := Segment{Src: p.Dst, Dst: p.Src, SrcPort: p.DstPort, DstPort: p.SrcPort, Flags: RST}
	if p.Flags&ACK != 0 {
		s.Seq = p.Ack
	} else {
		s.Ack, s.Flags = p.Seq+p.SegmentLength(), RST|ACK
	}
	return AppendSegment(b, s)
}

// AppendProhibited appends an ICMP error from src to dst that quotes as much of quote as allowed.
func AppendProhibited(b []byte, src, dst Addr, quote []byte) []byte {
	if src.Is4() {
		return appendError(b, src, dst, icmpUnreachable, icmpProhibited, 0, quote)
	}
	return appendError(b, src, dst, icmp6Unreachable, icmp6Prohibited, 0, quote)
}

// AppendTooBig appends the ICMP error that reports to the sender of an IP packet that it is longer than mtu, the path MTU to
// its destination, as if the destination had sent it. It appends nothing in reply to what must not be answered: ICMP errors,
// later fragments, and multicast packets.
func AppendTooBig(b, from []byte, mtu int) []byte {
	var p Packet
	if fault := Parse(from, &p); fault != OK || p.Later() || p.Dst.IsGroup() || p.Src.IsGroup() || (p.isICMPReport() && !p.IsEchoReply()) {
		return b
	}
	if p.Src.Is4() {
		return appendError(b, p.Dst, p.Src, icmpUnreachable, icmpTooBig, uint32(mtu), from[:p.Length])
	}
	return appendError(b, p.Dst, p.Src, icmp6TooBig, 0, uint32(mtu), from[:p.Length])
}

// appendError appends an ICMP error; word is the four bytes after its checksum.
func appendError(b []byte, src, dst Addr, kind, code uint8, word uint32, quote []byte) []byte {
	start := len(b)
	proto, limit := uint8(protoICMPv6), quoteLimit6
	if src.Is4() {
		proto, limit = protoICMP, quoteLimit4
	}
	quote = quote[:min(len(quote), limit)]
	b, at := appendHeader(b, src, dst, proto, icmpHeaderLength+len(quote))
	t := b[at:]
	t[0], t[1] = kind, code
	binary.BigEndian.PutUint32(t[4:], word)
	copy(t[icmpHeaderLength:], quote)
	sealTransport(b[start:], at-start, 2)
	return b
}

// AppendQuote appends the start of a packet as an ICMP error would quote it, made from the flow's addresses alone: an IP
// header and the first eight bytes of the transport, which for ICMP are those of an echo request with the identifier srcPort.
func AppendQuote(b []byte, src, dst Addr, proto uint8, srcPort, dstPort uint16) []byte {
	b, at := appendHeader(b, src, dst, proto, 8)
	t := b[at:]
	switch proto {
	case protoICMP:
		t[0] = icmpEchoRequest
		binary.BigEndian.PutUint16(t[4:], srcPort)
	case protoICMPv6:
		t[0] = icmp6EchoRequest
		binary.BigEndian.PutUint16(t[4:], srcPort)
	default:
		binary.BigEndian.PutUint16(t, srcPort)
		binary.BigEndian.PutUint16(t[2:], dstPort)
	}
	if proto == protoUDP {
		binary.BigEndian.PutUint16(t[4:], 8)
	}
	return b
}

// appendHeader appends an IP header for n bytes of transport, and n zero bytes; at is where these begin.
func appendHeader(b []byte, src, dst Addr, proto uint8, n int) (_ []byte, at int) {
	start := len(b)
	if src.Is4() {
		b = appendZeros(b, headerLength4+n)
		h := b[start:]
		h[0] = 4<<4 | headerLength4/4
		binary.BigEndian.PutUint16(h[2:], uint16(headerLength4+n))
		h[6] = 0x40 // don't fragment
		h[8], h[9] = hopLimit, proto
		binary.BigEndian.PutUint32(h[12:], uint32(src.Lo))
		binary.BigEndian.PutUint32(h[16:], uint32(dst.Lo))
		binary.BigEndian.PutUint16(h[10:], ^fold(sum(0, h[:headerLength4])))
		return b, start + headerLength4
	}
	b = appendZeros(b, headerLength6+n)
	h := b[start:]
	h[0] = 6 << 4
	binary.BigEndian.PutUint16(h[4:], uint16(n))
	h[6], h[7] = proto, hopLimit
	src.put16(h[8:])
	dst.put16(h[24:])
	return b, start + headerLength6
}

func appendZeros(b []byte, n int) []byte {
	start := len(b)
	b = slices.Grow(b, n)[:start+n]
	clear(b[start:])
	return b
}

// sealTransport writes the transport checksum of the packet p begun by appendHeader, offset bytes into the header at at.
func sealTransport(p []byte, at, offset int) {
	var s uint64
	proto := p[9]
	if at == headerLength4 {
		s = sum(0, p[12:20])
	} else {
		s = sum(0, p[8:40])
		proto = p[6]
	}
	if proto != protoICMP { // its checksum does not cover the addresses
		s += uint64(proto) + uint64(len(p)-at)
	} else {
		s = 0
	}
	binary.BigEndian.PutUint16(p[at+offset:], ^fold(sum(s, p[at:])))
}

// MendChecksum replaces a UDP checksum that was computed as zero by all ones, as RFC 8200, section 8.1 requires: over IPv6 a
// packet with a zero checksum is dropped. A checksum that was omitted on purpose (RFC 6935), which is evident from the packet
// not summing up to zero, stays omitted.
func MendChecksum(b []byte) {
	const at = headerLength6 + 6
	if len(b) < headerLength6+8 || b[0]>>4 != 6 || b[6] == protoTCP || b[6] == protoICMPv6 ||
		b[6] == protoUDP && b[at]|b[at+1] != 0 {
		return
	}
	var p Packet
	if Parse(b, &p) != OK || p.Proto != protoUDP || p.Fragment {
		return
	}
	t := b[p.Header:p.Length]
	if t[6]|t[7] != 0 {
		return
	}
	if s := sum(0, b[8:headerLength6]) + uint64(protoUDP) + uint64(len(t)); fold(sum(s, t)) == 0xffff {
		t[6], t[7] = 0xff, 0xff
	}
}

// sum adds b to the ones' complement sum s, without folding it.
func sum(s uint64, b []byte) uint64 {
	for ; len(b) >= 4; b = b[4:] {
		s += uint64(binary.BigEndian.Uint32(b))
	}
	if len(b) >= 2 {
		s += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	return s
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
