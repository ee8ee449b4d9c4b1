package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"pgregory.net/rapid"
)

// naivePacket and naiveParse are a second parser, written from the RFCs without regard to speed: it builds lists of what it
// finds, and relies on index panics as its bounds checks.
type naivePacket struct {
	Src, Dst         netip.Addr
	Proto            int
	SrcPort, DstPort uint16
	Type, Code       byte
	Echo             uint16
	Flags            byte
	Seq, Ack         uint32
	Offset, Piece    int // Piece: length of a fragment's data
	More             bool
	ID               uint32
	Header, Payload  int
	Length           int
}

func naiveParse(b []byte) (p naivePacket, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("out of range: %v", r)
		}
	}()
	be16 := func(b []byte) int { return int(b[0])<<8 | int(b[1]) }
	be32 := func(b []byte) uint32 { return uint32(be16(b))<<16 | uint32(be16(b[2:])) }

	fragmented := false
	var rest []byte    // from the transport header on
	b = slices.Clip(b) // so that slicing beyond its length fails too
	_ = b[19]
	switch b[0] >> 4 {
	case 4:
		p.Header = int(b[0]%16) * 4
		p.Length = be16(b[2:])
		if p.Header < 20 {
			return p, errors.New("short header")
		}
		options := b[20:p.Header:p.Header]
		for len(options) > 0 {
			kind := options[0]
			if kind == 0 {
				break
			}
			if kind == 1 {
				options = options[1:]
				continue
			}
			if kind == 131 || kind == 137 {
				return p, errors.New("source route")
			}
			if options[1] < 2 {
				return p, errors.New("short option")
			}
			options = options[options[1]:]
		}
		p.Src, _ = netip.AddrFromSlice(b[12:16])
		p.Dst, _ = netip.AddrFromSlice(b[16:20])
		p.Proto = int(b[9])
		p.Offset = be16(b[6:]) % 8192 * 8
		p.More = be16(b[6:])&0x2000 != 0
		p.ID = uint32(be16(b[4:]))
		rest = b[p.Header:p.Length:p.Length]
		if fragmented = p.More || p.Offset > 0; fragmented {
			p.Piece = len(rest)
		}
		if p.Proto == 58 {
			return p, errors.New("ICMPv6 in IPv4")
		}
	case 6:
		p.Length = 40 + be16(b[4:])
		rest = b[40:p.Length:p.Length]
		p.Src, _ = netip.AddrFromSlice(b[8:24])
		p.Dst, _ = netip.AddrFromSlice(b[24:40])
		if p.Src.Is4In6() || p.Dst.Is4In6() {
			return p, errors.New("mixed families")
		}
		p.Proto = int(b[6])
		seen := []int{}
		for p.Proto == 0 || p.Proto == 43 || p.Proto == 44 || p.Proto == 60 {
			if p.Offset > 0 {
				break
			}
			if p.Proto == 43 {
				return p, errors.New("routing header")
			}
			if p.Proto == 0 && len(seen) > 0 || len(seen) == 4 {
				return p, errors.New("extensions out of order, or too many")
			}
			n := 8
			if p.Proto == 44 {
				for _, s := range seen {
					if s == 44 {
						return p, errors.New("two fragment headers")
					}
				}
				p.Offset, p.More, p.ID = be16(rest[2:])/8*8, rest[3]%2 == 1, be32(rest[4:])
				if fragmented = p.More || p.Offset > 0; fragmented {
					p.Piece = len(rest) - n
				} else {
					p.ID = 0
				}
			} else {
				n = 8 + 8*int(rest[1])
				for o := rest[2:n:n]; len(o) > 0; {
					switch o[0] {
					case 0:
						o = o[1:]
						continue
					case 0xc2, 0xc9:
						return p, errors.New("jumbogram or home address")
					}
					o = o[2+int(o[1]):]
				}
			}
			seen = append(seen, p.Proto)
			p.Proto = int(rest[0])
			rest = rest[n:]
		}
		p.Header = p.Length - len(rest)
		if p.Proto == 1 && p.Offset == 0 {
			return p, errors.New("ICMP in IPv6")
		}
	default:
		return p, errors.New("no IP")
	}
	p.Payload = p.Header

	if fragmented {
		if len(rest) == 0 || p.Offset+len(rest) > 65535 || p.More && len(rest)%8 != 0 {
			return p, errors.New("no host sends such a fragment")
		}
		if p.Offset > 0 {
			return p, nil
		}
	} else {
		p.ID = 0
	}
	switch p.Proto {
	case 6:
		p.Seq, p.Ack, p.Flags = be32(rest[4:]), be32(rest[8:]), rest[13]
		n := int(rest[12]/16) * 4
		if n < 20 {
			return p, errors.New("short TCP header")
		}
		_ = rest[19]
		p.Payload += len(rest) - len(rest[n:])
	case 17:
		if n := be16(rest[4:]); n < 8 || n > len(rest) && !fragmented {
			return p, errors.New("UDP length")
		}
		p.Payload += 8
	case 132:
		_ = rest[11]
		p.Payload += 12
	case 1, 58:
		p.Type, p.Code = rest[0], rest[1]
		_ = rest[7]
		if p.Proto == 1 && (p.Type == 0 || p.Type == 8) || p.Proto == 58 && (p.Type == 128 || p.Type == 129) {
			p.Echo = uint16(be16(rest[4:]))
		}
		p.Payload += 8
		return p, nil
	default:
		return p, nil
	}
	p.SrcPort, p.DstPort = uint16(be16(rest)), uint16(be16(rest[2:]))
	return p, nil
}

