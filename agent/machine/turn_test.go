package machine

import (
	"crypto/rand"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

func nodeKey(t fataler) key.NodePrivate {
	k, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return k
}

// pair returns a change that makes a certificate name two keys, the second of which takes over after a quarter of its lifetime.
func pair(current, next key.NodePublic) func(*cert.Node) {
	return func(n *cert.Node) {
		n.Keys = []cert.NodeKey{
			{Public: current, NotBefore: n.NotBefore, NotAfter: n.NotAfter},
			{Public: next, NotBefore: n.NotBefore.Add(n.NotAfter.Sub(n.NotBefore) / 4), NotAfter: n.NotAfter},
		}
	}
}

// certificate returns this node's next certificate.
func (w *world) certificate(sequence uint64, change func(*cert.Node), held ...key.NodePublic) *identity.Self {
	w.t.Helper()
	r := identity.Record{
		Chain: [][]byte{w.mesh.Issue(w.self, sequence, w.now, hour, change), w.mesh.Intermediate.Certificate().Raw},
		Roots: [][]byte{w.mesh.Root.Certificate().Raw}, Mesh: w.mesh.Mesh,
	}
	self, err := identity.Check(r, w.self.Device.Device(), held...)
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	return self
}

// renewed gives the machine its next certificate. The world's disk accepts it under whichever key it has.
func (w *world) renewed(sequence uint64, current, next key.NodePrivate) {
	w.t.Helper()
	w.self.Node = next
	w.step(Renewed{w.certificate(sequence, pair(current.Public(), next.Public()), next.Public())})
}

func (w *world) turned() (to key.NodePublic) {
	for _, e := range w.effects {
		if e, ok := e.(Turn); ok {
			to = e.To
		}
	}
	return to
}

// attend lets time pass in contact.
func (w *world) attend(d time.Duration) {
	w.t.Helper()
	for end := w.now.Add(d); w.now.Before(end); {
		w.wait(min(20*time.Second, end.Sub(w.now)))
		w.step(Heard{})
	}
}

func TestNodeKeysTakeTurns(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	w.step(Snapshot{w.netmap(1, 0)})
	w.attend(30 * time.Minute)
	keys := []key.NodePrivate{w.self.Node}
	for n := range 4 {
		keys = append(keys, nodeKey(t))
		w.renewed(uint64(n)+2, keys[n], keys[n+1])
		if w.disk.Key != keys[n].Public() {
			t.Fatalf("renewal %d: at once it uses another key", n)
		}
		w.attend(15*time.Minute - time.Second)
		if w.disk.Key != keys[n].Public() {
			t.Errorf("renewal %d: the next key is in use before its time", n)
		}
		w.wait(2 * time.Second)
		if w.disk.Key != keys[n+1].Public() {
			t.Fatalf("renewal %d: the next key is not in use when its time has come", n)
		}
		if n == 2 {
			w.boot()
			w.step(Connected{})
			if w.turned() != (key.NodePublic{}) {
				t.Error("a restart changes the key")
			}
		}
		w.attend(12 * time.Minute)
	}
}

// TestNodeKeyStaysInAnOutage checks that the key does not change without a coordinator: nobody knows whether the peers have
// heard of the next one.
func TestNodeKeyStaysInAnOutage(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	first, next := w.self.Node, nodeKey(t)
	w.attend(30 * time.Minute)
	w.renewed(2, first, next)
	w.step(Snapshot{w.netmap(1, 8*hour)})
	w.attend(10 * time.Minute)
	w.step(Lost{Reason: "gone"})
	w.wait(hour)
	if w.disk.Key != first.Public() {
		t.Fatal("the key has changed while the coordinator was away")
	}
	w.boot()
	w.wait(hour)
	w.step(Connected{})
	w.attend(Settle - time.Second)
	if w.disk.Key != first.Public() {
		t.Error("the key has changed before the others can have come back")
	}
	w.attend(2 * time.Second)
	if w.disk.Key != next.Public() {
		t.Error("the key does not change after the outage")
	}
}

// TestNodeKeyThatIsNotNamedAnyMore checks that the key changes at once when a certificate no longer names the one in use,
// because its turn was missed.
func TestNodeKeyThatIsNotNamedAnyMore(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	keys := []key.NodePrivate{w.self.Node, nodeKey(t), nodeKey(t)}
	w.attend(30 * time.Minute)
	w.renewed(2, keys[0], keys[1])
	w.step(Lost{Reason: "gone"})
	w.wait(40 * time.Minute)
	w.step(Connected{})
	w.renewed(3, keys[1], keys[2])
	if w.turned() != keys[1].Public() {
		t.Errorf("in use is %v", w.disk.Key)
	}
	// If the agent does not have the key that it should use, that is reported, and not tried over and over.
	w.refuse = func(e Effect) error {
		if isEffect[Turn](e) {
			return errNone
		}
		return nil
	}
	w.attend(16 * time.Minute)
	if p := w.m.View(w.now).Problems; !slices.ContainsFunc(p, func(s string) bool { return strings.Contains(s, errNone.Error()) }) {
		t.Errorf("problems: %q", p)
	}
}

type text string

func (e text) Error() string { return string(e) }

const errNone = text("there is no such key")

func TestKeysOfPeers(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "p")
	a, b, c := p.Node.Public(), nodeKey(t).Public(), nodeKey(t).Public()
	expect := func(when string, want ...key.NodePublic) {
		t.Helper()
		if got := w.engine[p.ID].Keys; !slices.Equal(got, want) {
			t.Errorf("%s: keys %v, want %v", when, got, want)
		}
	}
	w.step(Snapshot{w.netmap(1, 8*hour, w.peer(p, 1, hour))})
	expect("at first", a)
	w.attend(30 * time.Minute)
	w.step(Renewed{w.mesh.Self(w.self, 2, w.now, 12*hour)})
	w.step(Snapshot{w.netmap(2, 8*hour, w.peer(p, 2, hour, pair(a, b)))})
	expect("with a certificate that names the next key too early", a)
	w.attend(14 * time.Minute)
	expect("a minute before its turn", a, b)
	w.attend(time.Minute)
	expect("at its turn", b, a)
	w.attend(12 * time.Minute)
	w.step(Snapshot{w.netmap(3, 8*hour, w.peer(p, 3, hour, pair(b, c)))})
	expect("after the next renewal", b, a)
	w.attend(drain)
	expect("when the old key has drained", b)
	w.attend(15*time.Minute - drain - time.Second)
	expect("before the next turn", b, c)

	// Contact is lost. Whether the peer moves on to the next key is not known.
	w.step(Lost{Reason: "gone"})
	w.wait(10 * time.Minute)
	expect("in an outage", b, c)
	w.boot()
	expect("after a restart in an outage", b, c)
	w.step(Connected{})
	expect("back in contact", c, b)
	w.attend(10 * time.Second)
	w.step(Lost{Reason: "gone"})
	w.wait(time.Minute)
	expect("in another outage", c, b)
	w.boot()
	expect("after a restart in that", c, b)

	// The coordinator was last heard before the turn, and the stream ended after it.
	d := nodeKey(t).Public()
	w.step(Connected{})
	w.step(Snapshot{w.netmap(4, 8*hour, w.peer(p, 4, hour, pair(c, d)))})
	w.attend(15*time.Minute - time.Second)
	w.wait(3 * time.Second)
	expect("at the turn", d, c)
	w.step(Lost{Reason: "gone"})
	expect("when contact is lost", d, c)
	w.wait(time.Minute)
	expect("later", d, c)
}

