package distribute

import (
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto"
)

// TestOnlyRenewalsAreCalm checks that other changes to a node are urgent, even together with a renewal.
func TestOnlyRenewalsAreCalm(t *testing.T) {
	w := newWorld(t, 1, newHub, nil)
	defer func() {
		w.hub.sub.Close()
		w.dir.Close()
	}()
	id := w.enrol("ann@example.com")
	if _, err := w.dir.SetFact(background, id, "custom:short", "x", 2*time.Minute, "test"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		do   func() error
		want bool
	}{
		{"nothing else", func() error { return nil }, true},
		{"a fact", func() error {
			_, err := w.dir.SetFact(background, id, "custom:a", "x", 0, "test")
			return err
		}, false},
		{"a report", func() error { return w.dir.Report(background, id, directory.Reported{OS: "linux"}) }, false},
		{"a role", func() error { return w.dir.SetRoles(background, "ann@example.com", []string{"admin"}, "test") }, false},
		{"a fact that expires", func() error { w.pass(time.Minute); return nil }, false},
	} {
		before := w.dir.Snapshot()
		w.pass(15 * time.Second) // more than a lost response may take
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		w.renew(id)
		after := w.dir.Snapshot()
		if got := calm(before, after, id, w.clock()); got != c.want {
			t.Errorf("a renewal and %s: calm %v", c.name, got)
		}
	}
	before := w.dir.Snapshot()
	if _, err := w.dir.SetFact(background, id, "custom:a", "y", 0, "test"); err != nil {
		t.Fatal(err)
	}
	if calm(before, w.dir.Snapshot(), id, w.clock()) {
		t.Error("a fact alone is calm")
	}
}

func TestWhatNetmapsRequire(t *testing.T) {
	for _, c := range []struct {
		view compile.View
		want []string
	}{
		{compile.View{}, []string{proto.FeatureRules}},
		{compile.View{Rules: []proto.Rule{{}}}, []string{proto.FeatureRules}},
		{compile.View{Rules: []proto.Rule{{}, {Action: proto.Deny}}}, []string{proto.FeatureDeny, proto.FeatureRules}},
		{compile.View{Rules: []proto.Rule{{Action: proto.Monitor}}}, []string{proto.FeatureDeny, proto.FeatureRules}},
		{compile.View{Rules: []proto.Rule{{Conditional: true}}}, []string{proto.FeatureConditions, proto.FeatureRules}},
		{compile.View{Sets: []proto.Set{{Conditional: true}}, Rules: []proto.Rule{{Action: proto.Deny}}}, conceivable},
	} {
		got := Requires(c.view)
		if !slices.Equal(got, c.want) || !slices.IsSorted(got) {
			t.Errorf("%+v requires %v, want %v", c.view, got, c.want)
		}
	}
}

// TestNetmapsOfNodesThatLackAFeature checks that such nodes get no rule that they could enforce wrongly, and learn which
// feature they need.
func TestNetmapsOfNodesThatLackAFeature(t *testing.T) {
	w := newWorld(t, 1, newHub, nil)
	defer func() {
		w.hub.sub.Close()
		w.dir.Close()
	}()
	a, b := w.enrol("tag:a"), w.enrol("tag:b")
	w.setPolicy(`{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
		"deny": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:22"]}]}`)
	c, _ := w.hub.sub.Take()
	w.hub.apply(c)
	s := w.hub.Source()
	for _, id := range []proto.NodeID{a, b} {
		if got := Missing(s, id, []string{proto.FeatureRules}); !slices.Equal(got, []string{proto.FeatureDeny}) {
			t.Errorf("missing: %v", got)
		}
		if got := Missing(s, id, conceivable); len(got) != 0 {
			t.Errorf("missing of all: %v", got)
		}
		nm := Netmap(s, id, []string{proto.FeatureRules})
		if len(nm.Rules)+len(nm.Peers)+len(nm.Sets)+len(nm.Withheld) != 0 || !slices.Contains(nm.Requires, proto.FeatureDeny) {
			t.Errorf("%+v", nm)
		}
		if nm := Netmap(s, id, conceivable); len(nm.Rules) == 0 || len(nm.Peers) != 1 {
			t.Errorf("with all features: %+v", nm)
		}
	}
}

