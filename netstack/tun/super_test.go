package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl/packet"
)

// load does what a device does after reading b.
func (s *Super) load(b []byte) error { return s.take(copy(s.room[:virtioSize+maxPacket], b)) }

// all splits a super-packet.
func (s *Super) all() (out [][]byte) {
	for p := s.Next(); p != nil; p = s.Next() {
		out = append(out, bytes.Clone(p))
	}
	return out
}

// slowSum computes a checksum literally as RFC 1071 describes it.
func slowSum(b []byte) uint16 {
	var s uint32
	for i, v := range b {
		s += uint32(v) << (8 * (1 - i%2))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// transportSum computes a packet's transport checksum over the transport and the pseudo-header.
func transportSum(p []byte, transport int, protocol byte) uint16 {
	var b []byte
	if p[0]>>4 == 4 {
		b = append(b, p[12:20]...)
	} else {
		b = append(b, p[8:40]...)
	}
	b = append(b, 0, protocol)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p)-transport))
	return slowSum(append(b, p[transport:]...))
}

func TestSums(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "bytes")
		at := 2 * rapid.IntRange(0, len(b)/2).Draw(t, "half")
		var got [2]byte
		putSum(got[:], fold(addUp(addUp(0, b[:at]), b[at:])))
		if want := slowSum(b); binary.BigEndian.Uint16(got[:])%0xffff != want%0xffff {
			t.Fatalf("sum %x, want %x", got, want)
		}
	})
}

// spec describes a packet to build.
type spec struct {
	v6, udp  bool
	flow     byte
	id       uint16
	sequence uint32
	flags    byte
	options  []byte // TCP
	payload  []byte
}

// build returns the packet with its checksums.
func (c spec) build() []byte {
	var t []byte
	protocol, at := byte(protocolTCP), tcpSumAt
	if c.udp {
		protocol, at = protocolUDP, udpSumAt
		t = binary.BigEndian.AppendUint16([]byte{1, c.flow, 2, 2}, uint16(8+len(c.payload)))
		t = append(t, 0, 0)
	} else {
		t = binary.BigEndian.AppendUint32([]byte{1, c.flow, 2, 2}, c.sequence)
		t = append(t, 9, 9, 9, 9, byte(20+len(c.options))<<2, c.flags, 1, 1, 0, 0, 0, 0)
		t = append(t, c.options...)
	}
	t = append(t, c.payload...)
	var p []byte
	if c.v6 {
		p = binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 1}, uint16(len(t)))
		p = append(p, protocol, 64)
		p = append(append(p, bytes.Repeat([]byte{0xfd}, 16)...), bytes.Repeat([]byte{0xfe}, 16)...)
	} else {
		p = binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+len(t)))
		p = binary.BigEndian.AppendUint16(p, c.id)
		p = append(p, 0, 0, 64, protocol, 0, 0, 100, 64, 0, 1, 100, 64, 0, 2)
		binary.BigEndian.PutUint16(p[10:], ^slowSum(p))
	}
	head := len(p)
	p = append(p, t...)
	sum := ^transportSum(p, head, protocol)
	if c.udp && sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(p[head+at:], sum)
	return p
}

// written returns what a joiner writes for packets, one slice per write.
func written(udp bool, packets [][]byte) (out [][]byte) {
	j := joiner{udp: udp, write: func(parts [][]byte) { out = append(out, bytes.Join(parts, nil)) }}
	for _, p := range packets {
		j.add(append(make([]byte, 16, 16+len(p)), p...), 16)
	}
	j.flush()
	return out
}

