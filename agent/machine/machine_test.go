package machine

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

type selfIdentity = identity.Self

func checkSelf(r identity.Record, n *identitytest.Machine) (*identity.Self, error) {
	return identity.Check(r, n.Device.Device(), n.Node.Public())
}

func (w *world) peer(n *identitytest.Machine, sequence uint64, life time.Duration, change ...func(*cert.Node)) proto.Peer {
	return proto.Peer{ID: n.ID, Certificate: w.mesh.Issue(n, sequence, w.now, life, change...)}
}

// join returns the content of a join code.
func join(t *testing.T) *state.Join {
	t.Helper()
	secret, err := key.NewToken(strings.NewReader(strings.Repeat("x", 32)))
	if err != nil {
		t.Fatal(err)
	}
	return &state.Join{URLs: []string{"https://c.test"}, Root: [32]byte{1}, Secret: secret}
}

func TestFromNothingToRunning(t *testing.T) {
	w := newWorld(t)
	w.boot()
	w.expect(t, StateDown)
	if err := w.m.Check(Up{}); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("Up without a code: %v", err)
	}
	w.step(Up{Join: join(t), Hostname: "web"})
	w.expect(t, StateEnrolling)
	if w.disk.Join == nil || w.disk.Join.Secret.IsZero() || !w.disk.Wanted.Up {
		t.Fatal("what a restart needs to go on enrolling is not on the disk")
	}
	w.boot() // killed
	w.expect(t, StateEnrolling)
	if !w.has(isEffect[Enrol]) {
		t.Error("a restart does not go on enrolling")
	}
	w.step(Trouble{Reason: "no route"})
	w.expect(t, StateEnrolling)
	w.step(Enrolled{Self: w.mesh.Self(w.self, 1, w.now, hour)})
	w.expect(t, StateStarting)
	if !w.disk.Join.Secret.IsZero() || w.disk.Self == nil {
		t.Error("after enrolment the secret must be gone, and the certificate there")
	}
	if !w.has(isEffect[StartPath]) || !w.has(isEffect[Attach]) {
		t.Error("enrolled, and neither data path nor stream begins")
	}
	w.step(Connected{URL: "https://c.test"})
	p := w.mesh.Machine(2, "two")
	w.step(Snapshot{w.netmap(1, 0, w.peer(p, 1, hour))})
	w.expect(t, StateRunning)
	if got := w.open(p); len(got) != 1 {
		t.Error("the peer does not pass")
	}
	if w.acked.N != 1 {
		t.Errorf("acknowledged %v", w.acked)
	}
	w.step(Down{})
	w.expect(t, StateDown)
	if w.path || w.program != nil {
		t.Error("down, and the data path runs")
	}
	w.boot()
	w.expect(t, StateDown)
	w.step(Up{})
	w.expect(t, StateRunning)
	if got := w.open(p); len(got) != 1 {
		t.Error("the netmap on the disk is not in force")
	}
}

func TestEnrolmentRefused(t *testing.T) {
	w := newWorld(t)
	w.boot()
	w.step(Up{Join: join(t)})
	w.step(EnrolFailed{Reason: "the join code was used by another machine"})
	w.expect(t, StateDown)
	if w.disk.Join != nil || w.disk.Wanted.Up {
		t.Error("a refused join code must not be tried again by itself")
	}
	if !w.has(isEffect[Forget]) {
		t.Error("the keys stay, though the coordinator may know them and never take them again")
	}
	if p := w.m.View(w.now).Problems; len(p) != 1 || !strings.Contains(p[0], "used by another machine") {
		t.Errorf("problems: %q", p)
	}
	w.step(Up{Join: join(t)})
	w.expect(t, StateEnrolling)
}

// TestSecretIsErasedAfterACrash checks that a node that went down between saving its identity and erasing the secret does so at
// the next start.
func TestSecretIsErasedAfterACrash(t *testing.T) {
	w := enrolled(t)
	w.disk.Join = join(t)
	w.boot()
	if j := w.disk.Join; j == nil || len(j.URLs) == 0 || !j.Secret.IsZero() {
		t.Errorf("%+v", j)
	}
}