// TestWhoIsToldOfABarredNode checks that the nodes that the policy ties to a barred node learn of it until its certificate is
// over, and no others.
func TestWhoIsToldOfABarredNode(t *testing.T) {
	w := newWorld(t, 1, newHub, nil)
	defer func() {
		w.hub.sub.Close()
		w.dir.Close()
	}()
	a, b, c := w.enrol("tag:a"), w.enrol("tag:b"), w.enrol("ann@example.com")
	w.setPolicy(`{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["*"]}]}`)
	step := func() Source {
		if change, ok := w.hub.sub.Take(); ok {
			w.hub.apply(change)
		}
		return w.hub.Source()
	}
	barred := func(what string, s Source, want ...proto.Barred) {
		t.Helper()
		nm := Netmap(s, a, able)
		if !slices.Equal(nm.Barred, want) || len(nm.Peers) != 1-len(want) && len(want) > 0 {
			t.Errorf("%s: barred %v, %d peers", what, nm.Barred, len(nm.Peers))
		}
		if other := Netmap(s, c, able); len(other.Barred) != 0 {
			t.Errorf("%s: a stranger is told of %v", what, other.Barred)
		}
		if old := Netmap(s, a, conceivable); len(old.Barred) != 0 {
			t.Errorf("%s: an agent that does not know of such is told of %v", what, old.Barred)
		}
	}
	barred("before", step())
	l, _, err := w.dir.CreateLock(background, directory.LockSpec{Kind: directory.LockNode, Subject: b.String()})
	if err != nil {
		t.Fatal(err)
	}
	s := step()
	barred("locked", s, proto.Barred{ID: b, Sequence: 1})
	if Netmap(s, b, able) != nil {
		t.Error("a locked node has a netmap")
	}
	if _, _, err := w.dir.DeleteLock(background, l.ID, "test"); err != nil {
		t.Fatal(err)
	}
	barred("unlocked", step())
	w.renew(b)
	if _, err := w.dir.RevokeNode(background, b, "", "test"); err != nil {
		t.Fatal(err)
	}
	n, _ := w.dir.Snapshot().Lookup(b)
	barred("revoked", step(), proto.Barred{ID: b, Sequence: n.Certificate.Sequence})
	w.pass(lifetime + directory.Patience + time.Second)
	w.renew(a)
	w.renew(c)
	if _, err := w.dir.Expire(background); err != nil {
		t.Fatal(err)
	}
	barred("when its certificate is over", step())
}

// TestWhoIsToldOfPaths checks that older agents, which refuse a netmap with them, get no path keys and home relays.
func TestWhoIsToldOfPaths(t *testing.T) {
	w := newWorld(t, 1, newHub, nil)
	defer func() {
		w.hub.sub.Close()
		w.dir.Close()
	}()
	a, b := w.enrol("tag:a"), w.enrol("tag:b")
	w.setPolicy(`{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["*"]}]}`)
	reach := proto.Reach{PathKey: &proto.PathKey{Public: [32]byte{1}, Boot: 1, Signature: []byte{1}}, HomeRelay: 5}
	if err := w.dir.SetReach(t.Context(), b, reach); err != nil {
		t.Fatal(err)
	}
	if change, ok := w.hub.sub.Take(); ok {
		w.hub.apply(change)
	}
	s := w.hub.Source()
	for name, c := range map[string]struct {
		features []string
		want     proto.Reach
	}{"new": {proto.Features(), reach}, "old": {conceivable, proto.Reach{}}} {
		nm := Netmap(s, a, c.features)
		if len(nm.Peers) != 1 || !nm.Peers[0].Reach.Equal(&c.want) {
			t.Errorf("%s: %+v", name, nm.Peers)
		}
	}
}
