package filter

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

func TestNothingPassesWithoutProgram(t *testing.T) {
	f := New(Config{})
	out, in := tcp(v4(1), 4000, v4(2), 22, syn), tcp(v4(2), 4000, v4(1), 22, syn)
	for range 2 {
		for _, v := range []Verdict{f.Out(out), f.In(in), inFrom(f, 2, in)} {
			if v.Pass || v.Reason != Closed {
				t.Errorf("%+v", v)
			}
		}
		f.Install(nil)
	}
	if v := f.Out(out); len(v.AppendReply(nil, out)) == 0 {
		t.Error("the host is left waiting")
	}
}

// TestReasons drops a packet, or ends a flow, for every reason there is.
func TestReasons(t *testing.T) {
	w := newWorldOf(t, Config{PerPeer: 4}, 8, func(r *Ruleset) {
		r.rule(proto.In, tcpPorts(22, 22), udpPorts(53, 53), whole(proto.ProtoICMP))
		r.rule(proto.Out, tcpPorts(443, 443))
		deny(r.rule(proto.In, tcpPorts(24, 24)))
	})
	w.rules.Sets[0].Members = w.rules.Sets[0].Members[:6]
	w.install()
	seen := map[Reason]bool{}
	in := func(want Reason, pkt []byte) { t.Helper(); w.wantIn(want, pkt); seen[want] = true }
	out := func(want Reason, pkt []byte) { t.Helper(); w.wantOut(want, pkt); seen[want] = true }

	good := tcp(v4(2), 4000, v4(1), 22, syn)
	edit := func(at int, b byte) []byte {
		e := append([]byte(nil), good...)
		e[at] = b
		return e
	}
	option := lengthen(append(append([]byte(nil), good[:20]...), append([]byte{131, 3, 4, 0}, good[20:]...)...), 0)
	option[0] = 0x46
	extension := append(append([]byte(nil), tcp(v6(2), 4000, v6(1), 22, syn)[:40]...), 0, 0, 1, 9, 0, 0, 0, 0)
	extension[6] = 0
	in(Reason(packet.Truncated), good[:39])
	in(Reason(packet.BadVersion), edit(0, 0x75))
	in(Reason(packet.BadHeader), edit(0, 0x44))
	in(Reason(packet.SourceRoute), option)
	in(Reason(packet.BadExtension), lengthen(extension, 0))
	in(Reason(packet.BadFragment), cut(udp(v4(2), 4000, v4(1), 53, 20), 12, 1)[0])
	in(Reason(packet.SplitHeader), cut(good, 16, 1)[0])
	in(Reason(packet.BadTransport), edit(32, 0x10))
	in(Reason(packet.MixedFamily), edit(9, proto.ProtoICMPv6))

	out(Multicast, udp(v4(1), 5353, netip.MustParseAddr("224.0.0.251"), 5353, 10))
	out(Multicast, icmp(v6(1), netip.MustParseAddr("ff02::2"), 133, 0, 0, nil))
	out(ForeignSource, tcp(v4(3), 4000, v4(2), 443, syn))
	if w.Out(tcp(v4(3), 4000, v4(2), 443, syn)).Refuse {
		t.Error("whoever has that source would be answered")
	}
	in(ForeignDestination, tcp(v4(2), 4000, v4(3), 22, syn))
	in(UnknownPeer, tcp(v4(200), 4000, v4(1), 22, syn))
	out(UnknownPeer, tcp(v4(1), 4000, v4(200), 443, syn))
	w.want(Spoofed, inFrom(w.Filter, 3, good), good)
	seen[Spoofed] = true
	in(NoRule, tcp(v4(9), 4000, v4(1), 22, syn))
	in(NoService, tcp(v4(2), 4000, v4(1), 23, syn))
	out(NoService, tcp(v4(1), 4000, v4(2), 22, syn))
	in(NoFlow, tcp(v4(2), 4000, v4(1), 22, ack))
	in(Forbidden, tcp(v4(2), 4000, v4(1), 24, syn))
	in(ICMPType, icmp(v4(2), v4(1), 5, 0, 0, good))
	in(ICMPUnrelated, unreachable(v4(2), v4(1), tcp(v4(1), 4000, v4(2), 443, syn)))

	opener := tcp(v4(1), 4000, v4(2), 443, syn)
	w.want(BadSegments, w.OutSegments(opener, 2), opener)
	seen[BadSegments] = true

	// Fragments.
	pieces := cut(udp(v4(3), 4000, v4(1), 53, 56), 24, 7)
	in(FragmentUnknown, pieces[1])
	in(Permitted, pieces[0])
	in(FragmentOverlap, pieces[0])
	for i := range peerDatagrams - 1 {
		in(Permitted, cut(udp(v4(3), 4000, v4(1), 53, 56), 24, uint32(100+i))[0])
	}
	in(FragmentLimit, cut(udp(v4(3), 4000, v4(1), 53, 56), 24, 8)[0])

	// A flow that dies.
	in(Permitted, good)
	w.reinstall(func(r *Ruleset) { r.rule(proto.In, tcpPorts(1, 21), udpPorts(53, 53)) })
	in(Revoked, tcp(v4(2), 4000, v4(1), 22, ack))
	w.sweep()

	for p := uint16(0); !seen[PeerQuota]; p++ { // four per peer
		pkt := tcp(v4(4), p, v4(1), 21, syn)
		if v := w.In(pkt); !v.Pass {
			w.want(PeerQuota, v, pkt)
			seen[PeerQuota] = true
		}
	}
	full := newWorldOf(t, Config{MaxFlows: shardCount, PerPeer: 100}, 2, func(r *Ruleset) { r.rule(proto.In, tcpPorts(22, 22)) })
	for p := uint16(0); full.Counters().Flows < shardCount; p++ {
		full.wantIn(Permitted, tcp(v4(2), p, v4(1), 22, syn))
	}
	full.wantIn(TableFull, tcp(v4(3), 1, v4(1), 22, syn))
	if n := full.current.Load().peers[1].flows.Load(); n != 0 {
		t.Errorf("a flow that found no room counts as %d", n)
	}
	seen[TableFull] = true
	in(Closed, func() []byte { w.Install(nil); return good }())

	// Reasons that only end flows.
	for _, r := range []Reason{Finished, Idle, Replaced} {
		seen[r] = true
	}
	for r := range reasons {
		if !seen[r] {
			t.Errorf("no packet for %d, %q", r, r)
		}
		if s := r.String(); s == "" || strings.Contains(s, "unknown reason") {
			t.Errorf("reason %d has no name", r)
		}
	}
	if Reason(200).String() != "unknown reason" {
		t.Error("a reason that is none has a name")
	}
}