// TestEnrolmentThatWaits checks that the code is shown, even while the coordinator is lost, until there is an answer.
func TestEnrolmentThatWaits(t *testing.T) {
	w := newWorld(t)
	w.boot()
	w.step(Up{Join: join(t)})
	pending := Pending{URL: "https://c.test", Code: "BCDF-GHJK", Name: "self", Message: "node approve BCDF-GHJK"}
	shown := func(problems int) {
		t.Helper()
		w.expect(t, StatePending)
		v := w.m.View(w.now)
		if v.Pending == nil || *v.Pending != (PendingView{"BCDF-GHJK", "self", noon}) || len(v.Problems) != problems || !strings.Contains(v.Problems[0], "node approve BCDF-GHJK") {
			t.Errorf("%+v, %q", v.Pending, v.Problems)
		}
	}
	w.step(pending)
	shown(1)
	w.wait(hour)
	w.step(Trouble{})
	shown(1)
	w.step(Trouble{Reason: "nobody answers"})
	shown(2)
	w.step(pending)
	shown(1)
	w.boot() // and asks again
	w.expect(t, StateEnrolling)
	w.step(pending)
	w.step(EnrolFailed{Reason: "denied"})
	w.expect(t, StateDown)
	w.step(Up{Join: join(t)})
	w.expect(t, StateEnrolling)
	w.step(pending)
	w.step(Enrolled{w.mesh.Self(w.self, 1, w.now, hour)})
	if v := w.m.View(w.now); v.Pending != nil || v.State == StatePending {
		t.Errorf("%+v", v)
	}
	w.step(pending)
	if v := w.m.View(w.now); v.Pending != nil {
		t.Errorf("a node waits to be one: %+v", v)
	}
}

// TestARenewalThatIsWithheld checks that it is requested again at the time that the coordinator named, and after the
// coordinator ended the stream.
func TestARenewalThatIsWithheld(t *testing.T) {
	for _, must := range []bool{false, true} {
		w := enrolled(t)
		w.boot()
		w.step(Connected{RenewFirst: must})
		for !w.m.renewal.asking {
			w.wait(time.Minute)
			w.step(Heard{})
		}
		w.step(RenewFailed{Reason: "node approve self", Withheld: true, After: 5 * time.Minute})
		if w.has(isEffect[Renew]) {
			t.Fatal("it asks at once again")
		}
		if p := w.m.View(w.now).Problems; !slices.ContainsFunc(p, func(s string) bool { return strings.Contains(s, "node approve self") }) {
			t.Errorf("%q", p)
		}
		asked := w.now
		for !w.m.renewal.asking {
			w.wait(10 * time.Second)
			w.step(Heard{})
		}
		if d := w.now.Sub(asked); d < 5*time.Minute || d > 7*time.Minute {
			t.Errorf("asked again after %v", d)
		}
		w.step(RenewFailed{Reason: "node approve self", Withheld: true, After: 5 * time.Minute})
		w.step(Lost{Reason: "something has changed"})
		w.step(Connected{RenewFirst: must})
		if !w.has(isEffect[Renew]) {
			t.Error("it does not ask when something may have changed")
		}
	}
}

func TestOtherMesh(t *testing.T) {
	w := enrolled(t)
	w.boot()
	other := join(t)
	other.Root[0] = 9
	if err := w.m.Check(Up{Join: other}); !errors.Is(err, ErrOtherMesh) {
		t.Errorf("join code of another mesh: %v", err)
	}
	if err := w.m.Check(Up{Join: join(t)}); err != nil {
		t.Errorf("join code of this mesh: %v", err)
	}
}