// TestKeyWhoseTurnCameInAnOutage checks that such a key stays known when the certificate has expired and only grace is left:
// the peer may be back in contact before us, and use it.
func TestKeyWhoseTurnCameInAnOutage(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "p")
	a, b := p.Node.Public(), nodeKey(t).Public()
	w.step(Renewed{w.mesh.Self(w.self, 2, w.now, 12*hour)})
	w.step(Snapshot{w.netmap(1, 8*hour, w.peer(p, 1, hour, pair(a, b)))})
	w.attend(5 * time.Minute)
	w.step(Lost{Reason: "gone"})
	for _, d := range []time.Duration{20 * time.Minute, 30 * time.Minute, 20 * time.Minute, hour} {
		w.wait(d)
		if got := w.engine[p.ID].Keys; !slices.Equal(got, []key.NodePublic{a, b}) {
			t.Errorf("%v into the certificate: keys %v, want %v", w.now.Sub(noon), got, []key.NodePublic{a, b})
		}
	}
	w.boot()
	if got := w.engine[p.ID].Keys; !slices.Equal(got, []key.NodePublic{a, b}) {
		t.Errorf("after a restart: keys %v, want %v", got, []key.NodePublic{a, b})
	}
}

// TestKeysOfBadCertificatesAreForgotten checks that keys of certificates that were never in use do not drain: whoever
// presents such a key could take another peer's place with it.
func TestKeysOfBadCertificatesAreForgotten(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	good, bad := w.mesh.Machine(2, "good"), w.mesh.Machine(3, "bad")
	w.step(Snapshot{w.netmap(1, 0, w.peer(good, 1, hour), w.peer(bad, 1, hour))})
	w.step(Snapshot{w.netmap(2, 0, w.peer(good, 1, hour), w.peer(bad, 2, hour, func(n *cert.Node) { n.Keys[0].Public = good.Node.Public() }))})
	w.step(Snapshot{w.netmap(3, 0, w.peer(good, 1, hour), w.peer(bad, 3, hour))})
	if k := w.engine[bad.ID].Keys; !slices.Equal(k, []key.NodePublic{bad.Node.Public()}) {
		t.Errorf("keys %v", k)
	}
}

