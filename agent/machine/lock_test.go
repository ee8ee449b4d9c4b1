package machine

import (
	"crypto/elliptic"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto"
)

// TestALockedNodeIsClosedUntilItIsServedAgain checks that this holds across a restart as well, and that the status says why.
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

// TestBarredNodesAreRefusedOffline checks that the list holds from the disk, and that an older netmap does not bring the
// nodes back.
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
	// The barred certificate is refused while the list still has it, even if the same netmap brings it.
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

// TestBarredWhateverTheSignature checks that the node is barred, and not one encoding of its certificate: an ECDSA signature
// has two forms.
func TestBarredWhateverTheSignature(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	bad := w.mesh.Machine(2, "two")
	peer := w.peer(bad, 4, hour)
	twin := peer
	twin.Certificate = otherForm(t, peer.Certificate)
	w.step(Snapshot{w.netmap(1, 8*hour, twin)})
	if len(w.engine) != 1 {
		t.Fatalf("the other form is not good at all, and the test shows nothing: %v", w.engine)
	}
	barred := []proto.Barred{{ID: 2, Sequence: 4}}
	nm := w.netmap(2, 8*hour)
	nm.Barred = barred
	w.step(Snapshot{nm})
	for i, p := range []proto.Peer{peer, twin} {
		nm := w.netmap(uint64(i)+3, 8*hour, p)
		nm.Barred = barred
		w.step(Snapshot{nm})
		if len(w.engine) != 0 {
			t.Errorf("form %d of a certificate that is barred: engine: %v", i, w.engine)
		}
	}
}

// otherForm returns the same certificate with the other valid signature (r, n-s).
func otherForm(t *testing.T, der []byte) []byte {
	t.Helper()
	var c struct {
		Body, Algorithm asn1.RawValue
		Signature       asn1.BitString
	}
	var s struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &c); err != nil {
		t.Fatal(err)
	}
	if _, err := asn1.Unmarshal(c.Signature.Bytes, &s); err != nil {
		t.Fatal(err)
	}
	s.S.Sub(elliptic.P256().Params().N, s.S)
	signature, err := asn1.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	c.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	other, err := asn1.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return other
}