// TestJoinAndSplit checks that splitting what was joined yields the same packets in order.
func TestJoinAndSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var packets [][]byte
		for range rapid.IntRange(1, 6).Draw(t, "runs") {
			c := spec{
				v6: rapid.Bool().Draw(t, "IPv6"), udp: rapid.Bool().Draw(t, "UDP"), flow: rapid.Byte().Draw(t, "flow") % 2,
				id: rapid.Uint16().Draw(t, "id"), sequence: rapid.Uint32().Draw(t, "sequence"), flags: flagACK,
			}
			if rapid.Bool().Draw(t, "options") {
				c.options = []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
			}
			size := rapid.IntRange(1, 1380).Draw(t, "size")
			for n := rapid.IntRange(1, 70).Draw(t, "count"); n > 0; n-- {
				c.payload = bytes.Repeat([]byte{byte(n)}, size)
				switch rapid.IntRange(0, 20).Draw(t, "kind") {
				case 0:
					c.payload = c.payload[:rapid.IntRange(0, size).Draw(t, "shorter")]
				case 1:
					c.flags |= flagPSH
				case 2:
					c.flags |= rapid.Byte().Draw(t, "flags")
				case 3:
					c.sequence += 100
				}
				p := c.build()
				if rapid.IntRange(0, 40).Draw(t, "spoil") == 0 {
					p[rapid.IntRange(0, len(p)-1).Draw(t, "where")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
				}
				packets = append(packets, p)
				c.sequence += uint32(len(c.payload))
				c.id++
				c.flags = flagACK
			}
		}
		var got [][]byte
		s := NewSuper()
		for _, w := range written(true, packets) {
			if len(w) > virtioSize+maxPacket {
				t.Fatalf("%d bytes were written at once", len(w))
			}
			if len(w) < virtioSize+20 {
				got = append(got, w[virtioSize:])
				continue
			}
			if err := s.load(w); err != nil {
				t.Fatalf("what was written is malformed: %x", w[:min(len(w), 80)])
			}
			got = append(got, s.all()...)
		}
		if len(got) != len(packets) {
			t.Fatalf("%d packets became %d", len(packets), len(got))
		}
		for i, p := range packets {
			if !bytes.Equal(got[i], p) {
				t.Fatalf("packet %d of %d is\n%x, want\n%x", i, len(packets), got[i], p)
			}
		}
	})
}

func TestJoinsWhatBelongsTogether(t *testing.T) {
	run := func(n int, change func(int, *spec)) (out [][]byte) {
		c := spec{flags: flagACK}
		for i := range n {
			c.payload = bytes.Repeat([]byte{byte(i)}, 1000)
			d := c
			change(i, &d)
			out = append(out, d.build())
			c.sequence += 1000
			c.id++
		}
		return out
	}
	for _, c := range []struct {
		name   string
		change func(int, *spec)
		udp    bool
		n      int
		want   int
	}{
		{"TCP", func(int, *spec) {}, true, 40, 1},
		{"TCP over IPv6", func(_ int, c *spec) { c.v6 = true }, true, 40, 1},
		{"TCP beyond the largest packet", func(int, *spec) {}, true, 80, 2},
		{"TCP that pushes", func(i int, c *spec) { c.flags |= flagPSH * byte(i%10/9) }, true, 40, 4},
		{"UDP", func(_ int, c *spec) { c.udp = true }, true, 40, 1},
		{"more UDP than comes apart", func(_ int, c *spec) { c.udp, c.payload = true, c.payload[:100] }, true, 100, 2},
		{"UDP that the host does not take", func(_ int, c *spec) { c.udp = true }, false, 40, 40},
		{"two flows in turns", func(i int, c *spec) { c.udp, c.flow = true, byte(i%2) }, true, 40, 40},
		{"two flows after each other", func(i int, c *spec) { c.udp, c.flow = true, byte(i/20) }, true, 40, 2},
		{"acknowledgements", func(_ int, c *spec) { c.payload = nil }, true, 40, 40},
	} {
		if got := written(c.udp, run(c.n, c.change)); len(got) != c.want {
			t.Errorf("%s: %d packets took %d writes, want %d", c.name, c.n, len(got), c.want)
		}
	}
}

// super returns a virtio header and a super-packet, as Linux would write them.
func super(c spec, size int) []byte {
	p := c.build()
	v := make([]byte, virtioSize)
	transport, sumAt := 20, tcpSumAt
	v[1] = kindTCP4
	if c.v6 {
		transport, v[1] = 40, kindTCP6
	}
	if c.udp {
		sumAt, v[1] = udpSumAt, kindUDP
	}
	v[0] = needsChecksum
	binary.NativeEndian.PutUint16(v[4:], uint16(size))
	binary.NativeEndian.PutUint16(v[6:], uint16(transport))
	binary.NativeEndian.PutUint16(v[8:], uint16(sumAt))
	return append(v, p...)
}

