package machine

import (
	"slices"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto"
)

// TestALockedNodeIsClosedUntilItIsServedAgain also through a restart in between, and says why.
func TestALockedNodeIsClosedUntilItIsServedAgain(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "two")
	w.step(Snapshot{w.netmap(1, 8*hour, w.peer(p, 1, hour))})
	closed := func(what string) {
		t.Helper()
		w.expect(t, StateLocked)
		if w.program != nil || len(w.engine) != 0 {
			t.Errorf("%s: something passes", what)
		}
		if v := w.m.View(w.now); len(v.Peers) != 0 || len(v.Problems) != 1 || !strings.Contains(v.Problems[0], "lock delete l1") {
			t.Errorf("%s: %+v", what, v)
		}
	}
	w.step(Refused{Kind: RefusedLocked, Message: "lock delete l1"})
	for i, e := range w.effects {
		if isEffect[SaveWanted](e) && !slices.ContainsFunc(w.effects[:i], isEffect[Install]) {
			t.Error("the disk comes before the filter: what passes meanwhile should not")
		}
	}
	closed("locked")
	if w.has(isEffect[Hang]) {
		t.Error("it would never hear that it is not locked any more")
	}
	w.boot()
	closed("after a restart")
	w.step(Refused{Kind: RefusedLocked, Message: "lock delete l1"})
	closed("refused again")
	w.step(Down{})
	w.step(Up{})
	closed("down and up")
	w.step(Connected{})
	w.expect(t, StateRunning)
	if w.program == nil || len(w.engine) != 1 {
		t.Error("unlocked, and nothing passes")
	}
	if w.disk.Wanted.Locked != nil {
		t.Error("a restart would lock it again")
	}
}

// TestBarredNodesAreRefusedOffline from the disk, and an older netmap does not bring them back.
func TestBarredNodesAreRefusedOffline(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	bad, good := w.mesh.Machine(2, "two"), w.mesh.Machine(3, "three")
	before := w.netmap(1, 8*hour, w.peer(bad, 4, hour), w.peer(good, 1, hour))
	w.step(Snapshot{before})
	if len(w.engine) != 2 {
		t.Fatalf("engine: %v", w.engine)
	}
	after := w.netmap(2, 8*hour, w.peer(good, 1, hour))
	after.Barred = []proto.Barred{{ID: 2, Sequence: 4}}
	w.step(Change{proto.Diff(before, after)})
	gone := func(what string) {
		t.Helper()
		if _, there := w.engine[2]; there || len(w.engine) != 1 {
			t.Errorf("%s: engine: %v", what, w.engine)
		}
	}
	gone("barred")
	w.step(Lost{})
	w.boot()
	gone("after a restart without a coordinator")
	if got := w.disk.Netmap.Barred; !slices.Equal(got, after.Barred) {
		t.Errorf("the disk holds %v", got)
	}
	w.step(Connected{})
	w.step(Snapshot{before})
	gone("an older netmap came")
	w.step(Lost{})
	w.boot()
	w.step(Connected{})
	// The certificate that was barred, by whoever sends it, while the list still has it.
	both := w.netmap(3, 8*hour, w.peer(bad, 4, hour), w.peer(good, 1, hour))
	both.Barred = after.Barred
	w.step(Snapshot{both})
	gone("a netmap that says both")
	again := w.netmap(4, 8*hour, w.peer(bad, 4, hour), w.peer(good, 1, hour))
	w.step(Snapshot{again})
	if len(w.engine) != 2 {
		t.Errorf("not barred any more: engine: %v", w.engine)
	}
}
