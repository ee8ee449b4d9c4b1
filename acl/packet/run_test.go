package packet

import (
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// follows reports, using Parse alone, whether b continues the flow of first.
func follows(first, b []byte) (Packet, bool) {
	var p, q Packet
	if Parse(first, &p) != OK || Parse(b, &q) != OK {
		return q, false
	}
	plain := map[uint8]int{4: headerLength4, 6: headerLength6}
	for _, x := range []*Packet{&p, &q} {
		if x.Fragment || x.Header != plain[x.Version] || x.Proto != protoTCP && x.Proto != protoUDP {
			return q, false
		}
		if x.Version == 6 && (x == &q && b[6] != q.Proto || x == &p && first[6] != p.Proto) {
			return q, false
		}
	}
	return q, p.Src == q.Src && p.Dst == q.Dst && p.Proto == q.Proto && p.SrcPort == q.SrcPort && p.DstPort == q.DstPort &&
		(q.Proto == protoUDP || q.Flags&(SYN|FIN|RST|ACK) == ACK)
}

// wantRun returns what Follow should return.
func wantRun(first []byte, pkts [][]byte) (r Run) {
	var p Packet
	if Parse(first, &p) != OK {
		return r
	}
	if p.Proto == protoTCP && !p.Fragment {
		r.End, r.Ack = p.Seq+p.SegmentLength(), p.Ack
	}
	for _, b := range pkts {
		q, ok := follows(first, b)
		if !ok {
			break
		}
		r.Packets++
		r.Bytes += q.Length
		if q.Proto == protoTCP {
			if end := q.Seq + q.SegmentLength(); int32(end-r.End) > 0 {
				r.End = end
			}
			if int32(q.Ack-r.Ack) > 0 {
				r.Ack = q.Ack
			}
		}
	}
	return r
}

func checkRun(t interface{ Fatalf(string, ...any) }, first []byte, pkts [][]byte) Run {
	var p Packet
	if Parse(first, &p) != OK {
		return Run{}
	}
	got, want := p.Follow(first, pkts, nil, 0), wantRun(first, pkts)
	if got.Packets != want.Packets || got.Bytes != want.Bytes || got.Packets > 0 && got != want {
		t.Fatalf("%+v, want %+v: %x after %x", got, want, pkts, first)
	}
	// The same with room before and after the packets.
	const offset = 3
	bufs, sizes := make([][]byte, len(pkts)), make([]int, len(pkts))
	for i, b := range pkts {
		bufs[i] = append(append(make([]byte, offset), b...), 0x45, 0, 0, 28)
		sizes[i] = len(b)
	}
	if again := p.Follow(first, bufs, sizes, offset); again != got {
		t.Fatalf("%+v in larger buffers, %+v in their own", again, got)
	}
	return got
}

// TestFollow checks batches of packets most of which differ from the first only in what segmentation changes, and some by one bit.
func TestFollow(t *testing.T) {
	long := 0
	rapid.Check(t, func(t *rapid.T) {
		first := drawPacket(t)
		if rapid.Bool().Draw(t, "plain") {
			s := Segment{Src: addr4(1), Dst: addr4(2), SrcPort: 3, DstPort: 4, Seq: rapid.Uint32().Draw(t, "seq"), Flags: ACK}
			if rapid.Bool().Draw(t, "v6") {
				s.Src, s.Dst = Addr{0xfd, 1}, Addr{0xfd, 2}
			}
			first = AppendSegment(nil, s)
		}
		pkts := make([][]byte, rapid.IntRange(0, 6).Draw(t, "packets"))
		for i := range pkts {
			b := append([]byte(nil), first...)
			if len(b) > 40 && b[0]>>4 == 4 && b[9] == protoTCP {
				binary.BigEndian.PutUint32(b[24:], rapid.Uint32().Draw(t, "sequence"))
				binary.BigEndian.PutUint32(b[28:], rapid.Uint32().Draw(t, "acknowledgement"))
			}
			if rapid.IntRange(0, 3).Draw(t, "off") == 0 && len(b) > 0 {
				b[rapid.IntRange(0, min(len(b), 64)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			}
			if rapid.IntRange(0, 7).Draw(t, "cut") == 0 {
				b = b[:rapid.IntRange(0, len(b)).Draw(t, "length")]
			}
			pkts[i] = b
		}
		if checkRun(t, first, pkts).Packets > 1 {
			long++
		}
	})
	if long == 0 {
		t.Error("no row was longer than two")
	}
}

// TestFollowBits flips each bit of a packet's headers and checks that what Follow accepts does belong to the same flow.
func TestFollowBits(t *testing.T) {
	v4 := AppendSegment(nil, Segment{Src: addr4(0x64400001), Dst: addr4(0x64400002), SrcPort: 1, DstPort: 2, Seq: 9, Ack: 5, Flags: ACK})
	v6 := AppendSegment(nil, Segment{Src: Addr{0xfd, 1}, Dst: Addr{0xfd, 2}, SrcPort: 1, DstPort: 2, Seq: 9, Ack: 5, Flags: ACK})
	udp4 := append([]byte(nil), v4[:28]...)
	udp4[3], udp4[9] = 28, protoUDP
	binary.BigEndian.PutUint16(udp4[24:], 8)
	udp6 := append([]byte(nil), v6[:48]...)
	udp6[5], udp6[6] = 8, protoUDP
	binary.BigEndian.PutUint16(udp6[44:], 8)
	for _, first := range [][]byte{v4, v6, udp4, udp6} {
		if checkRun(t, first, [][]byte{first, first}).Packets != 2 {
			t.Errorf("%x does not follow itself", first)
		}
		for at := range first {
			for bit := range 8 {
				b := append([]byte(nil), first...)
				b[at] ^= 1 << bit
				checkRun(t, first, [][]byte{b})
				checkRun(t, b, [][]byte{first})
			}
		}
		for n := range first {
			checkRun(t, first, [][]byte{first[:n]})
		}
	}
}

func FuzzFollow(f *testing.F) {
	v4 := AppendSegment(nil, Segment{Src: addr4(1), Dst: addr4(2), Flags: ACK})
	v6 := AppendSegment(nil, Segment{Src: Addr{0xfd, 1}, Dst: Addr{0xfd, 2}, Flags: ACK})
	f.Add(v4, v4, v4)
	f.Add(v6, v6, v4)
	f.Fuzz(func(t *testing.T, first, a, b []byte) { checkRun(t, first, [][]byte{a, b}) })
}