// TestPeersThatAreLeftOut checks that a fault in a peer's certificate keeps that peer out, and no other.
func TestPeersThatAreLeftOut(t *testing.T) {
	for _, c := range []struct {
		name, why string
		issue     func(w *world, good, bad *identitytest.Machine) []byte
	}{
		{"number that was passed", "number 5 was seen", func(w *world, _, bad *identitytest.Machine) []byte {
			return w.mesh.Issue(bad, 4, w.now, hour)
		}},
		{"another node's", "belongs to", func(w *world, good, _ *identitytest.Machine) []byte {
			return w.mesh.Issue(good, 6, w.now, hour)
		}},
		{"of another mesh", "another mesh", func(w *world, _, bad *identitytest.Machine) []byte {
			return identitytest.New(noon.Add(-hour)).Issue(bad, 6, w.now, hour)
		}},
		{"our address", "has its address", func(w *world, _, bad *identitytest.Machine) []byte {
			return w.mesh.Issue(w.self, 6, w.now, hour, func(n *cert.Node) { n.ID = bad.ID })
		}},
		{"our own", "belongs to", func(w *world, _, bad *identitytest.Machine) []byte {
			return w.mesh.Issue(w.self, 6, w.now, hour)
		}},
		{"ran out", "", func(w *world, _, bad *identitytest.Machine) []byte {
			return w.mesh.Issue(bad, 6, w.now.Add(-2*hour), hour)
		}},
		{"not yet", "not valid before", func(w *world, _, bad *identitytest.Machine) []byte {
			return w.mesh.Issue(bad, 6, w.now.Add(hour), hour)
		}},
		{"rubbish", "malformed", func(*world, *identitytest.Machine, *identitytest.Machine) []byte { return []byte("rubbish") }},
		{"address of another", "has its address", func(w *world, good, bad *identitytest.Machine) []byte {
			return w.mesh.Issue(bad, 6, w.now, hour, func(n *cert.Node) { n.Addrs.V4 = good.Identity().Addrs.V4 })
		}},
		{"key of another", "its key", func(w *world, good, bad *identitytest.Machine) []byte {
			return w.mesh.Issue(bad, 6, w.now, hour, func(n *cert.Node) { n.Keys[0].Public = good.Node.Public() })
		}},
		{"address outside", "not in the mesh's ranges", func(w *world, _, bad *identitytest.Machine) []byte {
			return w.mesh.Issue(bad, 6, w.now, hour, func(n *cert.Node) { n.Addrs.V4 = outside })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := enrolled(t)
			w.boot()
			w.step(Connected{})
			good, bad := w.mesh.Machine(2, "good"), w.mesh.Machine(3, "bad")
			first := w.peer(good, 5, hour)
			w.step(Snapshot{w.netmap(1, 0, first, w.peer(bad, 5, hour))})
			if got := w.open(good, bad); len(got) != 2 {
				t.Fatalf("open: %v", got)
			}
			w.step(Snapshot{w.netmap(2, 0, first, proto.Peer{ID: bad.ID, Certificate: c.issue(w, good, bad)})})
			if got := w.open(good, bad); len(got) != 1 || got[0] != good.ID {
				t.Errorf("open: %v", got)
			}
			if _, ok := w.engine[bad.ID]; ok {
				t.Error("the engine still talks to it")
			}
			problems := strings.Join(w.m.View(w.now).Problems, "\n")
			if !strings.Contains(problems, c.why) || c.why == "" && problems != "" { // a machine that is off is not a problem
				t.Errorf("problems %q do not name the reason %q", problems, c.why)
			}
			if w.acked.N != 2 {
				t.Errorf("acknowledged %v: what is left out is enforced all the same", w.acked)
			}
			// The next good certificate lets it in again.
			w.step(Snapshot{w.netmap(3, 0, first, w.peer(bad, 7, hour))})
			if got := w.open(good, bad); len(got) != 2 {
				t.Errorf("open after a good certificate: %v", got)
			}
		})
	}
}

var outside = netip.MustParseAddr("100.81.0.3")

// TestSequenceOutlivesThePeer checks that a removed node does not come back with an older certificate, not even after a restart.
func TestSequenceOutlivesThePeer(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "two")
	old := w.peer(p, 5, hour)
	w.step(Snapshot{w.netmap(1, 0, w.peer(p, 6, hour))})
	w.step(Snapshot{w.netmap(2, 0)})
	w.boot()
	w.step(Connected{})
	w.step(Snapshot{w.netmap(3, 0, old)})
	if got := w.open(p); len(got) != 0 {
		t.Error("an older certificate was taken")
	}
}