// TestConversation checks a connection of each protocol and family, in each direction, and packets that do not belong to it.
func TestConversation(t *testing.T) {
	for _, d := range []proto.Direction{proto.In, proto.Out} {
		for family, addrs := range map[string][2]netip.Addr{"IPv4": {v4(1), v4(2)}, "IPv6": {v6(1), v6(2)}} {
			t.Run(d.String()+" "+family, func(t *testing.T) {
				w := newWorld(t, func(r *Ruleset) { r.rule(d, everything...) })
				// We open and they answer; for In the roles are swapped.
				us, them := addrs[0], addrs[1]
				send, receive := w.wantOut, w.wantIn
				if d == proto.In {
					us, them, send, receive = them, us, w.wantIn, w.wantOut
				}
				receive(NoFlow, tcp(them, 22, us, 4000, synAck))
				send(Permitted, tcp(us, 4000, them, 22, syn))
				receive(Permitted, tcp(them, 22, us, 4000, synAck))
				send(Permitted, tcp(us, 4000, them, 22, ack))
				receive(NoFlow, tcp(them, 23, us, 4000, ack))
				receive(NoFlow, tcp(them, 22, us, 4001, ack))
				receive(NoRule, tcp(them, 22, us, 4000, syn))
				receive(Permitted, tcp(them, 22, us, 4000, fin))
				send(Permitted, tcp(us, 4000, them, 22, fin))

				receive(NoRule, udp(them, 53, us, 4000, 10))
				send(Permitted, udp(us, 4000, them, 53, 10))
				receive(Permitted, udp(them, 53, us, 4000, 10))
				receive(NoRule, udp(them, 54, us, 4000, 10))

				receive(NoRule, ported(proto.ProtoSCTP, them, 9, us, 4000))
				send(Permitted, ported(proto.ProtoSCTP, us, 4000, them, 9))
				receive(Permitted, ported(proto.ProtoSCTP, them, 9, us, 4000))

				receive(NoFlow, pong(them, us, 7))
				send(Permitted, ping(us, them, 7))
				receive(Permitted, pong(them, us, 7))
				receive(NoFlow, pong(them, us, 8))
				receive(NoRule, ping(them, us, 7))
				send(NoFlow, pong(us, them, 7))

				send(NoService, ported(proto.ProtoGRE, us, 0, them, 0))
			})
		}
	}
}

