package directory

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
)

// inBubble runs f in a synctest bubble, with a directory that uses its clock.
func inBubble(t *testing.T, ages Ages, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, store: store.NewMemory(), clock: &clock{t: time.Now()}}
		if _, err := Ensure(t.Context(), r.store, Plan{}, rand.Reader, time.Now()); err != nil {
			t.Fatal(err)
		}
		d, err := Open(context.Background(), r.store, Config{Clock: time.Now, Rand: rand.Reader, Issue: issue, Signer: signer, Ages: ages})
		if err != nil {
			t.Fatal(err)
		}
		r.Directory = d
		defer d.Close()
		f(t, r)
	})
}

func (r *rig) fact(n *Node, name, value string, ttl time.Duration) {
	r.t.Helper()
	if _, err := r.SetFact(r.t.Context(), n.ID, name, value, ttl, "uid 0"); err != nil {
		r.t.Fatal(err)
	}
}

// changed returns the nodes of the next change; ok is false if there is none.
func changed(s *Subscription) ([]proto.NodeID, bool) {
	c, ok := s.Take()
	return c.Nodes, ok
}

func TestFactsOfANode(t *testing.T) {
	r := newRig(t)
	q := machine(t, r.reusable(), "laptop")
	q.Reported = Reported{OS: "darwin", OSVersion: "24.1.0", Version: "1.2.3", Hostname: "laptop"}
	n := r.enroll(q)
	want := map[string]string{
		"node:os": "macos", "node:osVersion": "24.1.0", "node:version": "1.2.3", "node:hostname": "laptop", "device:attestation": "token",
	}
	if got := r.Snapshot().Traits(n.ID).Facts; !maps.Equal(got, want) {
		t.Errorf("enrolled: %v, want %v", got, want)
	}
	sub := r.Subscribe()
	defer sub.Close()
	if err := r.Report(t.Context(), n.ID, q.Reported); err != nil {
		t.Fatal(err)
	}
	if ids, ok := changed(sub); ok {
		t.Errorf("a report of what is known changes %v", ids)
	}
	q.Reported.OSVersion, q.Reported.Version = "24.2.0", strings.Repeat("x", MaxFact+1)
	q.Reported.Hostname = "bell\a"
	if err := r.Report(t.Context(), n.ID, q.Reported); err != nil {
		t.Fatal(err)
	}
	r.fact(n, "custom:tier", "prod", 0)
	r.fact(n, "custom:tier", "stage", 0)
	want = map[string]string{"node:os": "macos", "node:osVersion": "24.2.0", "device:attestation": "token", "custom:tier": "stage"}
	if got := r.Snapshot().Traits(n.ID).Facts; !maps.Equal(got, want) {
		t.Errorf("after an update: %v, want %v: what could be no fact is not set", got, want)
	}
	if ids, ok := changed(sub); !ok || !slices.Equal(ids, []proto.NodeID{n.ID}) {
		t.Errorf("the change is about %v", ids)
	}
	r.reopen()
	if got := r.Snapshot().Traits(n.ID).Facts; !maps.Equal(got, want) {
		t.Errorf("after a restart: %v, want %v", got, want)
	}
	if _, err := r.UnsetFact(t.Context(), n.ID, "custom:tier", "uid 0"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.UnsetFact(t.Context(), n.ID, "custom:tier", "uid 0"); !errors.Is(err, ErrInvalid) {
		t.Errorf("unset twice: %v", err)
	}
	if _, ok := r.Snapshot().Traits(n.ID).Facts["custom:tier"]; ok {
		t.Error("a fact that was taken back is there")
	}
	lines, err := r.Audit(t.Context(), 0, 10, AuditQuery{})
	if err != nil || lines[0].Action != audit.FactUnset || lines[1].Action != audit.FactSet || lines[1].Reason != "custom:tier = stage for good" || lines[1].By != "uid 0" {
		t.Errorf("audit: %+v, %v", lines[:2], err)
	}
}

func TestFactsThatCannotBeSet(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	for _, c := range []struct {
		name, value string
		ttl         time.Duration
	}{
		{"node:os", "linux", 0},
		{"custom:", "x", 0},
		{"custom:a b", "x", 0},
		{"custom:" + strings.Repeat("a", 128), "x", 0},
		{"posture:firewall", "true", 0},
		{"fact", "x", 0},
		{"custom:a", "", 0},
		{"custom:a", "x\n", 0},
		{"custom:a", "\xff", 0},
		{"custom:a", strings.Repeat("x", MaxFact+1), 0},
		{"custom:a", "x", time.Millisecond},
		{"custom:a", "x", MaxFactTTL + time.Second},
		{"custom:a", "x", -time.Hour},
	} {
		if _, err := r.SetFact(t.Context(), n.ID, c.name, c.value, c.ttl, "uid 0"); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", c, err)
		}
	}
	for i := range MaxFacts {
		r.fact(n, fmt.Sprint("custom:f", i), "x", 0)
	}
	if _, err := r.SetFact(t.Context(), n.ID, "custom:more", "x", 0, "uid 0"); !errors.Is(err, ErrInvalid) {
		t.Errorf("one too many: %v", err)
	}
	r.fact(n, "custom:f0", "y", 0) // replaces an existing one
	if _, err := r.RevokeNode(t.Context(), n.ID, "", "uid 0"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.SetFact(t.Context(), n.ID, "custom:f0", "x", 0, "uid 0"); !errors.Is(err, ErrRevoked) {
		t.Errorf("of a revoked node: %v", err)
	}
	r.over(n)
	if got := r.Snapshot().Traits(n.ID); got.Facts != nil {
		t.Errorf("policies see of a revoked node %v", got)
	}
}

// TestFactsExpireByThemselves checks that facts expire without any request, and that only the affected nodes are reported as
// changed.
func TestFactsExpireByThemselves(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		var nodes []*Node
		for i := range 50 {
			nodes = append(nodes, r.node("host"))
			r.fact(nodes[i], "custom:stays", "x", 0)
		}
		r.fact(nodes[3], "custom:short", "x", time.Hour)
		r.fact(nodes[3], "custom:long", "x", 2*time.Hour)
		r.fact(nodes[7], "custom:short", "x", time.Hour)
		sub := r.Subscribe()
		defer sub.Close()
		start := time.Now()
		wait := func() []proto.NodeID {
			<-sub.Ready()
			ids, _ := changed(sub)
			return ids
		}
		before := r.Snapshot()
		both := []proto.NodeID{nodes[3].ID, nodes[7].ID}
		slices.Sort(both)
		if ids := wait(); !slices.Equal(ids, both) || time.Since(start) != time.Hour {
			t.Errorf("after %v a change of %v, want %v after an hour", time.Since(start), ids, both)
		}
		if _, ok := before.Traits(nodes[3].ID).Facts["custom:short"]; !ok {
			t.Error("the snapshot from before has lost a fact")
		}
		facts := r.Snapshot().Traits(nodes[3].ID).Facts
		if _, ok := facts["custom:short"]; ok || facts["custom:long"] != "x" || facts["custom:stays"] != "x" {
			t.Errorf("after an hour: %v", facts)
		}
		if ids := wait(); !slices.Equal(ids, []proto.NodeID{nodes[3].ID}) || time.Since(start) != 2*time.Hour {
			t.Errorf("after %v a change of %v", time.Since(start), ids)
		}
		synctest.Wait()
		if r.Snapshot().state.stale.Len() != 2 {
			t.Errorf("%d nodes have facts to be taken off the disk", r.Snapshot().state.stale.Len())
		}
		if _, err := r.Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if v := contents(t, r.store)[traitsPath(nodes[3].ID)]; strings.Contains(v, "short") || strings.Contains(v, "long") || !strings.Contains(v, "stays") {
			t.Errorf("on disk: %s", v)
		}
		changed(sub)                    // certificates have lapsed meanwhile
		time.Sleep(30 * 24 * time.Hour) // in the bubble's time: the writer sleeps, and nothing else happens
		if ids, ok := changed(sub); ok {
			t.Errorf("then a change of %v", ids)
		}
	})
}

