package filter

import (
	"slices"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// TestSegments checks that a packet of many segments is counted, and its flow reset, exactly as the single packets would be.
func TestSegments(t *testing.T) {
	rules := func(r *Ruleset) { r.rule(proto.In, everything...); r.rule(proto.Out, everything...) }
	whole, single := newWorld(t, rules), newWorld(t, rules)
	both := []*world{whole, single}
	const segments, size = 10, 1000
	for _, w := range both {
		w.wantOut(Permitted, segment(v4(1), 4000, v4(2), 22, syn, 99, 0, 0))
		w.wantIn(Permitted, segment(v4(2), 22, v4(1), 4000, synAck, 499, 100, 0))
	}
	const last = (segments-1)*size + 300 // the last one is shorter
	out := segment(v4(1), 4000, v4(2), 22, ack, 100, 500, last)
	datagrams := udp(v6(1), 4000, v6(2), 53, segments*size)
	whole.want(Permitted, whole.OutSegments(out, segments), out)
	whole.want(Permitted, whole.OutSegments(datagrams, segments), datagrams)
	for at := 0; at < last; at += size {
		n := min(size, last-at)
		single.wantOut(Permitted, segment(v4(1), 4000, v4(2), 22, ack, 100+uint32(at), 500, n))
		single.wantOut(Permitted, udp(v6(1), 4000, v6(2), 53, size))
	}
	if got, want := whole.Counters(), single.Counters(); got != want {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	seen := [2]map[string]bool{}
	for i, w := range both {
		w.reinstall(func(*Ruleset) {})
		toLocal, toPeer := w.sweep()
		seen[i] = map[string]bool{}
		for _, b := range append(toLocal, toPeer...) {
			seen[i][string(b)] = true
		}
	}
	if len(seen[0]) == 0 || len(seen[0]) != len(seen[1]) {
		t.Fatalf("%d resets, want %d", len(seen[0]), len(seen[1]))
	}
	for b := range seen[0] {
		if !seen[1][b] {
			t.Errorf("reset %x is none of the segments'", b)
		}
	}
	ends := [2]map[uint8]Record{{}, {}} // by protocol
	for i, w := range both {
		for _, r := range w.records() {
			if r.Kind == FlowEnd {
				ends[i][r.Proto] = r
			}
		}
	}
	for protocol, want := range ends[1] {
		if got := ends[0][protocol]; got.Out != want.Out || got.In != want.In {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}

// TestRowsAreFollowed checks that packets of a connection in batches are tracked exactly as single ones: the resets at its end
// are the same.
func TestRowsAreFollowed(t *testing.T) {
	rules := func(r *Ruleset) { r.rule(proto.Out, everything...) }
	alone, rows := newWorld(t, rules), newWorld(t, rules)
	out, in := [][]byte{}, [][]byte{}
	for i := range 5 {
		out = append(out, segment(v4(1), 4000, v4(2), 22, ack, uint32(100+1000*i), uint32(500+100*i), 1000))
		in = append(in, segment(v4(2), 22, v4(1), 4000, ack, uint32(500+100*i), uint32(100+900*i), 100))
	}
	out[1], out[3] = out[3], out[1] // late packets move nothing back
	in[1], in[4] = in[4], in[1]
	sizes, verdicts := make([]int, len(out)), make([]Verdict, len(out))
	for _, w := range []*world{alone, rows} {
		w.wantOut(Permitted, segment(v4(1), 4000, v4(2), 22, syn, 99, 0, 0))
		w.wantIn(Permitted, segment(v4(2), 22, v4(1), 4000, synAck, 499, 100, 0))
	}
	for i := range out {
		alone.wantOut(Permitted, out[i])
		alone.wantIn(Permitted, in[i])
		sizes[i] = len(out[i])
	}
	rows.OutBatch(out, sizes, 0, verdicts)
	rows.InBatch(2, in, 0, verdicts)
	var resets [2][]string
	for i, w := range []*world{alone, rows} {
		w.reinstall(func(*Ruleset) {})
		toLocal, toPeer := w.sweep()
		for _, b := range append(toLocal, toPeer...) {
			resets[i] = append(resets[i], string(b))
		}
	}
	if len(resets[0]) < 3 || !slices.Equal(resets[0], resets[1]) {
		t.Errorf("resets %x, want %x", resets[1], resets[0])
	}
	if got, want := rows.Counters(), alone.Counters(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestSegmentsAreJudged checks packets of many segments that may not pass, and some that nobody can segment.
func TestSegmentsAreJudged(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.Out, append(everything, whole(proto.ProtoGRE))...) })
	dropped := func(want Reason, pkt []byte) {
		t.Helper()
		before := w.Counters().Dropped[want]
		w.want(want, w.OutSegments(pkt, 3), pkt)
		if n := w.Counters().Dropped[want] - before; n != 3 {
			t.Errorf("%s: counted %d times", describe(pkt), n)
		}
	}
	data := segment(v4(1), 4000, v4(2), 22, ack, 1, 1, 3000)
	dropped(NoFlow, data)
	w.wantOut(Permitted, tcp(v4(1), 4000, v4(2), 22, syn))
	w.want(Permitted, w.OutSegments(data, 3), data)
	dropped(ForeignSource, segment(v4(3), 4000, v4(2), 22, ack, 1, 1, 3000))
	dropped(Reason(packet.Truncated), data[:1000])
	dropped(BadSegments, segment(v4(1), 4000, v4(2), 22, syn, 1, 1, 3000))
	dropped(BadSegments, segment(v4(1), 4000, v4(2), 22, rst, 1, 1, 3000))
	dropped(BadSegments, lengthen(ping(v4(1), v4(2), 7), 3000))
	dropped(BadSegments, ported(proto.ProtoSCTP, v4(1), 1, v4(2), 2))
	dropped(BadSegments, ported(proto.ProtoGRE, v4(1), 1, v4(2), 2))
	dropped(BadSegments, unreachable(v4(1), v4(2), data))
	for _, piece := range cut(udp(v6(1), 1, v6(2), 2, 3000), 1000, 1) {
		dropped(BadSegments, piece)
	}
	w.Install(nil)
	datagram := udp(v4(1), 1, v4(2), 2, 3000)
	dropped(Closed, datagram)

	// One segment, or none, is a packet like any other.
	for _, n := range []int{1, 0, -1} {
		before := w.Counters().Dropped[Closed]
		if w.OutSegments(datagram, n); w.Counters().Dropped[Closed] != before+1 {
			t.Errorf("%d segments", n)
		}
	}
}
