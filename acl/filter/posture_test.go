package filter

import (
	"testing"

	"github.com/redoubt-mesh/redoubt/proto"
)

// postures opens a flow to and from each peer, in both families, and returns the postures in the records of these flows.
func (w *world) postures(port uint16) map[proto.NodeID]map[proto.Direction]Posture {
	w.Helper()
	for id := 2; id <= 4; id++ {
		w.wantIn(Permitted, udp(v4(id), port, v4(1), 53, 0))
		w.wantIn(Permitted, udp(v6(id), port, v6(1), 53, 0))
		w.wantOut(Permitted, udp(v4(1), port, v4(id), 53, 0))
		w.wantOut(Permitted, udp(v6(1), port, v6(id), 53, 0))
	}
	all := map[proto.NodeID]map[proto.Direction]Posture{}
	for _, r := range w.records() {
		if r.Kind != FlowStart {
			continue
		}
		of := all[r.Peer.ID]
		if of == nil {
			of = map[proto.Direction]Posture{}
			all[r.Peer.ID] = of
		}
		if before, twice := of[r.Direction]; twice && before != r.Posture {
			w.Errorf("peer %v, %v: %v and %v by one address and the other", r.Peer.ID, r.Direction, before, r.Posture)
		}
		of[r.Direction] = r.Posture
	}
	return all
}

// TestPostureOfRecords checks that a record's digest depends on the posture verdicts that held, and on nothing else.
func TestPostureOfRecords(t *testing.T) {
	rules := func(r *Ruleset) {
		r.rule(proto.In, udpPorts(53, 53))
		r.rule(proto.Out, udpPorts(53, 53))
	}
	healthy := func(members ...proto.NodeID) func(*Ruleset) {
		return func(r *Ruleset) {
			rules(r)
			r.Sets = append(r.Sets[:1:1], proto.Set{Name: "healthy", Members: members, Conditional: true})
			r.rule(proto.In, udpPorts(53, 53)).Peers = proto.Selector{Sets: []string{"healthy"}}
		}
	}
	none := Posture{}

	w := newWorld(t, rules)
	for peer, of := range w.postures(1000) {
		if of[proto.In] != none || of[proto.Out] != none {
			t.Errorf("peer %v: %v without any condition", peer, of)
		}
	}

	w.reinstall(healthy(2, 3))
	first := w.postures(1001)
	if first[2][proto.In] == none || first[2][proto.In] != first[3][proto.In] || first[4][proto.In] != none {
		t.Errorf("of peers 2 and 3, which are healthy, and 4, which is not: %v", first)
	}
	if first[2][proto.Out] != none {
		t.Errorf("out: %v, though the condition is about what comes in", first[2])
	}

	w.reinstall(func(r *Ruleset) {
		healthy(3, 4)(r)
		r.rule(proto.In, tcpPorts(1, 9)) // has no condition
	})
	then := w.postures(1002)
	if then[2][proto.In] != none || then[3][proto.In] != first[3][proto.In] || then[4][proto.In] != first[2][proto.In] {
		t.Errorf("after 2 left and 4 came: %v, before %v", then, first)
	}

	w.reinstall(func(r *Ruleset) {
		healthy(2)(r)
		own := r.rule(proto.Out, udpPorts(53, 53))
		own.Key, own.Conditional = "own", true
	})
	own := w.postures(1003)
	if d := own[2][proto.Out]; d == none || d == first[2][proto.In] || d != own[4][proto.Out] {
		t.Errorf("with a rule that asks something of this node itself: %v", own)
	}
}
