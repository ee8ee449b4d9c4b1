package filter

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

func parse(tb testing.TB, b []byte) packet.Packet {
	tb.Helper()
	var p packet.Packet
	if fault := packet.Parse(b, &p); fault != packet.OK {
		tb.Fatalf("%v: %x", fault, b)
	}
	return p
}

// TestPolicyKillsFlows opens flows of each protocol, half of which a new policy still permits.
func TestPolicyKillsFlows(t *testing.T) {
	for family, a := range map[string][2]netip.Addr{"IPv4": {v4(1), v4(2)}, "IPv6": {v6(1), v6(2)}} {
		t.Run(family, func(t *testing.T) {
			us, them := a[0], a[1]
			w := newWorld(t, func(r *Ruleset) {
				r.rule(proto.In, tcpPorts(22, 23), udpPorts(53, 54), whole(proto.ProtoICMP), whole(proto.ProtoICMPv6))
				r.rule(proto.Out, tcpPorts(443, 443), udpPorts(123, 123), whole(proto.ProtoICMP), whole(proto.ProtoICMPv6))
			})
			w.wantIn(Permitted, segment(them, 4000, us, 22, syn, 100, 0, 0))
			w.wantOut(Permitted, segment(us, 22, them, 4000, synAck, 900, 101, 0))
			w.wantIn(Permitted, segment(them, 4000, us, 22, ack, 101, 901, 50))
			w.wantOut(Permitted, segment(us, 22, them, 4000, ack, 901, 151, 0))
			w.wantIn(Permitted, tcp(them, 4000, us, 23, syn))
			w.wantIn(Permitted, udp(them, 4000, us, 53, 0))
			w.wantIn(Permitted, udp(them, 4000, us, 54, 0))
			w.wantIn(Permitted, ping(them, us, 5))
			w.wantOut(Permitted, ping(us, them, 5))
			w.wantOut(Permitted, segment(us, 6000, them, 443, syn, 7, 0, 0))
			w.wantOut(Permitted, udp(us, 6000, them, 123, 0))

			w.reinstall(func(r *Ruleset) {
				r.rule(proto.In, tcpPorts(23, 23), udpPorts(54, 54))
				r.rule(proto.Out, everything[0], everything[1]) // permits what we open, not replies to what they opened
			})
			if v := w.wantOut(Revoked, segment(us, 22, them, 4000, ack, 901, 151, 10)); !v.Refuse {
				t.Error("the host is left waiting")
			}
			w.wantIn(Revoked, segment(them, 4000, us, 22, ack, 151, 901, 0))
			w.wantIn(Revoked, tcp(them, 4000, us, 22, syn))
			w.wantIn(Permitted, tcp(them, 4000, us, 23, ack))
			w.wantIn(Revoked, udp(them, 4000, us, 53, 0))
			w.wantIn(Permitted, udp(them, 4000, us, 54, 0))

			// A policy that permits it again does not revive a dead flow.
			before := w.rules.Rules
			w.reinstall(func(r *Ruleset) { r.rule(proto.In, everything...) })
			for range 3 {
				w.wantIn(Revoked, segment(them, 4000, us, 22, ack, 151, 901, 0))
			}
			w.rules.Rules = before
			w.install()

			toLocal, toPeer := w.sweep()
			if len(toLocal) != 3 || len(toPeer) != 1 {
				t.Fatalf("%d resets for us, %d for them", len(toLocal), len(toPeer))
			}
			if p := parse(t, toPeer[0]); p.Dst.Netip() != them || p.SrcPort != 22 || p.DstPort != 4000 || p.Seq != 901 || p.Flags&rst == 0 {
				t.Errorf("for them %+v", p)
			}
			quoted := map[uint8]int{}
			for _, b := range toLocal {
				var q packet.Packet
				switch p := parse(t, b); {
				case p.Src.Netip() != them || p.Dst.Netip() != us:
					t.Errorf("%v > %v", p.Src, p.Dst)
				case p.Proto == proto.ProtoTCP && (p.Flags&rst == 0 || p.Seq != 151 || p.SrcPort != 4000 || p.DstPort != 22):
					t.Errorf("for us %+v", p)
				case p.Proto != proto.ProtoTCP && (!p.IsError() || p.Quoted(b, &q) != packet.OK || q.Src.Netip() != us || q.Dst.Netip() != them):
					t.Errorf("for us %+v", p)
				default:
					quoted[q.Proto]++
				}
			}
			if quoted[proto.ProtoUDP] != 1 || quoted[proto.ProtoICMP]+quoted[proto.ProtoICMPv6] != 1 {
				t.Errorf("quotes %v", quoted)
			}
			w.wantIn(NoFlow, segment(them, 4000, us, 22, ack, 151, 901, 0))
			if again, _ := w.sweep(); len(again) != 0 {
				t.Error("resets twice")
			}
		})
	}
}

