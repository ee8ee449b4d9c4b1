package packet

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

var (
	a4, b4 = addr4(0x64400001), addr4(0x64400002)
	a6, b6 = Addr{0xfd00 << 48, 1}, Addr{0xfd00 << 48, 2}
)

// checkSums verifies the checksums of a packet that we built, the slow way.
func checkSums(t *testing.T, b []byte) {
	t.Helper()
	ones := func(parts ...[]byte) uint16 {
		s := uint32(0)
		for i, x := range slices.Concat(parts...) {
			s += uint32(x) << (8 * uint(1-i%2))
			s = s&0xffff + s>>16
		}
		return uint16(s)
	}
	var p Packet
	if fault := Parse(b, &p); fault != OK || p.Length != len(b) {
		t.Fatalf("%v, %d of %d bytes: %x", fault, p.Length, len(b), b)
	}
	var pseudo []byte
	switch p.Version {
	case 4:
		if ones(b[:20]) != 0xffff {
			t.Errorf("header checksum of %x", b)
		}
		if p.Proto != protoICMP {
			pseudo = slices.Concat(b[12:20], []byte{0, p.Proto, 0, byte(len(b) - 20)})
		}
	default:
		pseudo = slices.Concat(b[8:40], binary.BigEndian.AppendUint32(nil, uint32(len(b)-40)), []byte{0, 0, 0, p.Proto})
	}
	if ones(pseudo, b[p.Header:]) != 0xffff {
		t.Errorf("transport checksum of %x", b)
	}
}

func TestSegmentsComeBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := Segment{
			Src: a4, Dst: b4, SrcPort: rapid.Uint16().Draw(rt, "sport"), DstPort: rapid.Uint16().Draw(rt, "dport"),
			Seq: rapid.Uint32().Draw(rt, "seq"), Ack: rapid.Uint32().Draw(rt, "ack"), Flags: rapid.Byte().Draw(rt, "flags"),
		}
		if rapid.Bool().Draw(rt, "v6") {
			s.Src, s.Dst = a6, b6
		}
		b := AppendSegment([]byte("before"), s)
		if !bytes.HasPrefix(b, []byte("before")) {
			t.Fatal("what was there is gone")
		}
		b = b[6:]
		checkSums(t, b)
		var p Packet
		Parse(b, &p)
		if got := (Segment{p.Src, p.Dst, p.SrcPort, p.DstPort, p.Seq, p.Ack, p.Flags}); got != s || p.SegmentLength() != flagsLength(s.Flags) {
			t.Fatalf("got %+v, want %+v", got, s)
		}
	})
}

func flagsLength(flags uint8) (n uint32) {
	if flags&SYN != 0 {
		n++
	}
	if flags&FIN != 0 {
		n++
	}
	return n
}

