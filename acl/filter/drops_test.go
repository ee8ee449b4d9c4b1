package filter

import (
	"maps"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// peerDrops collects the counters of dropped packets by peer.
func (w *world) peerDrops() map[proto.NodeID]Drops {
	got := map[proto.NodeID]Drops{}
	for id, d := range w.PeerDrops {
		got[id] = *d
	}
	return got
}

// TestDropsArePeers checks which peer each dropped packet is counted for: never one that a packet only claims to be from.
func TestDropsArePeers(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, udpPorts(53, 53)) })
	w.wantIn(NoService, udp(v4(2), 4000, v4(1), 54, 8))
	w.wantOut(NoRule, udp(v4(1), 4000, v4(3), 53, 8))
	w.wantIn(ICMPUnrelated, unreachable(v4(2), v4(1), udp(v4(1), 53, v4(2), 4000, 0)))
	w.wantIn(FragmentUnknown, cut(udp(v4(2), 4000, v4(1), 53, 40), 16, 1)[1])
	w.want(BadSegments, w.OutSegments(tcp(v4(1), 1, v4(2), 2, syn), 3), nil)
	w.want(Spoofed, inFrom(w.Filter, 3, udp(v4(2), 4000, v4(1), 53, 8)), nil)
	w.wantIn(UnknownPeer, udp(v4(99), 4000, v4(1), 53, 8))
	w.wantIn(Reason(packet.Truncated), []byte{0x45})
	want := map[proto.NodeID]Drops{
		2: {NoService: 1, ICMPUnrelated: 1, FragmentUnknown: 1, BadSegments: 3},
		3: {NoRule: 1},
	}
	if got := w.peerDrops(); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	w.install() // counters survive a new program
	if got := w.peerDrops(); !maps.Equal(got, want) {
		t.Errorf("after another install %v, want %v", got, want)
	}
	w.rules.Peers = w.rules.Peers[1:]
	w.install()
	delete(want, 2)
	if got := w.peerDrops(); !maps.Equal(got, want) {
		t.Errorf("without one of them %v, want %v", got, want)
	}
	for range w.PeerDrops {
		break
	}
}
