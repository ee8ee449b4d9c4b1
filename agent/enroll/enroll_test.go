package enroll

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

type lab struct {
	mesh *identitytest.Mesh
	self *identitytest.Machine
	r    Request
}

func newLab(t testing.TB) lab {
	t.Helper()
	token, err := key.NewToken(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := identitytest.New(noon.Add(-time.Hour))
	n := m.Machine(1, "web")
	return lab{m, n, Request{
		Device: n.Device, Node: n.Node, Token: token, Root: cert.Fingerprint(m.Root.Certificate()), Hostname: "web", Program: "test",
	}}
}

func (l lab) challenge(t testing.TB) *redoubtv1.Challenge {
	t.Helper()
	e, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &redoubtv1.Challenge{Nonce: make([]byte, 32), EphemeralPublic: e.Public().Bytes(), Attestor: EvidenceToken}
}

func (l lab) result(record identity.Record) *redoubtv1.Result {
	return &redoubtv1.Result{
		Certificate: record.Chain[0], Chain: record.Chain[1:], Roots: record.Roots, Mesh: wire.FromMesh(record.Mesh),
	}
}

// answered returns an exchange that waits for its result.
func (l lab) answered(t testing.TB) *Exchange {
	t.Helper()
	x, err := Enrol(l.r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Answer(l.challenge(t), make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	return x
}

// TestEnrolSaysPosture checks that the proof contains what is known of the machine's health, and covers it: see the Binding.
func TestEnrolSaysPosture(t *testing.T) {
	l := newLab(t)
	want := &redoubtv1.Posture{Whole: true, Facts: []*redoubtv1.PostureFact{{Name: "posture:a", Value: "1", TtlSeconds: 60}}}
	l.r.Posture = func() *redoubtv1.Posture { return want }
	x, err := Enrol(l.r)
	if err != nil {
		t.Fatal(err)
	}
	c, exporter := l.challenge(t), make([]byte, 32)
	up, err := x.Answer(c, exporter)
	if err != nil {
		t.Fatal(err)
	}
	p, said := up.GetProof(), new(redoubtv1.Posture)
	if err := pb.Unmarshal(p.GetPosture(), said); err != nil || !pb.Equal(said, want) {
		t.Errorf("%v, %v", said, err)
	}
	binding := wire.Binding(wire.DomainEnrol, c.GetNonce(), exporter, l.r.Node.Public(), l.r.Device.Device(), sha256.Sum256(p.GetPosture()), sha256.Sum256(x.First()))
	if !l.r.Device.Device().Verify(binding[:], p.GetDeviceSignature()) {
		t.Error("the proof does not cover what it says")
	}
}

func TestOrder(t *testing.T) {
	l := newLab(t)
	x, err := Enrol(l.r)
	if err != nil {
		t.Fatal(err)
	}
	good := l.result(l.mesh.Record(l.self, 1, noon, time.Hour))
	if _, err := x.Finish(good); !errors.Is(err, ErrOrder) {
		t.Errorf("a result before the challenge: %v", err)
	}
	x = l.answered(t)
	if _, err := x.Answer(l.challenge(t), make([]byte, 32)); !errors.Is(err, ErrOrder) {
		t.Errorf("a second challenge: %v", err)
	}
	x = l.answered(t)
	if self, err := x.Finish(good); err != nil || self.Node.ID != l.self.ID {
		t.Errorf("%v", err)
	}
	if _, err := x.Finish(good); !errors.Is(err, ErrOrder) {
		t.Errorf("a second result: %v", err)
	}
}

func TestChallengesThatAreNotAnswered(t *testing.T) {
	l := newLab(t)
	for name, spoil := range map[string]func(*redoubtv1.Challenge){
		"short nonce":       func(c *redoubtv1.Challenge) { c.Nonce = c.Nonce[1:] },
		"no key":            func(c *redoubtv1.Challenge) { c.EphemeralPublic = nil },
		"low order point":   func(c *redoubtv1.Challenge) { c.EphemeralPublic = make([]byte, 32) },
		"unknown evidence":  func(c *redoubtv1.Challenge) { c.Attestor = "tpm" },
		"no evidence asked": func(c *redoubtv1.Challenge) { c.Attestor = "" },
	} {
		x, err := Enrol(l.r)
		if err != nil {
			t.Fatal(err)
		}
		c := l.challenge(t)
		spoil(c)
		if up, err := x.Answer(c, make([]byte, 32)); err == nil {
			t.Errorf("%s: answered with %v", name, up)
		}
	}
}

// TestResultsThatAreRefused checks that a result that is not under the pinned root gives no identity, whatever else comes
// with it.
func TestResultsThatAreRefused(t *testing.T) {
	l := newLab(t)
	other := identitytest.New(noon.Add(-time.Hour))
	second := l.mesh.Successor(noon.Add(-time.Hour))
	theirs := other.Record(l.self, 1, noon, time.Hour)
	unpinned := second.Record(l.self, 1, noon, time.Hour)
	both := second.Record(l.self, 1, noon, time.Hour)
	both.Roots = append(both.Roots, l.mesh.Root.Certificate().Raw)
	for name, record := range map[string]identity.Record{
		"another mesh":                   theirs,
		"another root of this mesh":      unpinned,
		"a new root of this mesh alone":  vouched(second, l.self, second),
		"the pinned root only as a name": both,
		"another node's certificate":     l.mesh.Record(l.mesh.Machine(2, "db"), 1, noon, time.Hour),
	} {
		if self, err := l.answered(t).Finish(l.result(record)); err == nil {
			t.Errorf("%s: taken as %v", name, self.Node.ID)
		}
	}
	empty := l.result(l.mesh.Record(l.self, 1, noon, time.Hour))
	empty.Mesh = nil
	if _, err := l.answered(t).Finish(empty); err == nil {
		t.Error("a result without a mesh was taken")
	}
}

// vouched returns an identity under a new root that the old one vouches for.
func vouched(next *identitytest.Mesh, n *identitytest.Machine, roots ...*identitytest.Mesh) identity.Record {
	r := next.Record(n, 1, noon, time.Hour)
	r.Chain, r.Roots = append(r.Chain, next.Cross), nil
	for _, m := range roots {
		r.Roots = append(r.Roots, m.Root.Certificate().Raw)
	}
	return r
}

// TestEnrolWhileTheRootIsReplaced checks that a join code may name either root, and that only roots that the named one
// vouches for are accepted.
func TestEnrolWhileTheRootIsReplaced(t *testing.T) {
	for name, roots := range map[string]int{"old": 2, "new": 1} {
		l := newLab(t)
		second := l.mesh.Successor(noon.Add(-time.Hour))
		if name == "new" {
			l.r.Root = cert.Fingerprint(second.Root.Certificate())
		}
		self, err := l.answered(t).Finish(l.result(vouched(second, l.self, second, l.mesh)))
		if err != nil || len(self.Record.Roots) != roots {
			t.Errorf("a code that names the %s root: %v, want %d roots: %+v", name, err, roots, self)
		}
	}
}

// FuzzFinish checks that, whatever a coordinator or somebody in its place sends, there is no panic, and no identity that is
// not under the pinned root.
func FuzzFinish(f *testing.F) {
	l := newLab(f)
	for _, record := range []identity.Record{
		l.mesh.Record(l.self, 1, noon, time.Hour), identitytest.New(noon).Record(l.self, 1, noon, time.Hour),
		vouched(l.mesh.Successor(noon.Add(-time.Hour)), l.self, l.mesh),
	} {
		b, err := pb.Marshal(l.result(record))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r redoubtv1.Result
		if pb.Unmarshal(b, &r) != nil {
			return
		}
		self, err := l.answered(t).Finish(&r)
		if err != nil {
			return
		}
		if self.Node.Device != l.self.Device.Device() || self.Key != l.self.Node.Public() {
			t.Errorf("an identity for other keys: %v", self.Node.ID)
		}
		if _, err := cert.PinnedRoot(self.Record.Roots, l.r.Root); err != nil {
			t.Errorf("an identity without the pinned root: %v", err)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	l := newLab(f)
	b, err := pb.Marshal(l.challenge(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var c redoubtv1.Challenge
		if pb.Unmarshal(b, &c) != nil {
			return
		}
		x, err := Enrol(l.r)
		if err != nil {
			t.Fatal(err)
		}
		up, err := x.Answer(&c, make([]byte, 32))
		if err == nil && (len(up.GetProof().GetNodeKeyMac()) != 32 || len(up.GetProof().GetTokenSignature()) != 64) {
			t.Errorf("%v", up)
		}
	})
}