// TestUnnamedProtocols checks that protocols without a name pass by rules that name their number, and by no other.
func TestUnnamedProtocols(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, whole(proto.ProtoGRE), tcpPorts(443, 443)) })
	w.wantIn(Permitted, ported(proto.ProtoGRE, v4(2), 1, v4(1), 443))
	w.wantOut(Permitted, ported(proto.ProtoGRE, v4(1), 1, v4(2), 443))
	for _, protocol := range []uint8{proto.ProtoSCTP, proto.ProtoESP, 99, 255, proto.ProtoUDP} {
		w.wantIn(NoService, ported(protocol, v4(2), 1, v4(1), 443))
	}
	// An IPv6 packet of another protocol whose bytes look like TCP to port 443.
	pkt := tcp(v6(2), 4000, v6(1), 443, syn)
	pkt[6] = 99
	w.wantIn(NoService, pkt)
}

// TestMapped checks that IPv4-mapped addresses in an IPv6 header are refused. Judged as IPv4, an address that the engine lets a
// router of all IPv6 send from would be another node's.
func TestMapped(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) {
		r.rule(proto.In, tcpPorts(22, 22)).Local = ownPrefixes(r.Self)[1:] // IPv6 only
	})
	pkt := tcp(v6(2), 4000, v6(1), 22, syn)
	w.wantIn(Permitted, pkt)
	for i, a := range []netip.Addr{v4(2), v4(1)} {
		b := a.As16()
		copy(pkt[8+16*i:], b[:])
		w.wantIn(Reason(packet.MixedFamily), pkt)
	}
}

// TestPeersUseTheirOwnAddressesOnly checks that a peer cannot send as another one, whether or not that one has flows.
func TestPeersUseTheirOwnAddressesOnly(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, everything...); r.rule(proto.Out, everything...) })
	w.wantOut(Permitted, tcp(v4(1), 4000, v4(2), 22, syn))
	reply := tcp(v4(2), 22, v4(1), 4000, synAck)
	w.want(Spoofed, inFrom(w.Filter, 3, reply), reply)
	w.want(Permitted, inFrom(w.Filter, 2, reply), reply)
	data := tcp(v4(2), 22, v4(1), 4000, ack)
	w.want(Spoofed, inFrom(w.Filter, 3, data), data)
	opener := tcp(v4(2), 5000, v4(1), 22, syn)
	w.want(Spoofed, inFrom(w.Filter, 3, opener), opener)
	w.want(Spoofed, inFrom(w.Filter, 77, opener), opener)
	neighbour := udp(netip.MustParseAddr("100.64.0.99"), 1, v4(1), 2, 0)
	w.want(Spoofed, inFrom(w.Filter, 2, neighbour), neighbour)
	pieces := cut(udp(v4(2), 1, v4(1), 2, 100), 64, 5)
	w.want(Permitted, inFrom(w.Filter, 2, pieces[0]), pieces[0])
	w.want(Spoofed, inFrom(w.Filter, 3, pieces[1]), pieces[1])
}

