package tun

import (
	"encoding/binary"
	"math/bits"
)

// Checksums of the Internet are the ones' complement of sums of 16-bit words, and come out in the byte order that they are
// computed in (RFC 1071): here that of little endian machines, 64 bits at a time.

// addUp adds the bytes of b, of which only the last call's may be odd in number, to a sum.
func addUp(s uint64, b []byte) uint64 {
	var c uint64
	for len(b) >= 64 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[32:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[40:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[48:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[56:64]), c)
		s, c = bits.Add64(s, 0, c)
		s += c
		b = b[64:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	if len(b) > 0 {
		var t [8]byte
		copy(t[:], b)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(t[:]), 0)
		s += c
	}
	return s
}

// fold makes 16 bits of a sum.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// putSum writes a sum as it lies in a packet.
func putSum(b []byte, s uint16) { binary.LittleEndian.PutUint16(b, s) }

// pseudo adds up what a transport's checksum covers of an IP header: addresses, protocol and length of the transport.
func pseudo(pkt []byte, protocol byte, length int) uint64 {
	s := uint64(bits.ReverseBytes16(uint16(protocol))) + uint64(bits.ReverseBytes16(uint16(length)))
	if pkt[0]>>4 == 4 {
		return addUp(s, pkt[12:20])
	}
	return addUp(s, pkt[8:40])
}
