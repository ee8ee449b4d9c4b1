package lab

import (
	"encoding/binary"
	"net/netip"
)

// TCP flags, for TCPPacket.
const (
	FlagFIN = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
)

// UDPPacket builds an IP packet with a UDP datagram. Both addresses must be of the same family.
func UDPPacket(src, dst netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b[0:], src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return ipPacket(17, src.Addr(), dst.Addr(), append(b, payload...), 6)
}

// TCPPacket builds an IP packet with a TCP segment.
func TCPPacket(src, dst netip.AddrPort, flags byte, seq, ack uint32, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(b[0:], src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], ack)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 65535)
	return ipPacket(6, src.Addr(), dst.Addr(), append(b, payload...), 16)
}

// EchoPacket builds an IP packet with an echo request.
func EchoPacket(src, dst netip.Addr, id, seq uint16) []byte {
	b := make([]byte, 16)
	b[0] = 8
	protocol := byte(1)
	if dst.Is6() {
		b[0], protocol = 128, 58
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	return ipPacket(protocol, src, dst, b, 2)
}

// ipPacket prepends an IP header to the payload and stores the payload's checksum at offset at.
func ipPacket(protocol byte, src, dst netip.Addr, payload []byte, at int) []byte {
	s, d := src.AsSlice(), dst.AsSlice()
	var pseudo []byte
	if protocol != 1 { // of these, only ICMP for IPv4 has no pseudo-header
		pseudo = append(append(append([]byte(nil), s...), d...), 0, protocol)
		pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(payload)))
	}
	binary.BigEndian.PutUint16(payload[at:], checksum(append(pseudo, payload...)))
	if src.Is6() {
		h := make([]byte, 8, 40+len(payload))
		h[0], h[6], h[7] = 0x60, protocol, 64
		binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
		return append(append(append(h, s...), d...), payload...)
	}
	h := make([]byte, 12, 20+len(payload))
	h[0], h[8], h[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	h = append(append(h, s...), d...)
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		if i%2 == 0 {
			sum += uint32(v) << 8
		} else {
			sum += uint32(v)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum == 0xffff {
		return 0xffff // a checksum of zero would mean that there is none
	}
	return ^uint16(sum)
}