func TestFlowOfPeerThatIsGone(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, everything...) })
	w.wantIn(Permitted, tcp(v4(2), 4000, v4(1), 22, syn))
	w.wantIn(Permitted, udp(v4(3), 4000, v4(1), 53, 0))
	w.rules.Peers = w.rules.Peers[1:]
	w.install()
	w.wantIn(UnknownPeer, tcp(v4(2), 4001, v4(1), 22, syn))
	w.wantIn(Revoked, tcp(v4(2), 4000, v4(1), 22, ack))
	w.wantIn(Permitted, udp(v4(3), 4000, v4(1), 53, 0))
	if toLocal, toPeer := w.sweep(); len(toLocal) != 1 || len(toPeer) != 0 {
		t.Errorf("%d resets for us, %d for them", len(toLocal), len(toPeer))
	}
	// The peer comes back: its old flow is gone, but it can open others.
	w.rules.Peers = append(w.rules.Peers, testNode(2))
	w.install()
	w.wantIn(NoFlow, tcp(v4(2), 4000, v4(1), 22, ack))
	w.wantIn(Permitted, tcp(v4(2), 4000, v4(1), 22, syn))
}

// TestDeadFlowsAreNotJustIdle checks a flow that dies and stays silent until long after it would have expired.
func TestDeadFlowsAreNotJustIdle(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, everything...) })
	w.wantIn(Permitted, tcp(v4(2), 4000, v4(1), 22, syn))
	w.reinstall(func(*Ruleset) {})
	w.wantIn(Revoked, tcp(v4(2), 4000, v4(1), 22, ack))
	w.now = w.now.Add(24 * time.Hour)
	if toLocal, toPeer := w.sweep(); len(toLocal) != 1 || len(toPeer) != 1 {
		t.Errorf("%d resets for us, %d for them", len(toLocal), len(toPeer))
	}
	if r := w.records(); len(r) != 3 || r[1].Reason != Revoked || r[2].Kind != Denied {
		t.Errorf("%+v", r)
	}
	if c := w.Counters(); c.Started != 1 || c.Ended != 1 {
		t.Errorf("%+v", c)
	}
}

func TestStopKillsFlows(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.Out, everything...) })
	w.wantOut(Permitted, tcp(v4(1), 4000, v4(2), 22, syn))
	w.Install(nil)
	toLocal, toPeer := w.sweep()
	if len(toLocal) != 1 || len(toPeer) != 0 {
		t.Fatalf("%d resets for us, %d for them", len(toLocal), len(toPeer))
	}
	if p := parse(t, toLocal[0]); p.Flags != rst|ack || p.Ack != 1001 {
		t.Errorf("%+v", p) // what a host that has sent a SYN accepts
	}
}

// TestSweepInSteps checks a sweep of few entries per call, with programs installed in between.
func TestSweepInSteps(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, everything...) })
	for i := range uint16(3000) {
		w.wantIn(Permitted, udp(v4(2), i, v4(1), 53, 0))
	}
	resets, calls := 0, 0
	step := func() bool { calls++; return w.Sweep(100, func(Reset) { resets++ }) }
	w.install()
	for range 10 {
		if step() {
			t.Fatal("done too soon")
		}
	}
	w.reinstall(func(*Ruleset) {}) // entries already visited must be visited again
	for !step() {
		if calls > 100 {
			t.Fatal("never done")
		}
	}
	if resets != 3000 || w.Counters().Flows != 0 {
		t.Errorf("%d resets, %d flows left", resets, w.Counters().Flows)
	}
	if !step() {
		t.Error("done, and then not")
	}
}

// host is one end of a TCP connection, as far as resets are concerned.
type host struct {
	addr    netip.Addr
	port    uint16
	sent    uint32            // next sequence number to send
	expects uint32            // RCV.NXT
	waiting map[uint32]uint32 // out-of-order segments: start, end
	unacked []queued
}

type queued struct {
	seq uint32
	n   int
}

