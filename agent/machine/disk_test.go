package machine

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// TestDiskFails checks that a failing disk does not prevent enforcement, but does prevent the acknowledgement.
func TestDiskFails(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "two")
	peer := w.peer(p, 1, hour)
	w.step(Snapshot{w.netmap(1, 0, peer)})
	full := errors.New("no space left on device")
	w.refuse = func(e Effect) error {
		if saves(e) {
			return full
		}
		return nil
	}
	w.step(Change{proto.Diff(w.m.netmap, w.netmap(2, 0))})
	if len(w.open(p)) != 0 {
		t.Error("a removed peer passes since the disk is full")
	}
	if w.acked.N != 1 {
		t.Errorf("acknowledged %v, and it is not on the disk", w.acked)
	}
	if p := strings.Join(w.m.View(w.now).Problems, "\n"); !strings.Contains(p, "no space left") {
		t.Errorf("problems: %q", p)
	}
	w.refuse = nil
	w.wait(retryDisk + time.Second)
	if w.acked.N != 2 || w.disk.Netmap.Version.N != 2 {
		t.Errorf("after the disk has room again: acknowledged %v, on disk %v", w.acked, w.disk.Netmap.Version)
	}
}

// TestFloorsOutlastADiskThatTakesNoNetmap checks that what the disk knows of a peer's certificates is dropped only once the netmap
// that shows them is there: otherwise an older one would be good after a crash.
func TestFloorsOutlastADiskThatTakesNoNetmap(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "two")
	old, peer := w.peer(p, 3, hour), w.peer(p, 4, hour)
	w.step(Snapshot{w.netmap(1, 0, peer)})
	w.step(Change{proto.Diff(w.m.netmap, w.netmap(2, 0))})
	w.refuse = func(e Effect) error {
		if isEffect[SaveNetmap](e) || isEffect[SaveDelta](e) {
			return errors.New("no space left on device")
		}
		if isEffect[SetPeers](e) && w.now.Equal(noon) { // which is heard before
			w.now = w.now.Add(saveEvery)
			return errors.New("the engine is closed")
		}
		return nil
	}
	w.step(Snapshot{w.netmap(3, 0, peer)})
	for range 5 {
		w.wait(saveEvery)
		w.step(Heard{})
	}
	if n := w.disk.Netmap.Version.N; n != 2 || w.disk.Floors.LastContact != w.now.Add(-saveEvery) && w.disk.Floors.LastContact != w.now {
		t.Fatalf("on the disk are netmap %d and floors of %v, and the test shows nothing", n, w.disk.Floors.LastContact)
	}
	w.boot() // after a crash
	w.step(Connected{})
	w.step(Snapshot{w.netmap(4, 0, old)})
	if len(w.engine) != 0 {
		t.Error("an older certificate is good after the crash")
	}
	w.refuse = nil
	w.step(Snapshot{w.netmap(5, 0, peer)})
	if len(w.engine) != 1 {
		t.Error("the present certificate is not good")
	}
	w.wait(2 * saveEvery)
	if left := w.disk.Floors.Sequences; len(left) != 0 {
		t.Errorf("the netmap is on the disk, and so are %v", left)
	}
	w.boot()
	w.step(Connected{})
	w.step(Snapshot{w.netmap(6, 0, old)})
	if len(w.engine) != 0 {
		t.Error("an older certificate is good after another crash")
	}
}