func TestSegmentsOfSuper(t *testing.T) {
	s := NewSuper()
	payload := bytes.Repeat([]byte("0123456789"), 10)
	if err := s.load(super(spec{id: 65535, sequence: 1<<32 - 30, flags: flagACK | flagPSH | flagFIN | flagCWR, payload: payload}, 30)); err != nil {
		t.Fatal(err)
	}
	if s.Count() != 4 || s.header != 40 {
		t.Errorf("%d packets with headers of %d bytes", s.Count(), s.header)
	}
	got := s.all()
	for i, want := range []spec{
		{id: 65535, sequence: 1<<32 - 30, flags: flagACK | flagCWR, payload: payload[:30]},
		{id: 0, sequence: 0, flags: flagACK, payload: payload[30:60]},
		{id: 1, sequence: 30, flags: flagACK, payload: payload[60:90]},
		{id: 2, sequence: 60, flags: flagACK | flagPSH | flagFIN, payload: payload[90:]},
	} {
		if want := want.build(); !bytes.Equal(got[i], want) {
			t.Errorf("segment %d is\n%x, want\n%x", i, got[i], want)
		}
	}
}

// TestChecksumsLeftToUs checks that the checksum of a single packet is filled in, and that it is never zero for UDP.
func TestChecksumsLeftToUs(t *testing.T) {
	s := NewSuper()
	for _, v6 := range []bool{false, true} {
		for word := range 1 << 16 {
			c := spec{v6: v6, udp: true, payload: []byte{byte(word >> 8), byte(word)}}
			if word%251 != 0 {
				continue
			}
			want := c.build()
			b := super(c, 0)
			b[1] = kindNone
			transport := int(binary.NativeEndian.Uint16(b[6:]))
			clear(b[virtioSize+transport+udpSumAt:][:2])
			putSum(b[virtioSize+transport+udpSumAt:], fold(pseudo(want, protocolUDP, len(want)-transport))) // as the host leaves it
			if err := s.load(b); err != nil {
				t.Fatal(err)
			}
			if got := s.all(); len(got) != 1 || !bytes.Equal(got[0], want) {
				t.Fatalf("got %x, want %x", got, want)
			}
		}
	}
	// The sum over everything is all ones, so the checksum comes out as zero.
	c := spec{udp: true, payload: []byte{0, 0}}
	sum := transportSum(c.build(), 20, protocolUDP) // all ones, with its checksum
	zero := binary.BigEndian.Uint16(c.build()[26:])
	c.payload = binary.BigEndian.AppendUint16(nil, zero)
	if p := c.build(); sum != 0xffff || p[26] != 0xff || p[27] != 0xff {
		t.Fatalf("the checksum of %x is not ones", p)
	}
	if err := s.load(super(c, 100)); err != nil {
		t.Fatal(err)
	}
	if got := s.all()[0]; got[26] != 0xff || got[27] != 0xff {
		t.Errorf("the checksum is %x", got[26:28])
	}
}

