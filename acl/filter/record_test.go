package filter

import (
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/redoubt-mesh/redoubt/proto"
)

func TestRecords(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) {
		r.Peers[0].User = proto.User{Issuer: "i", Subject: "s", Name: "ann@example.com"}
		r.rule(proto.In, tcpPorts(80, 90))
		r.rule(proto.In, tcpPorts(22, 22))
	})
	open := segment(v4(2), 4000, v4(1), 22, syn, 1, 0, 0)
	answer := segment(v4(1), 22, v4(2), 4000, synAck, 1, 2, 0)
	w.wantIn(Permitted, open)
	w.wantOut(Permitted, answer)
	denied := w.wantIn(NoService, tcp(v4(2), 4000, v4(1), 23, syn))
	if rule, ok := denied.Rule(); !ok || rule.Path != "in[1]" {
		t.Errorf("nearest rule %v", rule)
	}
	w.wantIn(UnknownPeer, udp(v6(99), 5, v6(1), 6, 0))
	w.pass(time.Minute)
	w.wantIn(Permitted, segment(v4(2), 4000, v4(1), 22, ack, 2, 2, 100))
	allowed := w.rules.Version
	w.reinstall(func(*Ruleset) {})
	w.sweep()

	self := Party{1, "node1", "tag:t1"}
	ann := Party{2, "node2", "ann@example.com"}
	local, remote := netip.AddrPortFrom(v4(1), 22), netip.AddrPortFrom(v4(2), 4000)
	ssh := proto.Origin{Path: "in[1]", Line: 2}
	want := []Record{
		{
			Kind: FlowStart, Direction: proto.In, Rule: ssh, Version: allowed, Self: self, Peer: ann,
			Local: local, Remote: remote, Proto: proto.ProtoTCP,
		},
		{
			Kind: FlowEnd, Direction: proto.In, Reason: Revoked, Rule: ssh, Version: w.rules.Version,
			Self: self, Peer: ann, Local: local, Remote: remote, Proto: proto.ProtoTCP,
			Out: Traffic{1, 40}, In: Traffic{2, 180}, Duration: time.Minute,
		},
		{
			Kind: Denied, Direction: proto.In, Reason: NoService, Near: ssh, Version: allowed, Self: self, Peer: ann,
			Local: netip.AddrPortFrom(v4(1), 23), Remote: remote, Proto: proto.ProtoTCP,
		},
		{
			Kind: Denied, Direction: proto.In, Reason: UnknownPeer, Version: allowed, Self: self,
			Local: netip.AddrPortFrom(v6(1), 6), Remote: netip.AddrPortFrom(v6(99), 5), Proto: proto.ProtoUDP,
		},
	}
	order := cmpopts.SortSlices(func(a, b Record) bool {
		if a.Kind != b.Kind {
			return a.Kind < b.Kind
		}
		return a.Reason > b.Reason
	})
	if d := cmp.Diff(want, w.records(), order, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Error(d)
	}
	if len(w.records()) != 0 {
		t.Error("records twice")
	}
	for kind, name := range map[Kind]string{FlowStart: "start", FlowEnd: "end", Denied: "denied", 0: "?"} {
		if kind.String() != name {
			t.Errorf("%v", kind)
		}
	}
}

// TestRecordsAreBounded fills the rings and checks that denials leave room for flows, and that lost records are counted.
func TestRecordsAreBounded(t *testing.T) {
	w := newWorldOf(t, Config{Records: leastRing * shardCount}, 1, func(r *Ruleset) { r.rule(proto.In, udpPorts(53, 53)) })
	const many = 20000
	for i := range uint16(many) {
		w.wantIn(NoService, udp(v4(2), i, v4(1), 54, 0))
	}
	for i := range uint16(many) {
		w.wantIn(Permitted, udp(v4(2), i, v4(1), 53, 0))
	}
	got := map[Kind]int{}
	for _, r := range w.records() {
		got[r.Kind]++
	}
	want := map[Kind]int{Denied: leastRing * 3 / 4 * shardCount, FlowStart: leastRing / 4 * shardCount}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	c := w.Counters()
	if lost := c.RecordsLost; lost != 2*many-leastRing*shardCount {
		t.Errorf("%d lost", lost)
	}
	if c.Dropped[NoService] != many || c.In.Packets != many || c.In.Bytes != many*28 || c.Out.Packets != 0 || c.Started != many {
		t.Errorf("%+v", c)
	}
	c.Dropped.Each(func(r Reason, n uint64) bool {
		if r != NoService || n != many {
			t.Errorf("%v %d", r, n)
		}
		return true
	})
}

func TestMulticastIsNotRecorded(t *testing.T) {
	w := newWorld(t, func(*Ruleset) {})
	for range 3 {
		if w.wantOut(Multicast, udp(v4(1), 5353, netip.MustParseAddr("224.0.0.251"), 5353, 0)).Refuse {
			t.Error("refused aloud")
		}
	}
	if n := len(w.records()); n != 0 || w.Counters().Dropped[Multicast] != 3 {
		t.Errorf("%d records", n)
	}
}