// TestAddressChangesHands checks a flow whose peer's address belongs to another node in the next program.
func TestAddressChangesHands(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, everything...); r.rule(proto.Out, everything...) })
	w.wantIn(Permitted, tcp(v4(2), 4000, v4(1), 22, syn))
	w.wantIn(Permitted, udp(v4(2), 4000, v4(1), 53, 1))
	w.rules.Peers[0].ID = 1000
	w.rules.Sets[0].Members = append(w.rules.Sets[0].Members, 1000)
	w.install()
	w.wantIn(Revoked, tcp(v4(2), 4000, v4(1), 22, ack))
	w.wantIn(Revoked, udp(v4(2), 4000, v4(1), 53, 1))
	if _, toPeer := w.sweep(); len(toPeer) != 0 {
		t.Errorf("the address's new owner is sent %d resets", len(toPeer))
	}
	w.wantIn(NoFlow, tcp(v4(2), 4000, v4(1), 22, ack))
	w.wantIn(Permitted, udp(v4(2), 4000, v4(1), 53, 1))
}

func TestSynFromTheOtherSide(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.Out, tcpPorts(22, 22)); r.rule(proto.In, tcpPorts(5000, 5000)) })
	// From port 4000 to 22: the peer may not open the reverse connection.
	w.wantOut(Permitted, tcp(v4(1), 4000, v4(2), 22, syn))
	w.wantIn(NoService, tcp(v4(2), 22, v4(1), 4000, syn))
	w.wantIn(Permitted, tcp(v4(2), 22, v4(1), 4000, synAck))
	// From port 5000 it may: as a simultaneous open, or once the first connection is closed.
	w.wantOut(Permitted, tcp(v4(1), 5000, v4(2), 22, syn))
	w.wantIn(Permitted, tcp(v4(2), 22, v4(1), 5000, syn))
	w.wantOut(Permitted, tcp(v4(1), 5000, v4(2), 22, fin))
	w.wantIn(Permitted, tcp(v4(2), 22, v4(1), 5000, fin))
	w.records()
	w.wantIn(Permitted, tcp(v4(2), 22, v4(1), 5000, syn))
	if r := w.records(); len(r) != 2 || r[0].Kind != FlowEnd || r[0].Reason != Finished || r[1].Direction != proto.In {
		t.Errorf("%+v", r)
	}
}

// TestPortsAreUsedAgain checks that a closed connection can be followed by another from the same port before it times out.
func TestPortsAreUsedAgain(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.Out, tcpPorts(22, 22)) })
	for range 2 {
		w.wantOut(Permitted, tcp(v4(1), 4000, v4(2), 22, syn))
		w.wantIn(Permitted, tcp(v4(2), 22, v4(1), 4000, synAck))
		w.pass(time.Hour)
		w.wantIn(Permitted, tcp(v4(2), 22, v4(1), 4000, fin))
		w.wantOut(Permitted, tcp(v4(1), 4000, v4(2), 22, fin))
		w.wantIn(Permitted, tcp(v4(2), 22, v4(1), 4000, ack))
	}
	var got []Kind
	for _, r := range w.records() {
		got = append(got, r.Kind)
	}
	if want := []Kind{FlowStart, FlowEnd, FlowStart}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func TestTimeouts(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, append(everything, whole(proto.ProtoGRE))...) })
	for _, c := range []struct {
		name string
		open func()
		last []byte
		life time.Duration
		then Reason
	}{
		{"TCP opening", func() { w.wantIn(Permitted, tcp(v4(2), 1, v4(1), 22, syn)) }, tcp(v4(1), 22, v4(2), 1, synAck), time.Minute, NoFlow},
		{"TCP answered by its own side", func() {
			w.wantIn(Permitted, tcp(v4(2), 5, v4(1), 22, syn))
			w.wantIn(Permitted, tcp(v4(2), 5, v4(1), 22, synAck))
		}, tcp(v4(1), 22, v4(2), 5, synAck), time.Minute, NoFlow},
		{"TCP open", func() {
			w.wantIn(Permitted, tcp(v4(2), 2, v4(1), 22, syn))
			w.wantOut(Permitted, tcp(v4(1), 22, v4(2), 2, synAck))
		}, tcp(v4(1), 22, v4(2), 2, ack), 3 * time.Hour, NoFlow},
		{"TCP half closed", func() {
			w.wantIn(Permitted, tcp(v4(2), 3, v4(1), 22, syn))
			w.wantOut(Permitted, tcp(v4(1), 22, v4(2), 3, synAck))
			w.wantIn(Permitted, tcp(v4(2), 3, v4(1), 22, fin))
		}, tcp(v4(1), 22, v4(2), 3, ack), 3 * time.Hour, NoFlow},
		{"TCP reset", func() {
			w.wantIn(Permitted, tcp(v4(2), 4, v4(1), 22, syn))
			w.wantOut(Permitted, tcp(v4(1), 22, v4(2), 4, rst))
		}, tcp(v4(1), 22, v4(2), 4, ack), time.Minute, NoFlow},
		{"UDP opening", func() { w.wantIn(Permitted, udp(v4(2), 1, v4(1), 53, 0)) }, udp(v4(1), 53, v4(2), 1, 0), 30 * time.Second, NoRule},
		{"UDP open", func() {
			w.wantIn(Permitted, udp(v4(2), 2, v4(1), 53, 0))
			w.wantOut(Permitted, udp(v4(1), 53, v4(2), 2, 0))
		}, udp(v4(1), 53, v4(2), 2, 0), 3 * time.Minute, NoRule},
		{"echo", func() { w.wantIn(Permitted, ping(v4(2), v4(1), 9)) }, pong(v4(1), v4(2), 9), 30 * time.Second, NoFlow},
		{"GRE", func() { w.wantIn(Permitted, ported(proto.ProtoGRE, v4(2), 0, v4(1), 0)) }, ported(proto.ProtoGRE, v4(1), 0, v4(2), 0), 30 * time.Second, NoRule},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.TB = t
			for _, swept := range []bool{false, true} {
				c.open()
				flows := w.Counters().Flows
				w.now = w.now.Add(c.life)
				if w.tick(); swept {
					w.sweep()
					if w.Counters().Flows >= flows {
						t.Error("the sweep left it")
					}
				}
				w.wantOut(c.then, c.last)
			}
			c.open()
			w.pass(c.life - time.Second/10)
			w.wantOut(Permitted, c.last)
		})
	}
}