func TestFactsThatExpiredWhileTheCoordinatorWasAway(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	r.fact(n, "custom:short", "x", time.Hour)
	r.Close()
	r.clock.pass(time.Hour)
	r.open()
	if facts := r.Snapshot().Traits(n.ID).Facts; len(facts) != 1 {
		t.Errorf("after the restart: %v", facts)
	}
	if _, err := r.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v, ok := contents(t, r.store)[traitsPath(n.ID)]; ok {
		t.Errorf("on disk: %s", v)
	}
	// A fact set again later is a different fact.
	r.fact(n, "custom:short", "y", time.Hour)
	if facts := r.Snapshot().Traits(n.ID).Facts; facts["custom:short"] != "y" {
		t.Errorf("set again: %v", facts)
	}
}

// TestOthersWritesBringTimeForward checks that what is due is included in whichever change comes first.
func TestOthersWritesBringTimeForward(t *testing.T) {
	r := newRig(t)
	n, other := r.node("host"), r.node("other")
	r.fact(n, "custom:short", "x", time.Hour)
	sub := r.Subscribe()
	defer sub.Close()
	r.clock.pass(time.Hour)
	r.fact(other, "custom:a", "x", 0)
	c, ok := sub.Take()
	both := []proto.NodeID{n.ID, other.ID}
	slices.Sort(both)
	if !ok || !slices.Equal(c.Nodes, both) || !c.Before.Now().Before(c.After.Now()) {
		t.Errorf("a change of %v, want %v", c.Nodes, both)
	}
	if _, had := c.Before.Traits(n.ID).Facts["custom:short"]; !had {
		t.Error("it is not there before")
	}
	if _, has := c.After.Traits(n.ID).Facts["custom:short"]; has {
		t.Error("it is there after")
	}
}