// agree fails if the two parsers differ.
func agree(t interface{ Fatalf(string, ...any) }, b []byte) {
	var p Packet
	fault := Parse(b, &p)
	want, err := naiveParse(b)
	if (fault == OK) != (err == nil) {
		t.Fatalf("Parse says %q, the naive parser %v: %x", fault, err, b)
	}
	if fault != OK {
		return
	}
	got := naivePacket{
		p.Src.Netip(), p.Dst.Netip(), int(p.Proto), p.SrcPort, p.DstPort, p.Type, p.Code, p.EchoID, p.Flags, p.Seq, p.Ack,
		int(p.FragOffset), int(p.FragLength), p.More, p.FragID, p.Header, p.Payload, p.Length,
	}
	if got != want {
		t.Fatalf("%x:\n got %+v\nwant %+v", b, got, want)
	}
	var q Packet
	if p.IsError() && p.Quoted(b, &q) == OK && q.Length > p.Length-p.Payload {
		t.Fatalf("the quote in %x is longer than its packet", b)
	}
}

// drawPacket draws a packet that is correct in most places, so that later errors are reached.
func drawPacket(t *rapid.T) []byte {
	const tcp, udp, icmp, icmp6, sctp = 6, 17, 1, 58, 132
	proto := rapid.SampledFrom([]byte{tcp, udp, icmp, icmp6, sctp, 47, 59}).Draw(t, "proto")
	transport := rapid.SliceOfN(rapid.Byte(), 0, 48).Draw(t, "transport")
	if len(transport) > 13 && rapid.IntRange(0, 9).Draw(t, "right header") > 0 {
		switch proto {
		case tcp:
			transport[12] = byte(rapid.IntRange(5, 8).Draw(t, "header words")) << 4
		case udp:
			binary.BigEndian.PutUint16(transport[4:], uint16(rapid.IntRange(7, len(transport)+1).Draw(t, "udp length")))
		}
	}
	var b []byte
	if rapid.Bool().Draw(t, "v4") {
		b = make([]byte, 20)
		options := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 2, 4, 148, 131, 137}), 0, 8).Draw(t, "options")
		for len(options)%4 != 0 {
			options = append(options, 0)
		}
		b = append(b, options...)
		b[0] = 0x40 | byte(len(b)/4)
		if rapid.Bool().Draw(t, "fragment") {
			binary.BigEndian.PutUint16(b[6:], rapid.SampledFrom([]uint16{0x2000, 0x4000, 1, 0x2001, 0x1fff, 0x3ff0}).Draw(t, "offset"))
		}
		b[9] = proto
		copy(b[12:], []byte{100, 64, 0, 1, 100, 64, 0, 2})
		b = append(b, transport...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	} else {
		var extensions []byte
		kinds := rapid.SliceOfN(rapid.SampledFrom([]byte{60, 60, 60, 44, 44, 0, 43}), 0, 6).Draw(t, "extensions")
		for i, kind := range kinds {
			next := proto
			if i+1 < len(kinds) {
				next = kinds[i+1]
			}
			e := []byte{next, 0, 1, 4, 0, 0, 0, 0}
			switch {
			case kind == 44:
				binary.BigEndian.PutUint16(e[2:], rapid.SampledFrom([]uint16{0, 1, 8, 9, 0xfff8}).Draw(t, "offset"))
			case rapid.IntRange(0, 9).Draw(t, "odd option") == 0:
				copy(e[2:], rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 2, 5, 0xc2, 0xc9}), 6, 6).Draw(t, "option"))
			case rapid.IntRange(0, 9).Draw(t, "long") == 0:
				e[1], e[3] = 1, 12
				e = append(e, make([]byte, 8)...)
			}
			extensions = append(extensions, e...)
		}
		b = make([]byte, 40)
		b[0], b[6] = 0x60, proto
		if len(kinds) > 0 {
			b[6] = kinds[0]
		}
		b[8], b[24] = 0xfd, 0xfd
		if rapid.IntRange(0, 9).Draw(t, "mapped") == 0 {
			addr4(7).put16(b[8:])
			addr4(8).put16(b[24:])
		}
		b = append(append(b, extensions...), transport...)
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	}
	for range rapid.IntRange(0, 2).Draw(t, "edits") {
		if rapid.Bool().Draw(t, "edit") {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		}
	}
	return b[:rapid.IntRange(len(b)-min(len(b), rapid.SampledFrom([]int{0, 0, 0, 1, 60}).Draw(t, "cut")), len(b)).Draw(t, "length")]
}