// TestFleetRenewsSpreadOut checks that a thousand nodes that come back at the same moment do not all renew at that moment,
// and that all renew while their certificates are good.
func TestFleetRenewsSpreadOut(t *testing.T) {
	const fleet = 1000
	mesh := identitytest.New(noon.Add(-24 * hour))
	machine := mesh.Machine(1, "self")
	self := mesh.Self(machine, 1, noon, hour)
	for name, c := range map[string]struct {
		at             time.Duration // after the certificate was issued
		earliest, last time.Duration
		spread         time.Duration
	}{
		"with young certificates":         {10 * time.Minute, 27 * time.Minute, 33 * time.Minute, 4 * time.Minute},
		"when half of their life is over": {40 * time.Minute, 40 * time.Minute, 46 * time.Minute, 4 * time.Minute},
		"shortly before their end":        {56 * time.Minute, 56 * time.Minute, 58 * time.Minute, time.Minute},
	} {
		for _, how := range []string{"restart", "reconnect"} {
			now := noon.Add(c.at)
			var all []time.Duration
			for seed := range uint64(fleet) {
				m := New(Config{Features: proto.Features(), Rand: mathrand.New(mathrand.NewPCG(seed, 7))}, Loaded{Self: self, Key: self.Key})
				m.wanted.Up = true
				if how == "restart" {
					m.Step(now, Start{})
				} else {
					m.Step(noon, Start{})
					m.Step(now.Add(-time.Minute), Tick{})
				}
				m.Step(now, Connected{})
				all = append(all, m.renewal.due.Sub(noon))
			}
			slices.Sort(all)
			if all[0] < c.earliest || all[fleet-1] > c.last {
				t.Errorf("%s, after a %s: renewals between %v and %v", name, how, all[0], all[fleet-1])
			}
			if d := all[fleet*9/10] - all[fleet/10]; d < c.spread {
				t.Errorf("%s, after a %s: most renewals are within %v", name, how, d)
			}
		}
	}
}

func TestQuarantine(t *testing.T) {
	w := enrolled(t)
	w.disk.Wanted.Routing.Accept = true
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "two")
	w.step(Snapshot{w.netmap(1, 8*hour, w.peer(p, 1, hour, pair(p.Node.Public(), nodeKey(t).Public())))})
	isolated := func(when string) {
		t.Helper()
		w.expect(t, StateQuarantined)
		if w.program != nil || len(w.engine) != 0 {
			t.Errorf("%s: something passes", when)
		}
		if problems := strings.Join(w.m.View(w.now).Problems, "\n"); !strings.Contains(problems, "two machines") {
			t.Errorf("%s: problems %q", when, problems)
		}
	}
	w.step(Refused{Kind: RefusedQuarantined, Message: "two machines: node release"})
	isolated("when the stream ends")
	w.wait(30 * time.Minute)
	isolated("when a peer's key has taken over")
	w.step(Connected{Quarantine: "two machines: node release"})
	isolated("back in contact")
	w.step(Snapshot{w.netmap(2, 8*hour)})
	isolated("with a netmap")
	w.step(PathDown{Reason: "test"})
	w.wait(10 * time.Second)
	isolated("after the data path was down")
	w.step(Lost{Reason: "released"})
	w.step(Connected{})
	w.step(Snapshot{w.netmap(3, 8*hour, w.peer(p, 2, hour))})
	w.expect(t, StateRunning)
	if len(w.open(p)) != 1 || len(w.engine) != 1 {
		t.Error("closed after the release")
	}
	// Released while it still had its peers, like a node that its netmap did not reach.
	w.step(Connected{Quarantine: "two machines: node release"})
	isolated("again")
	w.step(Connected{})
	w.expect(t, StateRunning)
	if len(w.open(p)) != 1 || len(w.engine) != 1 {
		t.Error("closed after the second release")
	}
	// What changes meanwhile counts after the release: another peer has taken over the route.
	other := w.mesh.Machine(3, "three")
	behind := func(m *identitytest.Machine, sequence uint64, routes ...netip.Prefix) proto.Peer {
		r := w.peer(m, sequence, hour)
		r.Routes = routes
		return r
	}
	lan := netip.MustParsePrefix("10.33.0.0/16")
	w.step(Snapshot{w.netmap(4, 8*hour, behind(p, 2, lan), behind(other, 1))})
	if w.routeOwner[lan] != p.ID {
		t.Fatalf("routes: %v", w.routeOwner)
	}
	w.step(Connected{Quarantine: "two machines: node release"})
	w.step(Snapshot{w.netmap(5, 8*hour, behind(p, 2), behind(other, 1, lan))})
	isolated("with another netmap")
	w.step(Connected{})
	if len(w.open(p, other)) != 2 || len(w.engine) != 2 || w.routeOwner[lan] != other.ID {
		t.Errorf("after the last release: engine %v, routes %v", w.engine, w.routeOwner)
	}
}