func TestExpiryAndGrace(t *testing.T) {
	const grace = 3 * hour
	start := func(t *testing.T) (*world, *identitytest.Machine) {
		w := enrolled(t)
		w.disk.Self = w.mesh.Self(w.self, 1, noon, 24*hour)
		w.boot()
		w.step(Connected{})
		p := w.mesh.Machine(2, "two")
		w.step(Snapshot{w.netmap(1, grace, w.peer(p, 1, hour))})
		if len(w.open(p)) != 1 {
			t.Fatal("the peer does not pass")
		}
		return w, p
	}
	t.Run("in contact there is no grace", func(t *testing.T) {
		w, p := start(t)
		for range 6 {
			w.wait(10 * time.Minute)
			w.step(Heard{})
		}
		if len(w.open(p)) != 1 {
			t.Error("closed before its end")
		}
		w.wait(cert.Skew + time.Second)
		if len(w.open(p)) != 0 || len(w.engine) != 0 {
			t.Error("open after its end")
		}
	})
	t.Run("without contact the grace counts from the last contact", func(t *testing.T) {
		w, p := start(t)
		w.wait(30 * time.Minute)
		w.step(Heard{})
		w.wait(time.Minute)
		w.step(Lost{Reason: "gone"})
		w.wait(grace - time.Minute - time.Second)
		if len(w.open(p)) != 1 {
			t.Error("closed within the grace")
		}
		if p := strings.Join(w.m.View(w.now).Problems, "\n"); !strings.Contains(p, "although their certificates have expired") {
			t.Errorf("problems do not count down: %q", p)
		}
		w.wait(2 * time.Second)
		if len(w.open(p)) != 0 {
			t.Error("open after the grace")
		}
	})
	t.Run("a restart neither loses nor lengthens the grace", func(t *testing.T) {
		w, p := start(t)
		w.step(Lost{Reason: "gone"})
		w.wait(2 * hour)
		w.boot()
		if len(w.open(p)) != 1 {
			t.Error("closed by a restart within the grace")
		}
		w.wait(hour)
		if len(w.open(p)) != 0 {
			t.Error("open after the grace")
		}
		w.boot()
		if len(w.open(p)) != 0 {
			t.Error("opened again by a restart")
		}
	})
	t.Run("who had run out at the last contact gets none", func(t *testing.T) {
		w, p := start(t)
		for range 8 {
			w.wait(10 * time.Minute)
			w.step(Heard{})
		}
		w.step(Lost{Reason: "gone"})
		if len(w.open(p)) != 0 {
			t.Error("open by grace although its time was over in contact")
		}
	})
	t.Run("when contact returns the grace ends soon", func(t *testing.T) {
		w, p := start(t)
		w.step(Lost{Reason: "gone"})
		w.wait(2 * hour)
		w.step(Connected{})
		if len(w.open(p)) != 1 {
			t.Error("closed at once, before the coordinator could send what others have renewed")
		}
		w.wait(Settle - time.Second)
		if len(w.open(p)) != 1 {
			t.Error("closed before others can have come back")
		}
		w.wait(2 * time.Second)
		if len(w.open(p)) != 0 {
			t.Error("open after contact has settled")
		}
	})
	t.Run("a peer that renewed after the outage never closes", func(t *testing.T) {
		w, p := start(t)
		w.step(Lost{Reason: "gone"})
		w.wait(2 * hour)
		w.step(Connected{})
		w.step(Snapshot{w.netmap(2, grace, w.peer(p, 2, hour))})
		w.wait(Settle + time.Minute)
		if len(w.open(p)) != 1 || w.has(isEffect[RemovePeers]) {
			t.Error("closed although it renewed")
		}
	})
	t.Run("no grace, no mercy", func(t *testing.T) {
		w, p := start(t)
		w.step(Snapshot{w.netmap(2, 0, w.peer(p, 2, hour))})
		w.step(Lost{Reason: "gone"})
		w.wait(hour + cert.Skew + time.Second)
		if len(w.open(p)) != 0 {
			t.Error("open after its end")
		}
	})
}

func TestOwnCertificateRunsOut(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "two")
	w.step(Snapshot{w.netmap(1, 0, w.peer(p, 1, 24*hour))})
	w.step(Lost{Reason: "gone"})
	w.wait(hour + cert.Skew + time.Second)
	w.expect(t, StateExpired)
	if w.program != nil {
		t.Error("something passes with our own certificate out")
	}
	if problems := strings.Join(w.m.View(w.now).Problems, "\n"); !strings.Contains(problems, "nothing passes until it is renewed") {
		t.Errorf("problems: %q", problems)
	}
	w.step(Connected{RenewFirst: true})
	if !w.has(isEffect[Renew]) {
		t.Fatal("the coordinator wants a renewal first, and none begins")
	}
	w.step(Renewed{w.mesh.Self(w.self, 2, w.now, hour)})
	w.expect(t, StateRunning)
	if len(w.open(p)) != 1 {
		t.Error("closed after the renewal")
	}
}

