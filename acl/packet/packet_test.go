package packet

import (
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"testing"

	"pgregory.net/rapid"
)

// TestDecodeCases compares Parse with another implementation on packets that the latter decodes.
func TestDecodeCases(t *testing.T) {
	// Where Parse accepts more or less than the other one, and why.
	differs := map[string]Fault{
		"bogus_proto_ff":             OK,          // a number like any other, which no rule names
		"ipv4_short_first_fragment":  BadFragment, // not a multiple of eight bytes
		"ipv4_small_offset_fragment": BadFragment,
		"ipv6_frag_small_offset":     OK,        // the filter checks whether it overlaps its first
		"ipv6_frag_chained":          OK,        // extension headers are followed
		"ipv4_tsmp":                  Truncated, // fewer bytes than the header claims
		"ipv4_sctp":                  Truncated,
	}
	var file struct {
		Cases []struct {
			Name, Hex, Src, Dst string
			Proto, Header       int
		}
	}
	b, err := os.ReadFile("testdata/decode.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			b, err := hex.DecodeString(c.Hex)
			if err != nil {
				t.Fatal(err)
			}
			var p Packet
			fault := Parse(b, &p)
			if want, ok := differs[c.Name]; ok {
				if fault != want {
					t.Fatalf("fault %v, want %v", fault, want)
				}
				return
			}
			if c.Proto == 0 {
				if fault == OK {
					t.Fatalf("parsed as %+v", p)
				}
				return
			}
			if fault != OK {
				t.Fatal(fault)
			}
			src, dst := netip.MustParseAddrPort(c.Src), netip.MustParseAddrPort(c.Dst)
			if p.Src.Netip() != src.Addr() || p.Dst.Netip() != dst.Addr() || p.SrcPort != src.Port() || p.DstPort != dst.Port() {
				t.Errorf("%v:%d -> %v:%d, want %v -> %v", p.Src, p.SrcPort, p.Dst, p.DstPort, src, dst)
			}
			if c.Proto < 0 != p.Later() || !p.Later() && int(p.Proto) != c.Proto {
				t.Errorf("protocol %d, later %v; want %d", p.Proto, p.Later(), c.Proto)
			}
			if c.Header != 0 && p.Header != c.Header {
				t.Errorf("transport at %d, want %d", p.Header, c.Header)
			}
		})
	}
}