func TestMidstreamIsReset(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.Out, everything...) })
	pkt := segment(v4(1), 4000, v4(2), 22, ack, 5000, 7777, 100)
	v := w.wantOut(NoFlow, pkt)
	var p packet.Packet
	if reply := v.AppendReply(nil, pkt); packet.Parse(reply, &p) != packet.OK || p.Flags != rst || p.Seq != 7777 {
		t.Errorf("%x", reply)
	}
	if w.wantIn(NoFlow, tcp(v4(2), 22, v4(1), 4000, ack)).Refuse {
		t.Error("a peer is answered")
	}
}

func TestRefusalsAreBounded(t *testing.T) {
	w := newWorldOf(t, Config{Refusals: 10}, 1, func(*Ruleset) {})
	count := func() (n int) {
		for range 100 {
			if pkt := udp(v4(1), 1, v4(2), 2, 0); len(w.wantOut(NoRule, pkt).AppendReply(nil, pkt)) > 0 {
				n++
			}
		}
		return n
	}
	if n := count(); n != 10 {
		t.Errorf("%d answers at once", n)
	}
	w.pass(time.Second / 2)
	if n := count(); n != 5 {
		t.Errorf("%d answers after half a second", n)
	}
	w.pass(time.Hour)
	if n := count(); n != 10 {
		t.Errorf("%d answers after an hour", n)
	}
}

// TestFewRefusals checks that an allowance of less than one per tick is refilled however often the clock advances.
func TestFewRefusals(t *testing.T) {
	w := newWorldOf(t, Config{Refusals: 3}, 1, func(*Ruleset) {})
	n := 0
	for range 101 {
		for range 10 {
			if w.wantOut(NoRule, udp(v4(1), 1, v4(2), 2, 0)).Refuse {
				n++
			}
		}
		w.pass(time.Second / 10)
	}
	if n != 3+3*10 {
		t.Errorf("%d answers in ten seconds", n)
	}
}