// receive handles a segment and reports whether something before it is missing, so that the host acknowledges at once.
func (h *host) receive(seq uint32, n int) (gap bool) {
	if h.waiting == nil {
		h.waiting = map[uint32]uint32{}
	}
	h.waiting[seq] = seq + uint32(n)
	for again := true; again; {
		again = false
		for s, e := range h.waiting {
			if int32(s-h.expects) <= 0 {
				if int32(e-h.expects) > 0 {
					h.expects = e
				}
				delete(h.waiting, s)
				again = true
			}
		}
	}
	return len(h.waiting) > 0
}

// connect lets a host open a connection to another, which may be one more from the same port.
func (w *world) connect(rt *rapid.T, from, to *host) {
	for _, h := range []*host{from, to} {
		h.sent, h.waiting, h.unacked = rapid.Uint32().Draw(rt, "initial sequence number"), nil, nil
	}
	w.wantIn(Permitted, segment(from.addr, from.port, to.addr, to.port, syn, from.sent, 0, 0))
	from.sent++
	to.expects = from.sent
	w.wantOut(Permitted, segment(to.addr, to.port, from.addr, from.port, synAck, to.sent, to.expects, 0))
	to.sent++
	from.expects = to.sent
	w.wantIn(Permitted, segment(from.addr, from.port, to.addr, to.port, ack, from.sent, from.expects, 0))
}

// converse lets two connected hosts communicate over a network that loses and reorders what the filter passed. It reports whether
// they have not received something that we sent.
func (w *world) converse(rt *rapid.T, us, them *host) (lost bool) {
	for range rapid.IntRange(0, 30).Draw(rt, "segments") {
		n := rapid.IntRange(0, 1400).Draw(rt, "bytes")
		if rapid.Bool().Draw(rt, "from them") {
			q := queued{them.sent, n}
			if len(them.unacked) > 0 && rapid.Bool().Draw(rt, "again") { // lost before it reached the filter
				q, them.unacked = them.unacked[0], them.unacked[1:]
			} else if them.sent += uint32(n); rapid.IntRange(0, 3).Draw(rt, "lost before us") == 0 {
				them.unacked = append(them.unacked, q)
				continue
			}
			w.wantIn(Permitted, segment(them.addr, them.port, us.addr, us.port, ack, q.seq, them.expects, q.n))
			if us.receive(q.seq, q.n) {
				w.wantOut(Permitted, segment(us.addr, us.port, them.addr, them.port, ack, us.sent, us.expects, 0))
			}
			continue
		}
		w.wantOut(Permitted, segment(us.addr, us.port, them.addr, them.port, ack, us.sent, us.expects, n))
		seq := us.sent
		us.sent += uint32(n)
		if n > 0 && rapid.IntRange(0, 3).Draw(rt, "lost after us") == 0 {
			lost = true
			continue
		}
		them.receive(seq, n)
	}
	return lost
}

// TestResetsAreExact lets two hosts communicate, sometimes anew after both forgot their connection. When the flow dies, the local
// host must get a reset with exactly the sequence number that it expects; so must the peer, unless data is on its way to it.
func TestResetsAreExact(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, everything...) })
		us, them := &host{addr: v4(1), port: 22}, &host{addr: v4(2), port: 4000}
		lost := false
		for range rapid.IntRange(1, 2).Draw(rt, "connections") {
			w.connect(rt, them, us)
			lost = w.converse(rt, us, them)
		}

		w.reinstall(func(*Ruleset) {})
		toLocal, toPeer := w.sweep()
		hit := func(to *host, packets [][]byte) bool {
			for _, b := range packets {
				if p := parse(t, b); p.Flags&rst != 0 && p.Seq == to.expects && p.DstPort == to.port {
					return true
				}
			}
			return false
		}
		if !hit(us, toLocal) {
			rt.Fatalf("we expect %d, resets %v", us.expects, seqs(t, toLocal))
		}
		if !lost && !hit(them, toPeer) {
			rt.Fatalf("they expect %d, resets %v", them.expects, seqs(t, toPeer))
		}
	})
}

func seqs(tb testing.TB, packets [][]byte) (out []uint32) {
	for _, b := range packets {
		out = append(out, parse(tb, b).Seq)
	}
	return out
}

func TestSweepMovesTheClock(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, everything...) })
	w.wantIn(Permitted, udp(v4(2), 1, v4(1), 53, 0))
	w.pass(10 * time.Second)
	w.wantOut(Permitted, udp(v4(1), 53, v4(2), 1, 0))
	w.pass(time.Hour)
	r := w.records()
	if len(r) != 2 || r[1].Duration != time.Hour+10*time.Second {
		t.Errorf("%+v", r)
	}
}
