package filter

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// TestSourceIsAnAddressNotASubnet checks that a router cannot send as its neighbours in the mesh's range, as other nodes, or as
// hosts behind other routers: in CVE-2025-62820, of another mesh, a source was valid if it was in its sender's subnet.
func TestSourceIsAnAddressNotASubnet(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) {
		r.rule(proto.In, everything...).Peers.Prefixes = []netip.Prefix{
			netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"),
		}
		r.Routes = []Route{
			{netip.MustParsePrefix("10.33.0.0/16"), 2}, {netip.MustParsePrefix("10.33.7.0/24"), 3}, {netip.MustParsePrefix("fd99::/32"), 2},
		}
	})
	n := uint64(0)
	for _, c := range []struct {
		src  string
		want Reason
	}{
		{"100.64.0.2", Permitted},
		{"fd00:1234:5678::2", Permitted},
		{"10.33.1.1", Permitted}, // behind it
		{"fd99::1", Permitted},
		{"100.64.0.3", Spoofed}, // another node
		{"fd00:1234:5678::3", Spoofed},
		{"100.64.0.99", Spoofed}, // nobody's, next to it
		{"fd00:1234:5678::99", Spoofed},
		{"100.64.0.1", Spoofed}, // ourselves
		{"10.33.7.1", Spoofed},  // behind another router, by a longer route
		{"10.34.0.1", Spoofed},  // behind nobody
		{"192.0.2.1", Spoofed},  // on the internet
		{"0.0.0.0", Spoofed},
		{"255.255.255.255", Spoofed},
		{"::", Spoofed},
		{"127.0.0.1", Spoofed},
	} {
		src := netip.MustParseAddr(c.src)
		dst := v4(1)
		if src.Is6() {
			dst = v6(1)
		}
		pkt := udp(src, 5, dst, 53, 0)
		w.want(c.want, inFrom(w.Filter, 2, pkt), pkt)
		if c.want == Spoofed {
			n++
		}
	}
	if got := w.Counters().Dropped[Spoofed]; got != n {
		t.Errorf("%d counted as spoofed, want %d", got, n)
	}
}

// TestFlowIsItsPeers checks that a third node cannot inject into a connection between two others with their addresses and ports,
// in any of the ways in which a packet can belong to one.
func TestFlowIsItsPeers(t *testing.T) {
	for family, a := range map[string]func(int) netip.Addr{"IPv4": v4, "IPv6": v6} {
		t.Run(family, func(t *testing.T) {
			us, them := a(1), a(2)
			w := newWorld(t, func(r *Ruleset) { r.rule(proto.Out, everything...); r.rule(proto.In, everything...) })
			w.wantOut(Permitted, segment(us, 4000, them, 22, syn, 99, 0, 0))
			w.wantOut(Permitted, udp(us, 4000, them, 53, 0))
			w.wantOut(Permitted, ping(us, them, 7))
			data := segment(them, 22, us, 4000, ack, 500, 100, 2000)
			answer := udp(them, 53, us, 4000, 64)
			pieces := cut(answer, 24, 9)
			for _, pkt := range [][]byte{
				tcp(them, 22, us, 4000, synAck), data, tcp(them, 22, us, 4000, rst), tcp(them, 22, us, 4000, syn), answer,
				pong(them, us, 7), unreachable(them, us, udp(us, 4000, them, 53, 0)), pieces[0], pieces[1],
			} {
				w.want(Spoofed, inFrom(w.Filter, 3, pkt), pkt)
				verdicts := make([]Verdict, 2)
				w.InBatch(3, [][]byte{pkt, pkt}, 0, verdicts)
				w.want(Spoofed, verdicts[0], pkt)
				w.want(Spoofed, verdicts[1], pkt)
			}
			// Their own packets still pass, including fragments, which the third node sent first.
			for _, pkt := range append(pieces, tcp(them, 22, us, 4000, synAck), answer, pong(them, us, 7)) {
				w.want(Permitted, inFrom(w.Filter, 2, pkt), pkt)
			}
			if n := len(w.fragments.known); n != 0 {
				t.Errorf("%d packets in pieces are still waited for", n)
			}
		})
	}
}

