package machine

import "testing"

// TestClockThatWasAhead checks that a certificate issued while the coordinator's clock was ahead is not good once the clock
// is right again, and that the next one is requested at once.
func TestClockThatWasAhead(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "two")
	w.step(Snapshot{w.netmap(1, 0, w.peer(p, 1, 24*hour))})
	w.expect(t, StateRunning)
	w.now = w.now.Add(-2 * hour)
	w.step(Heard{})
	if w.program != nil {
		t.Error("something passes with a certificate whose time has not come")
	}
	if !w.has(isEffect[Renew]) {
		t.Fatal("no renewal begins")
	}
	w.step(RenewFailed{Reason: "not now"})
	if w.has(isEffect[Renew]) {
		t.Error("asked again at once after a failure")
	}
	w.step(Renewed{w.mesh.Self(w.self, 2, w.now, hour)})
	w.expect(t, StateRunning)
}