// schedule is a policy that depends on time: for each node at its own moments, for all nodes at others.
type schedule struct {
	nodes map[string][]time.Time
	all   []time.Time

	mu    sync.Mutex
	asked map[string]int
}

// counts returns how often each node was evaluated, by name.
func (s *schedule) counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.asked)
}

func after(list []time.Time, now time.Time) time.Time {
	for _, t := range list {
		if t.After(now) {
			return t
		}
	}
	return time.Time{}
}

func (s *schedule) Next(snap *Snapshot, id proto.NodeID) time.Time {
	n, _ := snap.Lookup(id)
	s.mu.Lock()
	s.asked[n.Name]++
	s.mu.Unlock()
	return after(s.nodes[n.Name], snap.Now())
}
func (s *schedule) Until(snap *Snapshot) time.Time { return after(s.all, snap.Now()) }
func (s *schedule) Grace(*Snapshot) time.Duration  { return 0 }

func TestAgesAreLookedAtWhenTheyPass(t *testing.T) {
	s := &schedule{nodes: map[string][]time.Time{}, asked: map[string]int{}}
	inBubble(t, s, func(t *testing.T, r *rig) {
		start := time.Now()
		s.nodes["a"] = []time.Time{start.Add(time.Hour), start.Add(3 * time.Hour)}
		s.nodes["b"] = []time.Time{start.Add(2 * time.Hour)}
		s.all = []time.Time{start.Add(4 * time.Hour)}
		a, b := r.node("a"), r.node("b")
		r.node("c")
		if _, err := r.SetPolicy(t.Context(), "{}", 0, "uid 0"); err != nil {
			t.Fatal(err)
		}
		sub := r.Subscribe()
		defer sub.Close()
		asked := s.counts()
		for i, want := range []struct {
			nodes  []proto.NodeID
			policy bool
		}{{[]proto.NodeID{a.ID}, false}, {[]proto.NodeID{b.ID}, false}, {[]proto.NodeID{a.ID}, false}, {nil, true}} {
			<-sub.Ready()
			c, _ := sub.Take()
			if !slices.Equal(c.Nodes, want.nodes) || c.Policy != want.policy || time.Since(start) != time.Duration(i+1)*time.Hour {
				t.Errorf("after %v: %v, policy %v; want %+v", time.Since(start), c.Nodes, c.Policy, want)
			}
			if !c.After.Now().Equal(time.Now()) {
				t.Errorf("the snapshot is about %v", c.After.Now())
			}
			if now := s.counts(); i == 2 && (now["c"] != asked["c"] || now["b"] != asked["b"]+1) {
				t.Errorf("nodes that nothing happened to were looked at: %v, then %v", asked, now)
			}
		}
		if _, err := r.RevokeNode(t.Context(), a.ID, "", "uid 0"); err != nil {
			t.Fatal(err)
		}
		if r.Snapshot().state.due.Len() != 0 {
			t.Error("a revoked node has a moment")
		}
	})
}