// TestNothingWithoutAFlow checks everything that other filters pass without a flow.
func TestNothingWithoutAFlow(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.Out, everything...); r.rule(proto.In, everything...) })
	for _, a := range []func(int) netip.Addr{v4, v6} {
		us, them := a(1), a(2)
		for flags := range uint8(64) {
			if flags&(syn|ack|rst|packet.FIN) != syn {
				w.wantIn(NoFlow, tcp(them, 4000, us, 22, flags))
				w.wantOut(NoFlow, tcp(us, 4000, them, 22, flags))
			}
		}
		w.wantIn(NoFlow, pong(them, us, 7))
		w.wantOut(NoFlow, pong(us, them, 7))
		w.wantIn(ICMPUnrelated, unreachable(them, us, udp(us, 4000, them, 53, 0)))
		w.wantOut(ICMPUnrelated, unreachable(us, them, udp(them, 4000, us, 53, 0)))
		w.wantIn(FragmentUnknown, cut(udp(them, 1, us, 2, 64), 24, 1)[1])
	}
}

// extended inserts IPv6 extension headers, each with a correct length, before the transport of a packet.
func extended(pkt []byte, kinds ...byte) []byte {
	b := append([]byte(nil), pkt[:40]...)
	next := pkt[6]
	for i, kind := range kinds {
		after := next
		if i+1 < len(kinds) {
			after = kinds[i+1]
		}
		if i == 0 {
			b[6] = kind
		}
		b = append(b, after, 0, 1, 4, 0, 0, 0, 0) // PadN; in a fragment header, an offset of 256 or so
		if kind == 44 {
			clear(b[len(b)-6:])
		}
	}
	return lengthen(append(b, pkt[40:]...), 0)
}

// TestExtensionHeaderTricks hides ports behind headers, or makes them look like other ports.
func TestExtensionHeaderTricks(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, tcpPorts(443, 443), udpPorts(443, 443)) })
	good, bad := tcp(v6(2), 4000, v6(1), 443, syn), tcp(v6(2), 4000, v6(1), 22, syn)
	const hop, routing, fragment, options, mobility, hip, shim, none = 0, 43, 44, 60, 135, 139, 140, 59
	for _, kinds := range [][]byte{{}, {options}, {hop}, {hop, options, fragment, options}, {fragment}} {
		w.wantIn(Permitted, extended(good, kinds...))
		w.wantIn(NoService, extended(bad, kinds...))
	}
	for want, chains := range map[Reason][][]byte{
		Reason(packet.SourceRoute):  {{routing}, {options, routing}, {hop, options, options, routing}, {fragment, routing}},
		Reason(packet.BadExtension): {{options, options, options, options, options}, {options, hop}, {hop, hop}, {fragment, fragment}},
		NoService:                   {{mobility}, {hip}, {shim}, {none}, {options, 253}, {50}, {51}, {4}, {41}},
	} {
		for _, kinds := range chains {
			w.wantIn(want, extended(good, kinds...))
		}
	}
	// A length that leads out of the packet, or wraps around to its beginning.
	for _, length := range []byte{1, 7, 8, 31, 127, 255} {
		pkt := extended(good, options)
		pkt[41] = length
		w.wantIn(Reason(packet.BadExtension), pkt)
	}
	// A header that leads into bytes of the sender's choice, which look like the permitted service.
	inner := append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, good[40:]...)
	sly := lengthen(append(append([]byte(nil), bad[:60]...), inner...), 0)
	w.wantIn(NoService, sly)
	// The first fragment must hold all headers; later ones cannot add any.
	w.wantIn(Reason(packet.BadFragment), cut(extended(good, options), 8, 3)[0])
	w.wantIn(Reason(packet.SplitHeader), cut(extended(good, options), 24, 3)[0])
}

