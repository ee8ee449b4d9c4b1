package filter

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// restart saves a world's flows and returns another world, some time later and with the rules of edit, that restored them.
func restart(t *testing.T, w *world, later time.Duration, edit func(*Ruleset)) (*world, int) {
	t.Helper()
	saved := w.AppendFlows([]byte("before"), w.now)
	if string(saved[:6]) != "before" {
		t.Fatal("what was there is gone")
	}
	next := newWorldOf(t, Config{PerPeer: 100}, 3, edit)
	n, err := next.RestoreFlows(saved[6:], w.now.Add(later))
	if err != nil {
		t.Fatal(err)
	}
	return next, n
}

func TestFlowsOutliveTheProgram(t *testing.T) {
	rules := func(r *Ruleset) {
		r.rule(proto.In, tcpPorts(22, 23), udpPorts(53, 53))
		r.rule(proto.Out, whole(proto.ProtoICMPv6))
	}
	w := newWorld(t, rules)
	w.wantIn(Permitted, segment(v4(2), 4000, v4(1), 22, syn, 100, 0, 0))
	w.wantOut(Permitted, segment(v4(1), 22, v4(2), 4000, synAck, 500, 101, 0))
	w.wantIn(Permitted, tcp(v6(3), 4000, v6(1), 23, syn))
	w.wantIn(Permitted, udp(v4(2), 4000, v4(1), 53, 0))
	w.wantOut(Permitted, ping(v6(1), v6(3), 5))
	w.pass(10 * time.Second)

	next, n := restart(t, w, 10*time.Second, rules)
	if n != 4 {
		t.Errorf("%d flows came back", n)
	}
	next.wantIn(Permitted, segment(v4(2), 4000, v4(1), 22, ack, 101, 501, 0))
	next.wantOut(Permitted, tcp(v6(1), 23, v6(3), 4000, synAck))
	next.wantOut(Permitted, udp(v4(1), 53, v4(2), 4000, 0))
	next.wantIn(Permitted, pong(v6(3), v6(1), 5))
	next.pass(4 * time.Hour)
	for _, r := range next.records() {
		if r.Duration != 4*time.Hour+20*time.Second {
			t.Errorf("%+v", r)
		}
	}
	if c := next.Counters(); c.Started != 4 || c.Ended != 4 {
		t.Errorf("%+v", c)
	}

	// Flows that had almost expired when they were saved have expired after twenty seconds.
	if next, n = restart(t, w, 20*time.Second, rules); n != 2 {
		t.Errorf("%d flows came back", n)
	}
	next.wantOut(NoService, udp(v4(1), 53, v4(2), 4000, 0))

	// A policy that no longer permits them, a different node, and too much time.
	if next, n = restart(t, w, 0, func(r *Ruleset) { r.rule(proto.In, tcpPorts(23, 23)); r.Peers = r.Peers[1:] }); n != 1 {
		t.Errorf("%d flows came back", n)
	}
	next.wantOut(UnknownPeer, tcp(v4(1), 22, v4(2), 4000, ack))
	if _, n = restart(t, w, 0, func(r *Ruleset) { rules(r); r.Peers[0].ID, r.Sets[0].Members[0] = 50, 50 }); n != 2 {
		t.Errorf("%d flows came back", n)
	}
	for _, later := range []time.Duration{savedLife + 1, -time.Second} {
		if _, n = restart(t, w, later, rules); n != 0 {
			t.Errorf("%d flows came back after %v", n, later)
		}
	}

	// Resets are still exact.
	next, _ = restart(t, w, 0, rules)
	next.reinstall(func(*Ruleset) {})
	if toLocal, _ := next.sweep(); len(toLocal) == 0 {
		t.Error("no resets")
	}
}

// savedFields is the offset in saved flows of the first flow's fields after its key.
const savedFields = 24 + 40

func TestSavedFlowsAreChecked(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, everything...) })
	w.wantIn(Permitted, udp(v4(2), 4000, v4(1), 53, 0))
	w.wantIn(Permitted, tcp(v4(2), 4000, v4(1), 53, syn))
	good := w.AppendFlows(nil, w.now)
	for n := range good {
		if _, err := w.RestoreFlows(good[:n], w.now); !errors.Is(err, ErrSaved) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	if n, err := w.RestoreFlows(good, w.now); n != 0 || err != nil {
		t.Errorf("%d of what is there, %v", n, err)
	}
	for at, b := range map[int]byte{
		savedFields + 8: 9, savedFields + 9: 0, savedFields + 10: 4, // state, direction, FINs
		savedFields + 11: 1, // longer than any flow may be silent
		savedFields - 8:  1, // ports
		savedFields + 7:  3, // the node
		savedFields - 40: 1, // our address
	} {
		fresh := newWorldOf(t, Config{}, 3, func(r *Ruleset) { r.rule(proto.In, everything...) })
		bad := append([]byte(nil), good...)
		bad[at] = b
		if n, err := fresh.RestoreFlows(bad, w.now); n != 1 || err != nil {
			t.Errorf("byte %d: %d flows, %v", at, n, err)
		}
	}
	if n, err := New(Config{}).RestoreFlows(good, w.now); n != 0 || err != nil {
		t.Errorf("%d without a program, %v", n, err)
	}
}

// TestSavedFlowsOfRoutes checks a flow of a host behind this node whose saved state was changed to claim that we opened it.
func TestSavedFlowsOfRoutes(t *testing.T) {
	rules := func(r *Ruleset) {
		r.rule(proto.In, everything...).Local = []netip.Prefix{netip.MustParsePrefix("10.33.0.0/16")}
		r.rule(proto.Out, everything...).Local = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	}
	w := newWorld(t, rules)
	w.wantIn(Permitted, udp(v4(2), 4000, netip.MustParseAddr("10.33.0.1"), 53, 0))
	saved := w.AppendFlows(nil, w.now)
	saved[savedFields+9] = byte(proto.Out)
	if n, err := newWorld(t, rules).RestoreFlows(saved, w.now); n != 0 || err != nil {
		t.Errorf("%d flows, %v", n, err)
	}
}

func FuzzRestoreFlows(f *testing.F) {
	rules := func(r *Ruleset) { r.rule(proto.In, everything...) }
	w := newWorld(f, rules)
	start := w.now
	w.wantIn(Permitted, udp(v4(2), 4000, v4(1), 53, 0))
	w.wantIn(Permitted, tcp(v4(2), 4000, v4(1), 53, syn))
	f.Add(w.AppendFlows(nil, start))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWorldOf(t, Config{MaxFlows: 64, PerPeer: 16}, 3, rules)
		n, _ := w.RestoreFlows(b, start)
		if c := w.Counters(); n < c.Flows || c.Flows > 64 {
			t.Fatalf("%d restored, %d flows", n, c.Flows)
		}
		w.In(tcp(v4(2), 4000, v4(1), 53, ack))
		w.pass(4 * time.Hour)
		if c := w.Counters(); c.Flows != 0 {
			t.Fatalf("%d flows stay", c.Flows)
		}
	})
}