func TestRenewal(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	w.step(Snapshot{w.netmap(1, 0)})
	for n := uint64(2); n < 30; n++ {
		from := w.now
		for !w.m.renewal.asking {
			w.wait(time.Minute)
			w.step(Heard{})
			if w.now.Sub(from) > hour {
				t.Fatal("no renewal within the certificate's life")
			}
		}
		if d := w.now.Sub(from); d < 26*time.Minute || d > 34*time.Minute {
			t.Errorf("renewal %v after the last one; want half of the life, 10 %% more or less", d)
		}
		w.step(Renewed{w.mesh.Self(w.self, n, w.now, hour)})
		w.expect(t, StateRunning)
	}
	// A failed renewal is tried again, but not continuously.
	for !w.m.renewal.asking {
		w.wait(time.Minute)
		w.step(Heard{})
	}
	w.step(RenewFailed{Reason: "the session is too old"})
	if w.has(isEffect[Renew]) {
		t.Error("a failed renewal is tried again at once")
	}
	if p := strings.Join(w.m.View(w.now).Problems, "\n"); !strings.Contains(p, "the session is too old") {
		t.Errorf("problems: %q", p)
	}
	w.wait(2*time.Minute + time.Second)
	if !w.m.renewal.asking {
		t.Error("a failed renewal is not tried again")
	}
	// A message that arrived instead of an answer, and ended the contact, is reported as the renewal's problem even after
	// contact has returned.
	w.step(Lost{Reason: "malformed", Unread: true})
	w.step(Connected{})
	if p := strings.Join(w.m.View(w.now).Problems, "\n"); !strings.Contains(p, "the certificate was not renewed: malformed") {
		t.Errorf("problems: %q", p)
	}
	// Anything but the next certificate of this node is refused.
	other := w.mesh.Machine(9, "other")
	w.step(Renewed{w.mesh.Self(other, 99, w.now, hour)})
	if w.m.self.Node.ID != w.self.ID || !w.has(isEffect[Redial]) {
		t.Error("another node's certificate was taken")
	}
	w.step(Renewed{w.mesh.Self(w.self, 3, w.now, hour)})
	if w.m.self.Node.Sequence == 3 {
		t.Error("an earlier certificate was taken")
	}
	w.step(Renewed{identitytest.New(noon.Add(-hour)).Self(w.self, 99, w.now, hour)})
	if w.m.self.Node.Sequence == 99 {
		t.Error("a certificate of another mesh was taken")
	}
}

func TestRevocationOfSelf(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "two")
	w.step(Snapshot{w.netmap(1, 8*hour, w.peer(p, 1, hour))})
	w.step(Refused{Kind: RefusedRevoked, Message: "revoked by ann"})
	for i, e := range w.effects {
		if isEffect[SaveWanted](e) && !slices.ContainsFunc(w.effects[:i], isEffect[Install]) {
			t.Error("the disk comes before the filter: what passes meanwhile should not")
		}
	}
	w.expect(t, StateRevoked)
	if w.program != nil || len(w.engine) != 0 {
		t.Error("something passes")
	}
	w.boot()
	w.expect(t, StateRevoked)
	if w.program != nil || len(w.engine) != 0 || w.has(isEffect[Attach]) {
		t.Error("a restart opens something")
	}
	if err := w.m.Check(Up{}); !errors.Is(err, ErrRevoked) {
		t.Errorf("Up without a code: %v", err)
	}
	if err := w.m.Check(Up{Join: join(t)}); err != nil {
		t.Errorf("Up with a code: %v", err)
	}
	w.step(Up{Join: join(t)})
	w.expect(t, StateEnrolling)
	if w.disk.Self != nil || w.disk.Netmap != nil {
		t.Error("what the node was is still on the disk")
	}
}

func TestRefusedForNow(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "two")
	w.step(Snapshot{w.netmap(1, hour, w.peer(p, 1, hour))})
	w.step(Refused{Kind: RefusedForNow, Message: "the node connected from elsewhere"})
	w.expect(t, StateRunning)
	if len(w.open(p)) != 1 {
		t.Error("a refusal that passes closed something")
	}
}

func TestNetmapsThatAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*proto.Netmap){
		"older":         func(nm *proto.Netmap) { nm.Version.N = 4 },
		"older epoch":   func(nm *proto.Netmap) { nm.Version = proto.Version{Epoch: 0, N: 99} },
		"no version":    func(nm *proto.Netmap) { nm.Version = proto.Version{} },
		"another node":  func(nm *proto.Netmap) { nm.Self = 7 },
		"another mesh":  func(nm *proto.Netmap) { nm.Mesh.V4 = netip.MustParsePrefix("100.81.0.0/16") },
		"unknown set":   func(nm *proto.Netmap) { nm.Sets = nil },
		"bad authority": func(nm *proto.Netmap) { nm.Authorities = [][]byte{[]byte("rubbish")} },
	} {
		t.Run(name, func(t *testing.T) {
			w := enrolled(t)
			w.boot()
			w.step(Connected{})
			p := w.mesh.Machine(2, "two")
			peer := w.peer(p, 1, hour)
			w.step(Snapshot{w.netmap(5, 0, peer)})
			nm := w.netmap(6, 0, peer)
			spoil(nm)
			w.step(Snapshot{nm})
			if w.acked.N != 5 || w.disk.Netmap.Version.N != 5 || len(w.open(p)) != 1 {
				t.Error("it changed something")
			}
			if !w.has(isEffect[Redial]) {
				t.Error("nobody asks for a better one")
			}
			if p := strings.Join(w.m.View(w.now).Problems, "\n"); !strings.Contains(p, "refused") {
				t.Errorf("problems: %q", p)
			}
		})
	}
	t.Run("older than before a restart", func(t *testing.T) {
		w := enrolled(t)
		w.boot()
		w.step(Connected{})
		w.step(Snapshot{w.netmap(5, 0)})
		w.step(Stop{})
		w.disk.Netmap = nil // the file was removed, as its error message says
		w.boot()
		w.step(Connected{})
		w.step(Snapshot{w.netmap(4, 0)})
		if w.acked.N != 5 || w.m.netmap != nil {
			t.Error("an older netmap was taken after a restart")
		}
	})
	t.Run("change that does not fit", func(t *testing.T) {
		w := enrolled(t)
		w.boot()
		w.step(Connected{})
		w.step(Change{&proto.Delta{To: proto.Version{N: 1}}})
		if !w.has(isEffect[Redial]) {
			t.Error("a change of nothing was taken")
		}
		w.step(Snapshot{w.netmap(5, 0)})
		w.step(Change{&proto.Delta{From: proto.Version{Epoch: 1, N: 4}, To: proto.Version{Epoch: 1, N: 6}}})
		if w.acked.N != 5 || !w.has(isEffect[Redial]) {
			t.Error("a change from another version was taken")
		}
	})
}

func TestMissingFeature(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "two")
	w.step(Snapshot{w.netmap(1, 0, w.peer(p, 1, hour))})
	nm := w.netmap(2, 0, w.peer(p, 1, hour))
	nm.Requires = []string{"rules/1", "shields/9"}
	w.step(Snapshot{nm})
	if w.program != nil {
		t.Error("something passes under a netmap that asks for more than this program can do")
	}
	if p := strings.Join(w.m.View(w.now).Problems, "\n"); !strings.Contains(p, "requires feature shields/9, which this agent (version test) lacks: upgrade") {
		t.Errorf("problems: %q", p)
	}
	w.step(Snapshot{w.netmap(3, 0, w.peer(p, 1, hour))})
	if len(w.open(p)) != 1 {
		t.Error("closed under a netmap that asks for nothing new")
	}
}

// TestEngineFails checks that a failing engine closes everything, and is started again.
func TestEngineFails(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "two")
	w.refuse = func(e Effect) error {
		if isEffect[SetPeers](e) {
			return errors.New("the engine is closed")
		}
		return nil
	}
	w.step(Snapshot{w.netmap(1, 0, w.peer(p, 1, hour))})
	if w.program != nil || w.acked.N != 0 {
		t.Errorf("open, or acknowledged (%v), without an engine", w.acked)
	}
	w.expect(t, StateStarting)
	w.refuse = nil
	w.wait(retryPath + time.Second)
	w.expect(t, StateRunning)
	if len(w.open(p)) != 1 || w.acked.N != 1 {
		t.Error("not open after the engine was started again")
	}
}
