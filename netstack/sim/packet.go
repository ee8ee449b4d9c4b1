package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/redoubt-mesh/redoubt/proto"
)

// TCP flags.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// The ICMP messages that a Stack understands. ICMPv6 numbers them differently.
const (
	EchoReply   = 0
	Unreachable = 3
	EchoRequest = 8

	echoReply6   = 129
	echoRequest6 = 128
	unreachable6 = 1
)

// Prohibited is the code of an ICMP Unreachable caused by a filter.
const (
	Prohibited  = 13
	prohibited6 = 1
)

const (
	headerLen4 = 20
	headerLen6 = 40
)

// Other is the type of ICMPv6 messages not listed above.
const Other = 255

// Packet is a parsed IP packet, or one to build. ICMP types and codes are those of IPv4 in either family.
type Packet struct {
	Src, Dst netip.AddrPort // port 0 if the protocol has none
	Proto    uint8          // as in the packet: ICMPv6 is proto.ProtoICMPv6

	Flags    uint8  // TCP
	Seq, Ack uint32 // TCP

	Type, Code uint8  // ICMP
	ID, Number uint16 // ICMP echo

	Payload []byte
}

// Echo returns an echo request.
func Echo(src, dst netip.Addr, id, number uint16, payload []byte) Packet {
	p := Packet{
		Src: netip.AddrPortFrom(src, 0), Dst: netip.AddrPortFrom(dst, 0), Proto: proto.ProtoICMP, Type: EchoRequest,
		ID: id, Number: number, Payload: payload,
	}
	if src.Is6() {
		p.Proto = proto.ProtoICMPv6
	}
	return p
}

// UDP returns a datagram.
func UDP(src, dst netip.AddrPort, payload []byte) Packet {
	return Packet{Src: src, Dst: dst, Proto: proto.ProtoUDP, Payload: payload}
}

// TCP returns a segment.
func TCP(src, dst netip.AddrPort, flags uint8, seq, ack uint32, payload []byte) Packet {
	return Packet{Src: src, Dst: dst, Proto: proto.ProtoTCP, Flags: flags, Seq: seq, Ack: ack, Payload: payload}
}

// Bytes returns the encoded packet, with correct checksums.
func (p Packet) Bytes() []byte {
	t := p.transport()
	src, dst := p.Src.Addr(), p.Dst.Addr()
	if src.Is4() {
		b := make([]byte, headerLen4, headerLen4+len(t))
		b[0] = 0x45
		binary.BigEndian.PutUint16(b[2:], uint16(headerLen4+len(t)))
		b[8], b[9] = 64, p.Proto
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(b[10:], checksum(0, b))
		return append(b, t...)
	}
	b := make([]byte, headerLen6, headerLen6+len(t))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(t)))
	b[6], b[7] = p.Proto, 64
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, t...)
}

// transport returns what follows the IP header.
func (p Packet) transport() []byte {
	var h []byte
	sum := -1
	switch p.Proto {
	case proto.ProtoTCP:
		h, sum = make([]byte, 20), 16
		binary.BigEndian.PutUint32(h[4:], p.Seq)
		binary.BigEndian.PutUint32(h[8:], p.Ack)
		h[12], h[13] = 5<<4, p.Flags
		binary.BigEndian.PutUint16(h[14:], 65535)
	case proto.ProtoUDP:
		h, sum = make([]byte, 8), 6
		binary.BigEndian.PutUint16(h[4:], uint16(8+len(p.Payload)))
	case proto.ProtoICMP, proto.ProtoICMPv6:
		h, sum = make([]byte, 8), 2
		h[0], h[1] = p.wireType(), p.wireCode()
		binary.BigEndian.PutUint16(h[4:], p.ID)
		binary.BigEndian.PutUint16(h[6:], p.Number)
	}
	if p.Proto == proto.ProtoTCP || p.Proto == proto.ProtoUDP {
		binary.BigEndian.PutUint16(h, p.Src.Port())
		binary.BigEndian.PutUint16(h[2:], p.Dst.Port())
	}
	t := append(h, p.Payload...)
	if sum >= 0 {
		binary.BigEndian.PutUint16(t[sum:], checksum(p.pseudo(len(t)), t))
	}
	return t
}