// TestQuota fills all the room that one peer, and a port scan by this host, may take.
func TestQuota(t *testing.T) {
	w := newWorldOf(t, Config{MaxFlows: 1600, PerPeer: 400}, 3, func(r *Ruleset) {
		r.rule(proto.In, everything...)
		r.rule(proto.Out, everything...)
	})
	w.wantIn(Permitted, tcp(v4(3), 1, v4(1), 22, syn))
	w.wantOut(Permitted, tcp(v4(1), 22, v4(3), 1, synAck))
	flood := func(n int) {
		for i := range n {
			w.In(udp(v4(2), uint16(i), v4(1), uint16(i>>16), 0))
			w.In(tcp(v4(2), uint16(i), v4(1), uint16(i>>16), syn))
			w.Out(tcp(v4(1), uint16(i), v4(2), uint16(i>>16), syn))
		}
	}
	flood(20000)
	if c := w.Counters(); c.Flows > 401 {
		t.Errorf("%d flows", c.Flows)
	}
	w.wantIn(Permitted, tcp(v4(3), 1, v4(1), 22, ack))
	w.wantIn(Permitted, tcp(v4(3), 2, v4(1), 22, syn))
	// A peer can still open flows, at the cost of its own less valuable ones.
	passed := 0
	for i := range uint16(100) {
		if w.In(tcp(v4(2), i, v4(1), 9999, syn)).Pass {
			passed++
		}
	}
	if passed < 90 {
		t.Errorf("%d of 100 connections of a peer at its quota", passed)
	}
	// Its open TCP connections are never replaced by others.
	w.pass(time.Hour)
	var open []uint16
	for i := range uint16(400) {
		if w.In(tcp(v4(2), i, v4(1), 22, syn)).Pass {
			w.wantOut(Permitted, tcp(v4(1), 22, v4(2), i, synAck))
			open = append(open, i)
		}
	}
	flood(1000)
	for _, i := range open {
		w.wantIn(Permitted, tcp(v4(2), i, v4(1), 22, ack))
	}
	w.pass(4 * time.Hour)
	if got := w.Counters(); got.Flows != 0 || got.Started != got.Ended {
		t.Errorf("%d flows after all that, %d started, %d ended", got.Flows, got.Started, got.Ended)
	}
	for _, p := range w.current.Load().peers {
		if n := p.flows.Load(); n != 0 {
			t.Errorf("node %v counts %d flows", p.id, n)
		}
	}
}

// TestServedRoutes checks rules about addresses behind this node.
func TestServedRoutes(t *testing.T) {
	route := netip.MustParsePrefix("10.33.0.0/16")
	inner := netip.MustParsePrefix("10.33.7.0/24")
	w := newWorld(t, func(r *Ruleset) {
		r.rule(proto.In, tcpPorts(22, 22)).Local = []netip.Prefix{route}
		r.rule(proto.In, tcpPorts(80, 80)).Local = []netip.Prefix{inner}
		r.rule(proto.In, tcpPorts(443, 443)).Local = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
		r.rule(proto.Out, tcpPorts(1, 65535)).Local = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	})
	at, deep, far := netip.MustParseAddr("10.33.1.1"), netip.MustParseAddr("10.33.7.1"), netip.MustParseAddr("192.0.2.1")
	w.wantIn(Permitted, tcp(v4(2), 1, at, 22, syn))
	w.wantOut(Permitted, tcp(at, 22, v4(2), 1, synAck))
	w.wantIn(NoService, tcp(v4(2), 1, at, 80, syn))
	w.wantIn(Permitted, tcp(v4(2), 1, deep, 80, syn))
	w.wantIn(Permitted, tcp(v4(2), 1, deep, 22, syn))
	w.wantIn(Permitted, tcp(v4(2), 1, far, 443, syn))
	w.wantIn(NoService, tcp(v4(2), 1, far, 22, syn))
	w.wantIn(Permitted, tcp(v4(2), 1, v4(1), 443, syn))
	w.wantIn(NoService, tcp(v4(2), 1, v4(1), 22, syn))
	w.wantIn(ForeignDestination, tcp(v4(2), 1, v4(3), 443, syn)) // overlay addresses of others are never behind us
	w.wantOut(ForeignSource, tcp(at, 1, v4(2), 22, syn))
	w.reinstall(func(r *Ruleset) { r.rule(proto.In, tcpPorts(443, 443)) })
	w.wantOut(Revoked, tcp(at, 22, v4(2), 1, ack))
}
