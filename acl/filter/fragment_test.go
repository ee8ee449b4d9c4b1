package filter

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/proto"
)

func TestFragments(t *testing.T) {
	for family, a := range map[string]func(int) netip.Addr{"IPv4": v4, "IPv6": v6} {
		t.Run(family, func(t *testing.T) {
			us, them := a(1), a(2)
			w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, udpPorts(53, 53)); r.rule(proto.Out, udpPorts(53, 53)) })
			whole := udp(them, 4000, us, 53, 112) // five fragments of 24 bytes
			pieces := cut(whole, 24, 1)
			if len(pieces) != 5 {
				t.Fatal(len(pieces))
			}
			for range 2 { // a complete packet leaves no state behind
				for _, p := range pieces {
					w.wantIn(Permitted, p)
				}
			}
			for _, p := range cut(udp(us, 53, them, 4000, 112), 24, 1) {
				w.wantOut(Permitted, p)
			}
			w.wantIn(Permitted, pieces[0])
			for _, i := range []int{3, 4, 1, 2} { // out of order
				w.wantIn(Permitted, pieces[i])
			}
			for i := range 3 {
				w.wantIn(FragmentUnknown, pieces[i+1])
			}
			// If the first fragment is denied, later ones are too.
			denied := cut(udp(them, 4000, us, 54, 112), 24, 2)
			w.wantIn(NoService, denied[0])
			w.wantIn(FragmentUnknown, denied[1])
			if n := len(w.fragments.known); n != 0 {
				t.Errorf("%d datagrams that were denied take room", n)
			}
			// A datagram is identified by addresses and identification, and for IPv4 also by protocol.
			w.wantIn(Permitted, cut(whole, 24, 3)[0])
			w.wantIn(FragmentUnknown, cut(whole, 24, 4)[1])
			w.wantIn(FragmentUnknown, cut(udp(a(3), 4000, us, 53, 112), 24, 3)[1])
			w.wantOut(FragmentUnknown, cut(udp(us, 4000, them, 53, 112), 24, 3)[1])

			// Expiry and policy changes.
			w.wantIn(Permitted, cut(whole, 24, 5)[0])
			w.now = w.now.Add(fragmentLife.duration())
			w.tick()
			w.wantIn(FragmentUnknown, cut(whole, 24, 5)[1])
			w.wantIn(Permitted, cut(whole, 24, 6)[0])
			w.reinstall(func(*Ruleset) {})
			w.wantIn(Revoked, cut(whole, 24, 6)[1])
			w.sweep()
			w.wantIn(FragmentUnknown, cut(whole, 24, 6)[2])
			w.pass(fragmentLife.duration())
			if n := len(w.fragments.known) + len(w.fragments.count); n != 0 {
				t.Errorf("%d datagrams left", n)
			}
		})
	}
}

func TestFragmentsKeepFlowAlive(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, udpPorts(53, 53)) })
	pieces := cut(udp(v4(2), 4000, v4(1), 53, 112), 24, 1)
	w.wantIn(Permitted, pieces[0])
	w.pass(25 * second.duration())
	w.wantIn(Permitted, pieces[1])
	w.pass(25 * second.duration())
	w.wantOut(Permitted, udp(v4(1), 53, v4(2), 4000, 0))
	w.pass(second.duration() * 3600)
	r := w.records()
	if end := r[len(r)-1]; end.In.Packets != 2 || end.In.Bytes != uint64(len(pieces[0])+len(pieces[1])) || end.Out.Packets != 1 {
		t.Errorf("%+v", end)
	}
}

// TestFragmentTricks checks fragments that hosts reassemble differently from each other, or to something else than was judged.
func TestFragmentTricks(t *testing.T) {
	whole := udp(v4(2), 4000, v4(1), 53, 112)
	at := func(first, n int, more bool) []byte {
		return piece(whole[:20], proto.ProtoUDP, 1, first, make([]byte, n), more)
	}
	first := piece(whole[:20], proto.ProtoUDP, 1, 0, whole[20:60], true) // bytes 0 to 40
	for name, pieces := range map[string][][]byte{
		"first again":             {first},
		"another first":           {piece(whole[:20], proto.ProtoUDP, 1, 0, udp(v4(2), 4000, v4(1), 53, 8)[20:], true)},
		"into the first":          {at(32, 16, true)},
		"into the first's header": {at(8, 8, true)},
		"into the last":           {at(80, 16, false), at(72, 16, true)},
		"covers another":          {at(80, 8, true), at(72, 32, true)},
		"same again":              {at(80, 8, true), at(80, 8, true)},
		"inside another":          {at(80, 32, true), at(88, 8, true)},
		"two ends":                {at(80, 16, false), at(96, 8, false)},
		"end before what came":    {at(96, 8, true), at(80, 8, false)},
		"beyond the end":          {at(80, 8, false), at(88, 8, true)},
		"too many gaps":           {at(48, 8, true), at(64, 8, true), at(80, 8, true), at(96, 8, true), at(112, 8, true)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, udpPorts(53, 53)) })
			w.wantIn(Permitted, first)
			for i, p := range pieces {
				want := Permitted
				if i == len(pieces)-1 {
					want = FragmentOverlap
				}
				w.wantIn(want, p)
			}
			w.wantIn(FragmentOverlap, at(200, 8, true)) // everything that follows is dropped
			w.wantIn(FragmentOverlap, first)
		})
	}
}