var types6 = map[uint8]uint8{EchoRequest: echoRequest6, EchoReply: echoReply6, Unreachable: unreachable6}

func (p Packet) wireType() uint8 {
	if p.Proto == proto.ProtoICMPv6 {
		return types6[p.Type]
	}
	return p.Type
}

func (p Packet) wireCode() uint8 {
	if p.Proto == proto.ProtoICMPv6 && p.Type == Unreachable && p.Code == Prohibited {
		return prohibited6
	}
	return p.Code
}

// pseudo returns the sum of the pseudo-header.
func (p Packet) pseudo(length int) uint32 {
	if p.Proto == proto.ProtoICMP {
		return 0
	}
	return add(add(uint32(p.Proto)+uint32(length), p.Src.Addr().AsSlice()), p.Dst.Addr().AsSlice())
}

func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func checksum(sum uint32, b []byte) uint16 {
	sum = add(sum, b)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// ErrPacket means that a host would not accept a packet.
var ErrPacket = errors.New("bad packet")

func bad(what string) (Packet, error) { return Packet{}, fmt.Errorf("%w: %s", ErrPacket, what) }

// Parse parses a packet as strictly as a host would: lengths and checksums must be right. It does not support options, extension
// headers or fragments.
func Parse(b []byte) (Packet, error) {
	var p Packet
	var t []byte
	switch {
	case len(b) >= headerLen4 && b[0] == 0x45:
		if int(binary.BigEndian.Uint16(b[2:])) != len(b) || checksum(0, b[:headerLen4]) != 0 {
			return bad("IPv4 header")
		}
		p.Proto, t = b[9], b[headerLen4:]
		p.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:])), 0)
		p.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:])), 0)
	case len(b) >= headerLen6 && b[0]>>4 == 6:
		if int(binary.BigEndian.Uint16(b[4:])) != len(b)-headerLen6 {
			return bad("IPv6 length")
		}
		p.Proto, t = b[6], b[headerLen6:]
		p.Src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:])), 0)
		p.Dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:])), 0)
	default:
		return bad("no IP header without options")
	}
	return p.parseTransport(t)
}

func (p Packet) parseTransport(t []byte) (Packet, error) {
	size := 8
	switch p.Proto {
	case proto.ProtoTCP:
		size = 20
	case proto.ProtoUDP, proto.ProtoICMP, proto.ProtoICMPv6:
	default:
		p.Payload = t
		return p, nil
	}
	if len(t) < size {
		return bad("too short for its transport")
	}
	if checksum(p.pseudo(len(t)), t) != 0 {
		return bad("transport checksum")
	}
	switch p.Proto {
	case proto.ProtoTCP:
		p.Seq, p.Ack, p.Flags = binary.BigEndian.Uint32(t[4:]), binary.BigEndian.Uint32(t[8:]), t[13]
		if size = int(t[12]>>4) * 4; size < 20 || size > len(t) {
			return bad("TCP header length")
		}
	case proto.ProtoUDP:
		if int(binary.BigEndian.Uint16(t[4:])) != len(t) {
			return bad("UDP length")
		}
	default:
		p.Type, p.Code = t[0], t[1]
		p.ID, p.Number = binary.BigEndian.Uint16(t[4:]), binary.BigEndian.Uint16(t[6:])
		p.fromV6()
	}
	if p.Proto == proto.ProtoTCP || p.Proto == proto.ProtoUDP {
		p.Src = netip.AddrPortFrom(p.Src.Addr(), binary.BigEndian.Uint16(t))
		p.Dst = netip.AddrPortFrom(p.Dst.Addr(), binary.BigEndian.Uint16(t[2:]))
	}
	p.Payload = t[size:]
	return p, nil
}

// fromV6 converts an ICMPv6 message's type and code to those of IPv4.
func (p *Packet) fromV6() {
	if p.Proto != proto.ProtoICMPv6 {
		return
	}
	for v4, v6 := range types6 {
		if p.Type == v6 {
			if p.Type = v4; v4 == Unreachable && p.Code == prohibited6 {
				p.Code = Prohibited
			}
			return
		}
	}
	p.Type = Other
}