// TestFaults checks a packet for each fault, made from a good one.
func TestFaults(t *testing.T) {
	v4 := AppendSegment(nil, Segment{Src: addr4(0x64400001), Dst: addr4(0x64400002), SrcPort: 1, DstPort: 2, Flags: SYN})
	v6 := AppendSegment(nil, Segment{Src: Addr{0xfd, 1}, Dst: Addr{0xfd, 2}, SrcPort: 1, DstPort: 2, Flags: SYN})
	edit := func(b []byte, edits ...int) []byte {
		b = append([]byte(nil), b...)
		for i := 0; i < len(edits); i += 2 {
			b[edits[i]] = byte(edits[i+1])
		}
		return b
	}
	insert := func(b []byte, at int, more ...byte) []byte {
		return append(append(append([]byte(nil), b[:at]...), more...), b[at:]...)
	}
	// extend inserts extension headers between the IPv6 header and TCP.
	extend := func(first byte, more ...byte) []byte {
		b := insert(v6, 40, more...)
		b[5] += byte(len(more))
		b[6] = first
		return b
	}
	mixed := edit(v6)
	addr4(0x64400001).put16(mixed[8:])
	options4 := func(options ...byte) []byte { return edit(insert(v4, 20, options...), 0, 0x46, 3, 44) }
	for _, c := range []struct {
		name string
		pkt  []byte
		want Fault
	}{
		{"IPv4", v4, OK},
		{"IPv6", v6, OK},
		{"trailing bytes", append(edit(v4), 1, 2, 3), OK},
		{"empty", nil, Truncated},
		{"cut IPv4 header", v4[:19], Truncated},
		{"cut IPv4", v4[:39], Truncated},
		{"cut IPv6 header", v6[:39], Truncated},
		{"cut IPv6", v6[:59], Truncated},
		{"version 5", edit(v4, 0, 0x55), BadVersion},
		{"IPv4 header of 16 bytes", edit(v4, 0, 0x44), BadHeader},
		{"IPv4 total below header", edit(v4, 3, 19), BadHeader},
		{"IPv4 padding options", options4(1, 1, 1, 0), OK},
		{"IPv4 router alert", options4(148, 4, 0, 0), OK},
		{"IPv4 option beyond header", options4(148, 5, 0, 0), BadHeader},
		{"IPv4 option of length 1", options4(148, 1, 0, 0), BadHeader},
		{"IPv4 option without length", options4(1, 1, 1, 148), BadHeader},
		{"IPv4 loose source route", options4(131, 3, 4, 0), SourceRoute},
		{"IPv4 strict source route", options4(1, 137, 3, 4), SourceRoute},
		{"ICMPv6 in IPv4", edit(v4, 9, protoICMPv6), MixedFamily},
		{"ICMP in IPv6", edit(v6, 6, protoICMP), MixedFamily},
		{"one mapped address", mixed, MixedFamily},
		{"TCP header of 16 bytes", edit(v4, 32, 0x40), BadTransport},
		{"TCP header beyond packet", edit(v4, 32, 0x60), BadTransport},
		{"TCP cut", edit(v4, 3, 39), BadTransport},
		{"UDP length 0", edit(v4, 9, protoUDP), BadTransport},
		{"UDP length of rest", edit(v4, 9, protoUDP, 25, 20), OK},
		{"UDP length beyond packet", edit(v4, 9, protoUDP, 25, 21), BadTransport},
		{"UDP cut", edit(v4, 3, 27, 9, protoUDP, 25, 8), BadTransport},
		{"SCTP cut", edit(v4, 3, 31, 9, protoSCTP), BadTransport},
		{"ICMP cut", edit(v4, 3, 27, 9, protoICMP), BadTransport},
		{"GRE of no bytes", edit(v4, 3, 20, 9, 47), OK},
		{"first fragment with TCP header", edit(append(edit(v4), 1, 2, 3, 4), 3, 44, 6, 0x20), OK},
		{"first fragment cuts TCP header", edit(v4, 3, 36, 6, 0x20), SplitHeader},
		{"fragment of odd length", edit(v4, 3, 39, 6, 0x20), BadFragment},
		{"last fragment of odd length", edit(v4, 3, 39, 7, 3), OK},
		{"empty fragment", edit(v4, 3, 20, 7, 3), BadFragment},
		{"fragment beyond the largest packet", edit(v4, 6, 0x1f, 7, 0xff), BadFragment},
		{"IPv6 hop-by-hop", extend(protoHopByHop, protoTCP, 0, 1, 4, 0, 0, 0, 0), OK},
		{"IPv6 hop-by-hop second", extend(protoDestOption, protoHopByHop, 0, 1, 4, 0, 0, 0, 0, protoTCP, 0, 1, 4, 0, 0, 0, 0), BadExtension},
		{"IPv6 option beyond header", extend(protoHopByHop, protoTCP, 0, 1, 5, 0, 0, 0, 0), BadExtension},
		{"IPv6 jumbogram", extend(protoHopByHop, protoTCP, 0, 0xc2, 4, 0, 1, 0, 0), BadExtension},
		{"IPv6 home address", extend(protoDestOption, append([]byte{protoTCP, 2, 1, 2, 0, 0, 0xc9, 16}, make([]byte, 16)...)...), SourceRoute},
		{"IPv6 header longer than packet", extend(protoDestOption, protoTCP, 9, 1, 4, 0, 0, 0, 0), BadExtension},
		{"IPv6 header longest", extend(protoDestOption, protoTCP, 255, 1, 4, 0, 0, 0, 0), BadExtension},
		{"IPv6 routing type 0", extend(protoRouting, protoTCP, 0, 0, 0, 0, 0, 0, 0), SourceRoute},
		{"IPv6 routing after options", extend(protoDestOption, protoRouting, 0, 1, 4, 0, 0, 0, 0, protoTCP, 0, 0, 0, 0, 0, 0, 0), SourceRoute},
		{"IPv6 whole packet as fragment", extend(protoFragment, protoTCP, 0, 0, 0, 1, 2, 3, 4), OK},
		{"IPv6 two fragment headers", extend(protoFragment, protoFragment, 0, 0, 0, 1, 2, 3, 4, protoTCP, 0, 0, 0, 1, 2, 3, 4), BadExtension},
		{"IPv6 fragment of odd length", extend(protoFragment, protoTCP, 0, 0, 1, 1, 2, 3, 4), BadFragment},
		{"IPv6 later fragment", extend(protoFragment, protoTCP, 0, 0, 8, 1, 2, 3, 4), OK},
		{"IPv6 four extensions", chain(extend, maxExtensions), OK},
		{"IPv6 five extensions", chain(extend, maxExtensions+1), BadExtension},
		{"IPv6 AH is a transport", extend(51, protoTCP, 1, 0, 0, 0, 0, 0, 0), OK},
		{"IPv6 no next header", edit(v6[:40], 5, 0, 6, 59), OK},
		{"IPv6 extension without room", edit(v6[:40], 5, 0, 6, 0), BadExtension},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p Packet
			if got := Parse(c.pkt, &p); got != c.want {
				t.Errorf("fault %q, want %q (%x)", got, c.want, c.pkt)
			}
			if q, err := naiveParse(c.pkt); (err == nil) != (c.want == OK) {
				t.Errorf("the other parser says %v of %+v", err, q)
			}
		})
	}
}

