package tun

import (
	"encoding/binary"
	"math/bits"
)

// An Internet checksum is the ones' complement of the sum of 16-bit words, and the sum is independent of byte order (RFC 1071):
// here it is computed in little-endian order, 64 bits at a time.

// addUp adds the bytes of b to a sum. Only the last of several calls may have an odd number of bytes.
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

// fold folds a sum to 16 bits.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// putSum writes a sum in the byte order of the packet.
func putSum(b []byte, s uint16) { binary.LittleEndian.PutUint16(b, s) }

// pseudo returns the sum of the pseudo-header: addresses, protocol and length of the transport.
func pseudo(pkt []byte, protocol byte, length int) uint64 {
	s := uint64(bits.ReverseBytes16(uint16(protocol))) + uint64(bits.ReverseBytes16(uint16(length)))
	if pkt[0]>>4 == 4 {
		return addUp(s, pkt[12:20])
	}
	return addUp(s, pkt[8:40])
}