func TestMalformedSupers(t *testing.T) {
	tcp := spec{flags: flagACK, payload: make([]byte, 300)}
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
	}{
		{"nothing", func(b []byte) []byte { return nil }},
		{"a virtio header alone", func(b []byte) []byte { return b[:virtioSize] }},
		{"cut off", func(b []byte) []byte { return b[:len(b)-1] }},
		{"longer than it says", func(b []byte) []byte { return append(b, 0) }},
		{"no size", func(b []byte) []byte { clear(b[4:6]); return b }},
		{"no checksum wanted", func(b []byte) []byte { b[0] = 0; return b }},
		{"another kind", func(b []byte) []byte { b[1] = 2; return b }},
		{"the old kind for UDP", func(b []byte) []byte { b[1] = 3; return b }},
		{"IPv6's kind", func(b []byte) []byte { b[1] = kindTCP6; return b }},
		{"UDP's kind", func(b []byte) []byte { b[1] = kindUDP; return b }},
		{"checksum in the IP header", func(b []byte) []byte { b[6] = 10; return b }},
		{"checksum beyond the end", func(b []byte) []byte { b[9] = 0xff; return b }},
		{"checksum elsewhere", func(b []byte) []byte { b[8] = 14; return b }},
		{"not IP", func(b []byte) []byte { b[virtioSize] = 0x75; return b }},
		{"IP options that the checksum does not begin behind", func(b []byte) []byte { b[virtioSize] = 0x46; return b }},
		{"a fragment", func(b []byte) []byte { b[virtioSize+6] = 0x20; return b }},
		{"another protocol", func(b []byte) []byte { b[virtioSize+9] = 17; return b }},
		{"a short TCP header", func(b []byte) []byte { b[virtioSize+32] = 0x40; return b }},
		{"a TCP header without payload", func(b []byte) []byte {
			b = b[:virtioSize+40]
			binary.BigEndian.PutUint16(b[virtioSize+2:], 40)
			return b
		}},
	} {
		s := NewSuper()
		if err := s.load(c.change(super(tcp, 100))); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// FuzzSuper passes arbitrary bytes as a device's input.
func FuzzSuper(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			f.Add(super(spec{v6: v6, udp: udp, flags: flagACK, payload: make([]byte, 250)}, 100))
			single := super(spec{v6: v6, udp: udp, flags: flagACK, payload: make([]byte, 25)}, 0)
			single[1] = kindNone
			f.Add(single)
		}
	}
	s := NewSuper()
	f.Fuzz(func(t *testing.T, b []byte) {
		clear(s.room)
		if s.load(b) != nil {
			return
		}
		whole := bytes.Clone(s.Packet())
		count, header := s.Count(), 0
		if s.size > 0 {
			header = s.header
		}
		var payload []byte
		n := 0
		for p := s.Next(); p != nil; p = s.Next() {
			n++
			if count == 1 && header == 0 {
				payload = append(payload, p...)
				continue
			}
			if len(p) <= header || len(p)-header > s.size {
				t.Fatalf("packet %d has %d bytes, with headers of %d and payloads of %d", n, len(p), header, s.size)
			}
			payload = append(payload, p[header:]...)
			if err := sound(p, s.transport, s.protocol); err != nil {
				t.Fatalf("packet %d: %v: %x", n, err, p)
			}
			var q packet.Packet
			if packet.Parse(p, &q) == packet.OK && q.Length != len(p) {
				t.Fatalf("packet %d of %d bytes says that it has %d", n, len(p), q.Length)
			}
		}
		if n != count || !bytes.Equal(payload, whole[header:]) {
			t.Fatalf("%d bytes of payload came as %d, in %d packets of %d", len(whole)-header, len(payload), n, count)
		}
		for i, v := range s.room[virtioSize+len(whole):] {
			if v != 0 {
				t.Fatalf("written %d bytes behind the packet", i)
			}
		}
	})
}

// sound verifies the checksums of a segment.
func sound(p []byte, transport int, protocol byte) error {
	if p[0]>>4 == 4 && slowSum(p[:transport]) != 0xffff {
		return errors.New("wrong IP checksum")
	}
	if transportSum(p, transport, protocol) != 0xffff {
		return errors.New("wrong checksum")
	}
	return nil
}

// FuzzJoin passes arbitrary bytes as packets from peers, each preceded by its length.
func FuzzJoin(f *testing.F) {
	for _, c := range []spec{{flags: flagACK}, {udp: true}, {v6: true, flags: flagACK}, {v6: true, udp: true}} {
		var b []byte
		for i := range 3 {
			c.payload = bytes.Repeat([]byte{byte(i)}, 10)
			p := c.build()
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(p))), p...)
			c.sequence += 10
			c.id++
		}
		f.Add(b)
	}
	s := NewSuper()
	f.Fuzz(func(t *testing.T, b []byte) {
		var packets [][]byte
		for len(b) > 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			if n >= 20 {
				packets = append(packets, b[2:2+n])
			}
			b = b[2+n:]
		}
		var got [][]byte
		for _, w := range written(true, packets) {
			if err := s.load(w); err != nil {
				t.Fatalf("what was written is malformed: %x", w)
			}
			got = append(got, s.all()...)
		}
		if !bytes.Equal(bytes.Join(got, []byte("|")), bytes.Join(packets, []byte("|"))) {
			t.Fatalf("packets\n%x came apart as\n%x", packets, got)
		}
	})
}