// TestFragmentsWithExtensionHeaders checks that headers behind the fragment header count as part of the first fragment.
func TestFragmentsWithExtensionHeaders(t *testing.T) {
	for _, kinds := range [][]byte{{60}, {60, 60}} {
		w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, udpPorts(53, 53)) })
		whole := extended(udp(v6(2), 4000, v6(1), 53, 112), kinds...)
		for _, p := range cut(whole, 32, 1) {
			w.wantIn(Permitted, p)
		}
		if n := len(w.fragments.known); n != 0 {
			t.Errorf("%v: %d complete datagrams are still waited for", kinds, n)
		}
		w.wantIn(Permitted, cut(whole, 32, 2)[0])
		w.wantIn(FragmentOverlap, piece(whole[:40], kinds[0], 2, 24, make([]byte, 8), true))
	}
}

// TestFragmentRanges compares datagram with a map of bytes.
func TestFragmentRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := datagram{end: -1}
		have := map[int]bool{}
		end := -1
		for range rapid.IntRange(1, 12).Draw(t, "pieces") {
			first := rapid.IntRange(0, 12).Draw(t, "first")
			last := first + rapid.IntRange(1, 4).Draw(t, "length")
			more := rapid.IntRange(0, 3).Draw(t, "more") > 0
			want := more || end < 0
			if !more && want {
				end = last
			}
			for i := first; i < last; i++ {
				want = want && !have[i]
			}
			for i := first; want && i < last; i++ {
				have[i] = true
			}
			runs, top := 0, 0
			for i := range 20 {
				if have[i] {
					top = i + 1
					if !have[i-1] {
						runs++
					}
				}
			}
			want = want && runs <= len(g.have) && (end < 0 || top <= end)
			if got := g.add(first, last, more); got != want {
				t.Fatalf("add(%d, %d, %v) is %v; has %+v", first, last, more, got, g)
			}
			if !want {
				return
			}
			if runs != g.ranges {
				t.Fatalf("%d ranges, want %d: %+v", g.ranges, runs, g)
			}
		}
	})
}

func TestFragmentTableIsBounded(t *testing.T) {
	w := newWorldOf(t, Config{}, 40, func(r *Ruleset) { r.rule(proto.In, udpPorts(53, 53)) })
	passed := map[int]int{}
	for id := range 200 {
		for p := 2; p < 42; p++ {
			if w.In(cut(udp(v4(p), 4000, v4(1), 53, 112), 24, uint32(id))[0]).Pass {
				passed[p]++
			}
		}
	}
	total := 0
	for p, n := range passed {
		if total += n; n > peerDatagrams {
			t.Errorf("node %d has %d", p, n)
		}
	}
	if total != maxDatagrams || len(w.fragments.known) != maxDatagrams {
		t.Errorf("%d pieces of datagrams, %d known", total, len(w.fragments.known))
	}
	w.pass(fragmentLife.duration())
	if len(w.fragments.known) != 0 || len(w.fragments.count) != 0 || len(w.fragments.spare) > maxDatagrams {
		t.Error("they stay")
	}
}

// TestRouterHasOneShareOfFragments checks that neither a router that sends fragments from all the hosts behind it, nor a node that
// uses both of its addresses, can keep others from sending theirs.
func TestRouterHasOneShareOfFragments(t *testing.T) {
	w := newWorldOf(t, Config{}, 4, func(r *Ruleset) {
		r.rule(proto.In, udpPorts(53, 53)).Peers.Prefixes = []netip.Prefix{netip.MustParsePrefix("10.33.0.0/16")}
		r.Routes = []Route{{netip.MustParsePrefix("10.33.0.0/16"), 2}}
	})
	passed := 0
	for n := range 2 * maxDatagrams {
		src := netip.AddrFrom4([4]byte{10, 33, byte(n >> 8), byte(n)})
		if inFrom(w.Filter, 2, cut(udp(src, 4000, v4(1), 53, 112), 24, 1)[0]).Pass {
			passed++
		}
	}
	if passed != peerDatagrams {
		t.Errorf("%d packets in pieces came through a router, want %d", passed, peerDatagrams)
	}
	passed = 0
	for n := range uint32(peerDatagrams) {
		for _, pkt := range [][]byte{udp(v4(3), 4000, v4(1), 53, 112), udp(v6(3), 4000, v6(1), 53, 112)} {
			if inFrom(w.Filter, 3, cut(pkt, 24, n)[0]).Pass {
				passed++
			}
		}
	}
	if passed != peerDatagrams {
		t.Errorf("%d packets in pieces came from one node, want %d", passed, peerDatagrams)
	}
	for _, p := range cut(udp(v4(4), 4000, v4(1), 53, 112), 24, 1) {
		w.wantIn(Permitted, p)
	}
}