// TestUnknownNextHeaderIsNoTCP sends with every protocol number what would be a permitted connection if it were TCP or UDP.
func TestUnknownNextHeaderIsNoTCP(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, tcpPorts(443, 443)) })
	for n := range 256 {
		for _, pkt := range [][]byte{tcp(v4(2), 443, v4(1), 443, syn), tcp(v6(2), 443, v6(1), 443, syn)} {
			at := 9
			if pkt[0]>>4 == 6 {
				at = 6
			}
			if pkt[at] = byte(n); n == proto.ProtoTCP {
				w.wantIn(Permitted, pkt)
			} else if v := w.In(pkt); v.Pass || n > 142 && v.Reason != NoService {
				t.Errorf("%s: %v", describe(pkt), v.Reason)
			}
		}
	}
}

// TestTunnelledPackets checks that IPv4 in IPv6 and the like are protocols of their own: the inner packet is not looked at, and
// passes by rules that name the tunnel.
func TestTunnelledPackets(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, everything...) })
	inner := tcp(v4(2), 4000, v4(1), 22, syn)
	for _, protocol := range []uint8{4, 41} {
		outer := append(append([]byte(nil), tcp(v6(2), 1, v6(1), 1, syn)[:40]...), inner...)
		outer[6] = protocol
		w.wantIn(NoService, lengthen(outer, 0))
	}
}

// TestRouterTellsOfWhatIsTooBig checks that errors from a router in the flow's path pass; hosts need them for path MTU discovery.
func TestRouterTellsOfWhatIsTooBig(t *testing.T) {
	far, served := netip.MustParseAddr("10.33.1.1"), netip.MustParseAddr("10.44.1.1")
	w := newWorld(t, func(r *Ruleset) {
		r.rule(proto.Out, everything...).Peers.Prefixes = []netip.Prefix{netip.MustParsePrefix("10.33.0.0/16")}
		r.rule(proto.In, everything...).Local = []netip.Prefix{netip.MustParsePrefix("10.44.0.0/16")}
		r.Routes = []Route{{netip.MustParsePrefix("10.33.0.0/16"), 2}, {netip.MustParsePrefix("10.34.0.0/16"), 3}}
	})
	sent := udp(v4(1), 4000, far, 53, 1400)
	w.wantOut(Permitted, sent)
	for src, want := range map[netip.Addr]Reason{
		far: Permitted, v4(2): Permitted, netip.MustParseAddr("10.33.0.254"): Permitted,
		v4(3): ICMPUnrelated, netip.MustParseAddr("10.34.0.1"): ICMPUnrelated, netip.MustParseAddr("192.0.2.1"): ICMPUnrelated,
	} {
		w.wantIn(want, unreachable(src, v4(1), sent))
	}
	w.want(Spoofed, inFrom(w.Filter, 3, unreachable(v4(2), v4(1), sent)), sent)
	// Likewise this node's errors about packets through it.
	came := udp(v4(2), 4000, served, 53, 1400)
	w.wantIn(Permitted, came)
	for src, want := range map[netip.Addr]Reason{
		served: Permitted, v4(1): Permitted, netip.MustParseAddr("10.44.0.254"): Permitted, netip.MustParseAddr("192.168.1.1"): ICMPUnrelated,
	} {
		w.wantOut(want, unreachable(src, v4(2), came))
	}
	w.wantOut(ICMPUnrelated, unreachable(v4(1), v4(3), came))
}