func TestClockThatGoesBack(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	sub := r.Subscribe()
	defer sub.Close()
	now := r.Snapshot().Now()
	r.clock.pass(-30 * time.Second)
	r.fact(n, "custom:a", "1", 0)
	if c, _ := sub.Take(); c.Policy || !r.Snapshot().Now().Equal(now) {
		t.Errorf("a little: it is %v, and was %v; everybody: %v", r.Snapshot().Now(), now, c.Policy)
	}
	r.clock.pass(-time.Hour)
	r.fact(n, "custom:a", "2", 0)
	if c, _ := sub.Take(); !c.Policy || !r.Snapshot().Now().Equal(r.clock.now()) {
		t.Errorf("an hour: it is %v, the clock says %v; everybody: %v", r.Snapshot().Now(), r.clock.now(), c.Policy)
	}
}

func TestRoutes(t *testing.T) {
	r := newRig(t)
	prefix := netip.MustParsePrefix
	n := r.node("router")
	r.node("other")
	advertised := []netip.Prefix{prefix("10.44.0.0/16"), prefix("10.33.0.0/16"), prefix("0.0.0.0/0")}
	if err := r.Report(t.Context(), n.ID, Reported{OS: "linux", Routes: advertised}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ApproveRoutes(t.Context(), n.ID, advertised[1:2], "uid 0"); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		got := r.Snapshot().Traits(n.ID)
		want := []netip.Prefix{prefix("0.0.0.0/0"), prefix("10.33.0.0/16"), prefix("10.44.0.0/16")}
		if !slices.Equal(got.Advertised, want) || !slices.Equal(got.Approved, want[1:2]) {
			t.Errorf("%s: %+v", when, got)
		}
		if routers := slices.Collect(r.Snapshot().Routers()); !slices.Equal(routers, []proto.NodeID{n.ID}) {
			t.Errorf("%s: routers %v", when, routers)
		}
	}
	check("approved")
	r.reopen()
	check("after a restart")
	r.renew(n)
	check("after a renewal")
	mesh := r.Snapshot().Mesh()
	for _, bad := range [][]netip.Prefix{
		{mesh.V4},
		{netip.PrefixFrom(mesh.V6.Addr(), 64)},
		{{}},
		{netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 8)},
		{netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.0"), 104)},
		make([]netip.Prefix, proto.MaxRoutes+1),
	} {
		if _, err := r.ApproveRoutes(t.Context(), n.ID, bad, "uid 0"); !errors.Is(err, ErrInvalid) {
			t.Errorf("approve %v: %v", bad[0], err)
		}
		if err := r.Report(t.Context(), n.ID, Reported{Routes: bad}); !errors.Is(err, ErrInvalid) {
			t.Errorf("report %v: %v", bad[0], err)
		}
	}
	if _, err := r.RevokeNode(t.Context(), n.ID, "", "uid 0"); err != nil {
		t.Fatal(err)
	}
	r.over(n)
	if routers := slices.Collect(r.Snapshot().Routers()); len(routers) != 0 {
		t.Errorf("a revoked router: %v", routers)
	}
	r.reopen()
	if routers := slices.Collect(r.Snapshot().Routers()); len(routers) != 0 {
		t.Errorf("a revoked router after a restart: %v", routers)
	}
	if err := r.DeleteNode(t.Context(), n.ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	for k := range contents(t, r.store) {
		if strings.HasPrefix(k, traitsPrefix) {
			t.Errorf("left behind: %s", k)
		}
	}
}

func TestRoles(t *testing.T) {
	r := newRig(t)
	tok := r.token(func(s *TokenSpec) { s.Tags, s.User, s.Reusable = nil, "ann@example.com", true })
	ann, anns := r.enroll(machine(t, tok, "a")), r.enroll(machine(t, tok, "b"))
	r.node("other")
	sub := r.Subscribe()
	defer sub.Close()
	set := func(roles ...string) {
		t.Helper()
		if err := r.SetRoles(t.Context(), "ann@example.com", roles, "uid 0"); err != nil {
			t.Fatal(err)
		}
	}
	set("owner", "admin", "admin")
	both := []proto.NodeID{ann.ID, anns.ID}
	slices.Sort(both)
	if ids, _ := changed(sub); !slices.Equal(ids, both) {
		t.Errorf("the change is about %v, want %v", ids, both)
	}
	set("admin", "owner")
	if ids, ok := changed(sub); ok {
		t.Errorf("the same roles again change %v", ids)
	}
	r.reopen()
	if got := r.Snapshot().Roles("ann@example.com"); !slices.Equal(got, []string{"admin", "owner"}) {
		t.Errorf("after a restart: %v", got)
	}
	set()
	if got := r.Snapshot().Roles("ann@example.com"); got != nil || len(slices.Collect(r.Snapshot().Users())) != 0 {
		t.Errorf("taken away: %v", got)
	}
	for k := range contents(t, r.store) {
		if strings.HasPrefix(k, rolePrefix) {
			t.Errorf("left behind: %s", k)
		}
	}
	for user, role := range map[string]string{"ann@example.com": "king", "": "admin", "ann@": "admin", "group:x": "admin"} {
		if err := r.SetRoles(t.Context(), user, []string{role}, "uid 0"); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q %q: %v", user, role, err)
		}
	}
}