func chain(extend func(byte, ...byte) []byte, n int) []byte {
	var b []byte
	for i := range n {
		next := byte(protoDestOption)
		if i == n-1 {
			next = protoTCP
		}
		b = append(b, next, 0, 1, 4, 0, 0, 0, 0)
	}
	return extend(protoDestOption, b...)
}

// TestMappedAddresses checks IPv4-mapped addresses in an IPv6 header, where no host puts them.
func TestMappedAddresses(t *testing.T) {
	b := AppendSegment(nil, Segment{Src: Addr{0xfd, 1}, Dst: Addr{0xfd, 2}, SrcPort: 1, DstPort: 2, Flags: SYN})
	addr4(0x64400001).put16(b[8:])
	addr4(0x64400002).put16(b[24:])
	var p Packet
	if fault := Parse(b, &p); fault != MixedFamily {
		t.Error(fault)
	}
	if AddrOf(netip.MustParseAddr("::ffff:100.64.0.1")) != AddrOf(netip.MustParseAddr("100.64.0.1")) {
		t.Error("a mapped address is another one than its IPv4 address")
	}
}

func TestGroups(t *testing.T) {
	for addr, want := range map[string]bool{
		"224.0.0.1": true, "239.255.255.255": true, "255.255.255.255": true, "ff02::1": true,
		"100.64.0.1": false, "223.255.255.255": false, "240.0.0.1": false, "fd00::1": false, "::ffff:224.0.0.1": true,
	} {
		if got := AddrOf(netip.MustParseAddr(addr)).IsGroup(); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

// TestParsersAgree compares Parse with the naive parser on packets that are mostly correct.
func TestParsersAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		agree(t, drawPacket(t))
	})
}

func TestParseAllocatesNothing(t *testing.T) {
	b := AppendSegment(nil, Segment{Src: Addr{0xfd, 1}, Dst: Addr{0xfd, 2}, Flags: SYN})
	if n := testing.AllocsPerRun(100, func() {
		var p Packet
		if Parse(b, &p) != OK {
			t.Fatal("fault")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, b := range [][]byte{
		AppendSegment(nil, Segment{Src: addr4(1), Dst: addr4(2), Flags: SYN}),
		AppendProhibited(nil, Addr{0xfd, 1}, Addr{0xfd, 2}, AppendQuote(nil, Addr{0xfd, 2}, Addr{0xfd, 1}, protoUDP, 1, 2)),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { agree(t, b) })
}

func BenchmarkParse(b *testing.B) {
	for name, pkt := range map[string][]byte{
		"v4": AppendSegment(nil, Segment{Src: addr4(1), Dst: addr4(2), Flags: ACK}),
		"v6": AppendSegment(nil, Segment{Src: Addr{0xfd, 1}, Dst: Addr{0xfd, 2}, Flags: ACK}),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var p Packet
				if Parse(pkt, &p) != OK {
					b.Fatal("fault")
				}
			}
		})
	}
}