// TestOnePeerCannotExhaustTheTable lets one peer open all the flows it can, in every way, and checks that others are not affected.
func TestOnePeerCannotExhaustTheTable(t *testing.T) {
	w := newWorldOf(t, Config{MaxFlows: 3200, PerPeer: 800}, 5, func(r *Ruleset) {
		r.rule(proto.In, everything...)
		r.rule(proto.Out, everything...)
	})
	hold := func(check bool) {
		t.Helper()
		for p := 3; p <= 6; p++ {
			if !check {
				w.wantIn(Permitted, tcp(v4(p), 4000, v4(1), 22, syn))
				w.wantIn(Permitted, udp(v6(p), 4000, v6(1), 53, 0))
				w.wantOut(Permitted, ping(v4(1), v4(p), 7))
			}
			w.wantOut(Permitted, tcp(v4(1), 22, v4(p), 4000, synAck))
			w.wantIn(Permitted, tcp(v4(p), 4000, v4(1), 22, ack))
			w.wantOut(Permitted, udp(v6(1), 53, v6(p), 4000, 0))
			w.wantIn(Permitted, pong(v4(p), v4(1), 7))
		}
	}
	hold(false)
	flows := w.Counters().Flows
	for i := range 12000 {
		a, b := uint16(i), uint16(i>>3)
		w.In(tcp(v4(2), a, v4(1), b, syn))
		w.In(udp(v6(2), a, v6(1), b, 0))
		w.In(ping(v4(2), v4(1), a))
		w.In(ported(proto.ProtoSCTP, v4(2), a, v4(1), b))
		w.In(cut(udp(v4(2), a, v4(1), b, 40), 24, uint32(i))[0])
		if i%1000 == 0 {
			w.pass(time.Second)
		}
	}
	if got := w.Counters().Flows - flows; got > 800 {
		t.Errorf("it has %d flows", got)
	}
	hold(true)
	for p := 3; p <= 6; p++ {
		for i := range uint16(20) {
			w.wantIn(Permitted, tcp(v4(p), 5000+i, v4(1), 22, syn))
		}
		for _, pkt := range cut(udp(v4(p), 9, v4(1), 9, 40), 24, 1) {
			w.wantIn(Permitted, pkt)
		}
	}
	for _, r := range w.records() {
		if r.Kind == FlowEnd && r.Peer.ID != 2 {
			t.Errorf("a flow of %v ended: %v", r.Peer.ID, r.Reason)
		}
	}
}

// TestWidePrefixesCostNothing checks that the cost of compiling rules about all addresses does not depend on how many these are.
func TestWidePrefixesCostNothing(t *testing.T) {
	allocs := func(prefixes ...string) float64 {
		r := testRuleset(10)
		for i := range 50 {
			rule := r.rule(proto.In, tcpPorts(uint16(i), uint16(i)))
			rule.Peers.Sets = nil
			for _, p := range prefixes {
				rule.Peers.Prefixes = append(rule.Peers.Prefixes, netip.MustParsePrefix(p))
			}
		}
		return testing.AllocsPerRun(5, func() {
			if _, err := Compile(r); err != nil {
				t.Fatal(err)
			}
		})
	}
	if narrow, wide := allocs("100.64.0.2/32", "fd00:1234:5678::2/128"), allocs("100.64.0.0/10", "::/0"); wide > 2*narrow {
		t.Errorf("%v allocations for wide prefixes, %v for narrow ones", wide, narrow)
	}
}

// TestMalformedPackets truncates a packet anywhere and flips each of its bits; what passes must still go to the permitted port.
func TestMalformedPackets(t *testing.T) {
	for name, pkt := range map[string][]byte{
		"TCP": tcp(v4(2), 4000, v4(1), 443, syn), "UDP": udp(v6(2), 4000, v6(1), 443, 8),
		"options": extended(tcp(v6(2), 4000, v6(1), 443, syn), 60),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, tcpPorts(443, 443), udpPorts(443, 443)) })
			for n := range pkt {
				if w.In(pkt[:n:n]).Pass {
					t.Errorf("passes with %d of %d bytes", n, len(pkt))
				}
			}
			for at := range pkt {
				for bit := range 8 {
					bent := append([]byte(nil), pkt...)
					bent[at] ^= 1 << bit
					if v := w.In(bent); !v.Pass {
						continue
					}
					var p packet.Packet
					if packet.Parse(bent, &p) != packet.OK || p.Dst.Netip() != v4(1) && p.Dst.Netip() != v6(1) || p.DstPort != 443 {
						t.Errorf("passes as %s", describe(bent))
					}
				}
			}
			for _, total := range []uint16{0, 1, 19, 20, 39, 0xffff} {
				bent := append([]byte(nil), pkt...)
				at := 2
				if bent[0]>>4 == 6 {
					at, total = 4, total-min(total, 40)
				}
				binary.BigEndian.PutUint16(bent[at:], total)
				if v := w.In(bent); v.Pass {
					t.Errorf("passes with length %d", total)
				}
			}
		})
	}
}
