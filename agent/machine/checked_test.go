package machine

import (
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// restarted saves what the disk holds after a clean stop.
func (w *world) restarted() {
	w.step(Stop{})
	w.disk.Checked = map[cert.Signature]struct{}{}
	for _, s := range w.m.Checked() {
		w.disk.Checked[s] = struct{}{}
	}
}

// planted returns a claim with a certificate that the mesh's authority did not sign, and the name of its signature.
func (w *world) planted(p *identitytest.Machine) (proto.Peer, cert.Signature) {
	der := w.mesh.Issue(p, 1, noon, hour)
	der[len(der)-1] ^= 1
	by := sha256.Sum256(w.mesh.Intermediate.Certificate().Raw)
	return proto.Peer{ID: p.ID, Certificate: der}, sha256.Sum256(append(by[:], der...))
}

// TestCheckedBefore checks that the saved list spares a node verifying signatures, and nothing else: a peer that was planted
// on the disk, one whose certificate expired and one with a newer certificate already seen are left out as ever.
func TestCheckedBefore(t *testing.T) {
	w := enrolled(t)
	honest, older, dated, foe := w.mesh.Machine(2, "honest"), w.mesh.Machine(3, "older"), w.mesh.Machine(4, "dated"), w.mesh.Machine(5, "foe")
	claim := func(p *identitytest.Machine, life int) proto.Peer {
		return proto.Peer{ID: p.ID, Certificate: w.mesh.Issue(p, 1, noon, time.Duration(life)*time.Minute)}
	}
	peers := []proto.Peer{claim(honest, 60), claim(older, 60), claim(dated, 10)}
	w.disk.Netmap = w.netmap(1, 0, peers...)
	w.boot()
	if got := w.open(honest, older, dated); len(got) != 3 {
		t.Fatalf("%v pass", got)
	}
	w.restarted()
	if len(w.disk.Checked) != 3 {
		t.Fatalf("%d signatures were checked", len(w.disk.Checked))
	}

	// A peer whose signature is listed is not verified again: the list is trusted, which is why it is authenticated by a key
	// that only we have.
	plant, name := w.planted(foe)
	w.disk.Netmap = w.netmap(2, 0, append(slices.Clone(peers), plant)...)
	w.disk.Floors.Sequences = map[proto.NodeID]state.Sequence{older.ID: {Seen: 2, Until: noon.Add(hour)}}
	w.now = noon.Add(30 * time.Minute)
	w.boot()
	if got := w.open(honest, older, dated, foe); !slices.Equal(got, []proto.NodeID{honest.ID}) {
		t.Errorf("%v pass, want the honest one alone; problems: %q", got, w.m.View(w.now).Problems)
	}
	w.disk.Checked[name] = struct{}{}
	w.boot()
	if got := w.open(honest, foe); len(got) != 2 {
		t.Errorf("%v pass: what was checked is checked again", got)
	}

	// What comes after the start is verified, whatever the list says.
	w.disk.Netmap = w.netmap(2, 0, peers...)
	w.boot()
	w.step(Snapshot{Netmap: w.netmap(3, 0, append(slices.Clone(peers), plant)...)})
	if got := w.open(honest, foe); !slices.Equal(got, []proto.NodeID{honest.ID}) {
		t.Errorf("%v pass after a netmap with a certificate that nobody signed", got)
	}
}