// TestCertificateThatWasMissed checks that the next certificate is requested if the one that the coordinator sends again has
// expired as well.
func TestCertificateThatWasMissed(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.now = w.now.Add(5 * hour)
	w.step(Tick{})
	w.step(Connected{RenewFirst: true})
	if !w.has(isEffect[Renew]) {
		t.Fatal("no renewal")
	}
	w.step(Renewed{w.mesh.Self(w.self, 2, w.now.Add(-4*hour), hour)})
	if !w.has(isEffect[Renew]) || w.m.contact.serves {
		t.Error("the next certificate is not asked for")
	}
	w.step(Renewed{w.mesh.Self(w.self, 3, w.now, hour)})
	if w.has(isEffect[Renew]) || !w.m.contact.serves {
		t.Error("with a good certificate it does not go on")
	}
}

// TestCountdown checks that from the first minute on the status says what expires without a coordinator, and when.
func TestCountdown(t *testing.T) {
	for name, c := range map[string]struct {
		grace time.Duration
		after time.Duration
		want  []string
	}{
		"at once":             {8 * hour, 30 * time.Second, []string{"valid for 59m30s more, until 2026-05-01T13:00:00Z", "trusted for 7h59m30s more"}},
		"later":               {8 * hour, 2 * hour, []string{"expired at 2026-05-01T13:00:00Z", "trusted for 6h0m0s more"}},
		"when grace is over":  {hour, 2 * hour, []string{"not been trusted since 2026-05-01T13:00:00Z", "nothing passes"}},
		"without any grace":   {0, 30 * time.Second, []string{"valid for 59m30s more", "meanwhile are not trusted"}},
		"and when it has run": {0, 2 * hour, []string{"nothing passes until it is renewed"}},
	} {
		w := enrolled(t)
		w.boot()
		w.step(Connected{})
		w.step(Snapshot{w.netmap(1, c.grace)})
		w.step(Lost{Reason: "gone"})
		w.wait(c.after)
		problems := strings.Join(w.m.View(w.now).Problems, "\n")
		for _, want := range c.want {
			if !strings.Contains(problems, want) {
				t.Errorf("%s: %q does not say %q", name, problems, want)
			}
		}
	}
}

// TestRefusedRenewal checks that the node keeps what it has, and says until when and what to do.
func TestRefusedRenewal(t *testing.T) {
	w := enrolled(t)
	w.boot()
	w.step(Connected{})
	p := w.mesh.Machine(2, "p")
	w.step(Snapshot{w.netmap(1, 0, w.peer(p, 1, 2*hour))})
	w.attend(40 * time.Minute)
	w.step(RenewFailed{Reason: "the machine proves less than it did; ask an administrator"})
	w.step(Refused{Kind: RefusedForNow, Message: "the same"})
	w.step(Connected{})
	if problems := strings.Join(w.m.View(w.now).Problems, "\n"); !strings.Contains(problems, "ask an administrator; the current certificate is valid for 20m0s more") {
		t.Errorf("problems: %q", problems)
	}
	if len(w.open(p)) != 1 {
		t.Error("closed before its certificate has ended")
	}
	w.attend(22 * time.Minute)
	if len(w.open(p)) != 0 {
		t.Error("open after its certificate has ended")
	}
	w.expect(t, StateExpired)
}
