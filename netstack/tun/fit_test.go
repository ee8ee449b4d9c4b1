package tun

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl/packet"
)

// fragmentable returns an IPv4 UDP packet with an n-byte payload that may be fragmented.
func fragmentable(n int) []byte {
	p := make([]byte, 28+n)
	p[0], p[8], p[9] = 0x45, 64, protocolUDP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[4:], 77)
	copy(p[12:], []byte{100, 64, 0, 1, 100, 64, 0, 2})
	binary.BigEndian.PutUint16(p[24:], uint16(8+n))
	for i := range n {
		p[28+i] = byte(i * 7)
	}
	putSum(p[10:], ^fold(addUp(0, p[:20])))
	return p
}

// Fragments reassemble to the original packet.
func TestFragments(t *testing.T) {
	for _, n := range []int{1253, 1392, 4000, 60000} {
		p := fragmentable(n)
		s := NewSuper()
		s.Set(p)
		if how := s.Fit(1280); how != FitsFragments {
			t.Fatalf("%d bytes: %d", n, how)
		}
		whole := make([]byte, 0, len(p))
		pieces := s.all()
		for i, q := range pieces {
			place := binary.BigEndian.Uint16(q[6:])
			switch {
			case len(q) > 1280 || fold(addUp(0, q[:20])) != 0xffff || int(binary.BigEndian.Uint16(q[2:])) != len(q):
				t.Errorf("%d bytes: piece %x", n, q[:20])
			case int(place&offsetMask)*8 != len(whole) || (place&moreComes != 0) != (i < len(pieces)-1):
				t.Errorf("%d bytes: piece %d is at %x, %d came", n, i, place, len(whole))
			}
			whole = append(whole, q[20:]...)
		}
		if !bytes.Equal(whole, p[20:]) {
			t.Errorf("%d bytes are others afterwards", n)
		}
	}
}

// A packet that must not be fragmented stays whole, and its sender is told the size; errors about errors are not sent.
func TestTooBig(t *testing.T) {
	p := fragmentable(1392)
	p[6] = dontFragment
	clear(p[10:12])
	putSum(p[10:], ^fold(addUp(0, p[:20])))
	s := NewSuper()
	s.Set(p)
	if how := s.Fit(1340); how != FitsNot || s.Largest() != 1420 {
		t.Errorf("%d, the largest has %d", how, s.Largest())
	}
	told := packet.AppendTooBig(nil, p, 1340)
	var e, quote packet.Packet
	if fault := packet.Parse(told, &e); fault != packet.OK || !e.IsError() || e.Quoted(told, &quote) != packet.OK {
		t.Fatalf("%x", told)
	}
	if got := binary.BigEndian.Uint16(told[26:]); got != 1340 || told[20] != 3 || told[21] != 4 || quote.Length != 1420 && quote.Dst != e.Src {
		t.Errorf("MTU %d in %x", got, told[:28])
	}
	if again := packet.AppendTooBig(nil, told, 1340); len(again) > 0 {
		t.Errorf("an error about an error: %x", again)
	}
}

// TCP is cut into shorter segments, whether it comes as one packet or as many.
func TestShorterSegments(t *testing.T) {
	for _, six := range []bool{false, true} {
		one := spec{v6: six, flags: flagACK, payload: bytes.Repeat([]byte{7}, 1360)}.build()
		s := NewSuper()
		s.Set(one)
		if how := s.Fit(1300); how != FitsCut {
			t.Fatalf("IPv6 %t: %d", six, how)
		}
		var got int
		for _, q := range s.all() {
			x := shapeOf(q)
			if len(q) > 1300 || !intact(q, &x) {
				t.Errorf("IPv6 %t: %d bytes, %+v", six, len(q), x)
			}
			got += x.size
		}
		if got != 1360 {
			t.Errorf("IPv6 %t: %d bytes of 1360", six, got)
		}
	}
}
