package filter

import (
	"testing"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// TestJoinedIsCountedAsMany: a super-packet counts as the packets that become of it.
func TestJoinedIsCountedAsMany(t *testing.T) {
	permit := func(r *Ruleset) { r.rule(proto.Out, tcpPorts(80, 80), udpPorts(80, 80)) }
	one, many := newWorld(t, permit), newWorld(t, permit)
	const count, size, header = 5, 100, 28
	joined := udp(v4(1), 1000, v4(2), 80, count*size)
	for range 2 { // the one that opens the flow, and one of the flow
		if v := one.OutJoined(joined, count, header); !v.Pass {
			t.Fatalf("refused: %v", v.Reason)
		}
		for range count {
			many.wantOut(Permitted, udp(v4(1), 1000, v4(2), 80, size))
		}
	}
	if a, b := one.Counters().Out, many.Counters().Out; a != b || a.Packets != 2*count {
		t.Errorf("counted %+v, want %+v", a, b)
	}
	a, b := flowsOf(one), flowsOf(many)
	if len(a) != 1 || len(b) != 1 || a[0].sent != b[0].sent {
		t.Errorf("the flow counted %+v, want %+v", a, b)
	}
	if v := one.OutJoined(udp(v4(1), 1000, v4(2), 81, count*size), count, header); v.Pass || v.Reason == Permitted {
		t.Errorf("passed: %+v", v)
	} else if n := one.Counters().Dropped[v.Reason]; n != count {
		t.Errorf("%d packets were dropped, want %d", n, count)
	}
	if v := one.OutJoined([]byte{0x45}, count, header); v.Pass {
		t.Error("half a header passed")
	}
}

// TestJoinedSegmentsMoveTheSequence: a reset has to hit the end of what a super-packet sent.
func TestJoinedSegmentsMoveTheSequence(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.Out, tcpPorts(80, 80)) })
	w.wantOut(Permitted, segment(v4(1), 1000, v4(2), 80, packet.SYN, 100, 0, 0))
	w.wantIn(Permitted, segment(v4(2), 80, v4(1), 1000, packet.SYN|packet.ACK, 900, 101, 0))
	if v := w.OutJoined(segment(v4(1), 1000, v4(2), 80, packet.ACK, 101, 901, 5000), 5, 40); !v.Pass {
		t.Fatalf("refused: %v", v.Reason)
	}
	if f := flowsOf(w); len(f) != 1 || f[0].sent[local].next != 5101 || f[0].sent[local].packets != 6 {
		t.Errorf("the flow is %+v", f)
	}
}

// flowsOf are copies of all flows.
func flowsOf(w *world) (out []flow) {
	for i := range w.shards {
		s := &w.shards[i]
		for n := range s.used {
			if fl := s.at(n); fl.state != vacant {
				out = append(out, *fl)
			}
		}
	}
	return out
}

func TestJoinedDoesNotAllocate(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.Out, udpPorts(80, 80)) })
	pkt := udp(v4(1), 1000, v4(2), 80, 5000)
	if n := testing.AllocsPerRun(100, func() { w.OutJoined(pkt, 50, 28) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}