// TestRefusals checks the answer to the sender of each kind of packet.
func TestRefusals(t *testing.T) {
	tcp := func(src, dst Addr, seq, ack uint32, flags uint8, payload int) []byte {
		b := AppendSegment(nil, Segment{src, dst, 1000, 22, seq, ack, flags})
		at := 3
		if !src.Is4() {
			at = 5
		}
		b[at] += byte(payload)
		return append(b, make([]byte, payload)...)
	}
	udp := func(src, dst Addr, n int) []byte {
		b, at := appendHeader(nil, src, dst, protoUDP, 8+n)
		binary.BigEndian.PutUint16(b[at+4:], uint16(8+n))
		return b
	}
	icmp := func(src, dst Addr, proto, kind uint8) []byte {
		b, at := appendHeader(nil, src, dst, proto, 8)
		b[at] = kind
		return b
	}
	later := udp(a4, b4, 8)
	later[7] = 1
	reset := func(src, dst Addr, seq, ack uint32, flags uint8) *Segment {
		return &Segment{src, dst, 22, 1000, seq, ack, flags}
	}
	for _, c := range []struct {
		name  string
		pkt   []byte
		reset *Segment
		error bool
	}{
		{"SYN", tcp(a4, b4, 7, 0, SYN, 0), reset(b4, a4, 0, 8, RST|ACK), false},
		{"SYN over IPv6", tcp(a6, b6, 7, 0, SYN, 0), reset(b6, a6, 0, 8, RST|ACK), false},
		{"SYN with data", tcp(a4, b4, 7, 0, SYN, 10), reset(b4, a4, 0, 18, RST|ACK), false},
		{"SYN at the end of the sequence", tcp(a4, b4, 1<<32-1, 0, SYN, 0), reset(b4, a4, 0, 0, RST|ACK), false},
		{"ACK", tcp(a4, b4, 7, 99, ACK, 5), reset(b4, a4, 99, 0, RST), false},
		{"SYN and ACK", tcp(a4, b4, 7, 99, SYN|ACK, 0), reset(b4, a4, 99, 0, RST), false},
		{"FIN without ACK", tcp(a4, b4, 7, 0, FIN, 0), reset(b4, a4, 0, 8, RST|ACK), false},
		{"RST", tcp(a4, b4, 7, 99, RST|ACK, 0), nil, false},
		{"UDP", udp(a4, b4, 4), nil, true},
		{"UDP over IPv6", udp(a6, b6, 4), nil, true},
		{"large UDP", udp(a4, b4, 1400), nil, true},
		{"large UDP over IPv6", udp(a6, b6, 1400), nil, true},
		{"GRE", icmp(a4, b4, 47, 0), nil, true},
		{"echo request", icmp(a4, b4, protoICMP, icmpEchoRequest), nil, true},
		{"echo request over IPv6", icmp(a6, b6, protoICMPv6, icmp6EchoRequest), nil, true},
		{"echo reply", icmp(a4, b4, protoICMP, icmpEchoReply), nil, false},
		{"echo reply over IPv6", icmp(a6, b6, protoICMPv6, icmp6EchoReply), nil, false},
		{"ICMP error", icmp(a4, b4, protoICMP, icmpUnreachable), nil, false},
		{"unknown ICMPv6 error", icmp(a6, b6, protoICMPv6, 100), nil, false},
		{"to a group", udp(a4, addr4(0xe0000001), 4), nil, false},
		{"from a group", udp(addr4(0xe0000001), a4, 4), nil, false},
		{"later fragment", later, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p, q, quote Packet
			if fault := Parse(c.pkt, &p); fault != OK {
				t.Fatal(fault)
			}
			got := AppendRefusal(nil, c.pkt, &p)
			if len(got) == 0 {
				if c.reset != nil || c.error {
					t.Fatal("no answer")
				}
				return
			}
			checkSums(t, got)
			Parse(got, &q)
			switch {
			case len(got) > ReplyLimit:
				t.Errorf("%d bytes", len(got))
			case q.Src != p.Dst || q.Dst != p.Src:
				t.Errorf("%v -> %v", q.Src, q.Dst)
			case c.reset != nil:
				if s := (Segment{q.Src, q.Dst, q.SrcPort, q.DstPort, q.Seq, q.Ack, q.Flags}); s != *c.reset {
					t.Errorf("got %+v, want %+v", s, *c.reset)
				}
			case c.error:
				if !q.IsError() || q.Quoted(got, &quote) != OK || quote.Src != p.Src || quote.DstPort != p.DstPort || quote.EchoID != p.EchoID {
					t.Errorf("%+v quotes %+v", q, quote)
				}
			default:
				t.Errorf("unexpected answer %+v", q)
			}
		})
	}
}

