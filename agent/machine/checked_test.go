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

// restarted is what the disk holds after a clean stop.
func (w *world) restarted() {
	w.step(Stop{})
	w.disk.Checked = map[cert.Signature]struct{}{}
	for _, s := range w.m.Checked() {
		w.disk.Checked[s] = struct{}{}
	}
}

// planted is a claim with a certificate that the mesh's authority did not sign, and the signature's name.
func (w *world) planted(p *identitytest.Machine) (proto.Peer, cert.Signature) {
	der := w.mesh.Issue(p, 1, noon, hour)
	der[len(der)-1] ^= 1
	by := sha256.Sum256(w.mesh.Intermediate.Certificate().Raw)
	return proto.Peer{ID: p.ID, Certificate: der}, sha256.Sum256(append(by[:], der...))
}

// What a node checked before a clean stop spares it the signatures, and nothing else: who was planted on the disk meanwhile, whose
// certificate ran out and whose newer one was seen is left out as ever.
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

	// A peer whose signature is listed is not checked again: the list is believed, which is why it is under a key of ours alone.
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