func TestPolicyHistory(t *testing.T) {
	r := newRig(t)
	apply := func(c PolicyChange) (*Policy, error) {
		c.By = "uid 0"
		return r.ChangePolicy(t.Context(), c)
	}
	if list, err := r.History(t.Context(), 0, 10); err != nil || len(list) != 0 {
		t.Errorf("before the first: %v, %v", list, err)
	}
	none := uint64(0)
	for i, source := range []string{"one", "two", "three"} {
		if _, err := apply(PolicyChange{Source: source, Comment: "for " + source, Expect: ptr(uint64(i))}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := apply(PolicyChange{Source: "four", Expect: &none}); !errors.Is(err, ErrPolicyChanged) {
		t.Errorf("where none is expected: %v", err)
	}
	for _, bad := range []string{"two\nlines", strings.Repeat("x", MaxComment+1), "\xff"} {
		if _, err := apply(PolicyChange{Source: "four", Comment: bad}); !errors.Is(err, ErrInvalid) {
			t.Errorf("comment %.20q: %v", bad, err)
		}
	}
	if p, err := apply(PolicyChange{Source: "one", Of: 1}); err != nil || p.Number != 4 || p.Of != 1 {
		t.Errorf("back: %+v, %v", p, err)
	}
	r.reopen()
	list, err := r.History(t.Context(), 0, 3)
	if err != nil || len(list) != 3 || list[0].Number != 4 || list[0].Of != 1 || list[1].Comment != "for three" || list[2].Size != 3 || list[2].Source != "" {
		t.Errorf("history: %+v, %v", list, err)
	}
	if list, err := r.History(t.Context(), 2, 3); err != nil || len(list) != 1 || list[0].Number != 1 {
		t.Errorf("before 2: %+v, %v", list, err)
	}
	if p, err := r.PolicyVersion(t.Context(), 2); err != nil || p.Source != "two" || p.By != "uid 0" || !p.Applied.Equal(start) {
		t.Errorf("version 2: %+v, %v", p, err)
	}
	if _, err := r.PolicyVersion(t.Context(), 9); !errors.Is(err, ErrPolicyUnknown) {
		t.Errorf("version 9: %v", err)
	}
	lines, err := r.Audit(t.Context(), 0, 2, AuditQuery{})
	if err != nil || lines[0].Action != audit.PolicyRollback || lines[0].Reason != "to version 1" || lines[1].Reason != "for three" {
		t.Errorf("audit: %+v, %v", lines, err)
	}
}

func ptr[T any](v T) *T { return &v }