func TestQuotes(t *testing.T) {
	for _, c := range []struct {
		src, dst Addr
		proto    uint8
	}{{a4, b4, protoUDP}, {a6, b6, protoUDP}, {a4, b4, protoICMP}, {a6, b6, protoICMPv6}, {a4, b4, protoSCTP}, {a4, b4, 47}} {
		b := AppendProhibited(nil, c.dst, c.src, AppendQuote(nil, c.src, c.dst, c.proto, 77, 88))
		checkSums(t, b)
		var p, q Packet
		Parse(b, &p)
		if fault := p.Quoted(b, &q); fault != OK {
			t.Fatalf("protocol %d: %v", c.proto, fault)
		}
		if q.Src != c.src || q.Dst != c.dst || q.Proto != c.proto {
			t.Errorf("quoted %+v", q)
		}
		switch c.proto {
		case protoICMP, protoICMPv6:
			if !q.IsEchoRequest() || q.EchoID != 77 {
				t.Errorf("quoted %+v", q)
			}
		case protoUDP, protoSCTP:
			if q.SrcPort != 77 || q.DstPort != 88 {
				t.Errorf("quoted %+v", q)
			}
		}
	}
}

// TestMendChecksum writes UDP checksums without replacing zero by all ones, as a device does that knows nothing of UDP, and
// checks that mending makes them valid for a receiver and changes no other packet.
func TestMendChecksum(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		payload := rapid.SliceOfN(rapid.Byte(), 2, 40).Draw(rt, "payload")
		zero := rapid.Bool().Draw(rt, "zero")
		var options []byte
		if rapid.Bool().Draw(rt, "options") {
			options = []byte{protoUDP, 0, 1, 4, 0, 0, 0, 0} // PadN
		}
		b, at := appendHeader(nil, a6, b6, protoUDP, len(options)+8+len(payload))
		if options != nil {
			b[6] = 60 // destination options
		}
		at += copy(b[at:], options)
		udp := b[at:]
		binary.BigEndian.PutUint16(udp, rapid.Uint16().Draw(rt, "sport"))
		binary.BigEndian.PutUint16(udp[2:], rapid.Uint16().Draw(rt, "dport"))
		binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
		copy(udp[8:], payload)
		write := func(at int) {
			clear(udp[at : at+2])
			s := sum(sum(0, b[8:40])+protoUDP+uint64(len(udp)), udp)
			binary.BigEndian.PutUint16(udp[at:], ^fold(s))
		}
		if zero {
			write(8) // the payload cancels out everything else
		}
		write(6)
		got := bytes.Clone(b)
		MendChecksum(got)
		checkSumsUDP(t, got)
		if !zero && udp[6]|udp[7] != 0 && !bytes.Equal(got, b) {
			t.Errorf("%x became %x", b, got)
		}
		if zero && binary.BigEndian.Uint16(got[at+6:]) != 0xffff {
			t.Errorf("the checksum of %x", got)
		}
		// An omitted checksum stays omitted, unless it is indistinguishable from a computed zero.
		if !zero && udp[6]|udp[7] != 0 {
			clear(udp[6:8])
			got := bytes.Clone(b)
			if MendChecksum(got); !bytes.Equal(got, b) {
				t.Errorf("%x became %x", b, got)
			}
		}
	})
}

// checkSumsUDP verifies a UDP packet over IPv6 as a receiver does.
func checkSumsUDP(t *testing.T, b []byte) {
	t.Helper()
	var p Packet
	if fault := Parse(b, &p); fault != OK {
		t.Fatalf("%v: %x", fault, b)
	}
	udp := b[p.Header:]
	if s := fold(sum(sum(0, b[8:40])+protoUDP+uint64(len(udp)), udp)); s != 0xffff || udp[6]|udp[7] == 0 {
		t.Errorf("checksum of %x", b)
	}
}

func TestMendChecksumLeavesOthersAlone(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(rt, "packet")
		if len(b) > 0 && rapid.Bool().Draw(rt, "v6") {
			b[0] = 6<<4 | b[0]&15
		}
		got := bytes.Clone(b)
		MendChecksum(got)
		if len(got) < 48 || got[0]>>4 != 6 {
			if !bytes.Equal(got, b) {
				t.Errorf("%x became %x", b, got)
			}
		}
	})
}
