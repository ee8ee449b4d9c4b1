package proto_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/prototest"
)

// diff compares netmaps: absent and empty lists mean the same.
func diff(a, b *proto.Netmap) string {
	return cmp.Diff(a, b, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{}, netip.Addr{}))
}

func v(n uint64) proto.Version { return proto.Version{Epoch: 1, N: n} }

func TestApplyDiff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := prototest.Netmap(v(3)).Draw(t, "a")
		b := prototest.Netmap(v(9)).Draw(t, "b")
		for _, nm := range []*proto.Netmap{a, b} {
			if err := nm.Validate(); err != nil {
				t.Fatalf("drawn netmap: %v", err)
			}
		}
		got, err := a.Apply(proto.Diff(a, b))
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(b, got); d != "" {
			t.Fatal(d)
		}
		if err := got.Validate(); err != nil {
			t.Fatal(err)
		}
		if proto.Diff(a, b).Empty() != (diff(a, withVersion(b, a.Version)) == "") {
			t.Fatal("Empty says something else than the comparison")
		}
	})
}

func withVersion(nm *proto.Netmap, v proto.Version) *proto.Netmap {
	c := *nm
	c.Version = v
	return &c
}

// TestApplyMutatedDelta damages deltas at random: a refused one changes nothing, and an accepted one leads to a valid netmap.
func TestApplyMutatedDelta(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := prototest.Netmap(v(3)).Draw(t, "a")
		d := proto.Diff(a, prototest.Netmap(v(9)).Draw(t, "b"))
		other := proto.Diff(prototest.Netmap(v(1)).Draw(t, "c"), prototest.Netmap(v(2)).Draw(t, "d"))
		// Parts of a delta between other netmaps name missing items, and lie beside existing ones.
		if rapid.Bool().Draw(t, "peers") {
			d.RemovePeers = append(slices.Clone(d.RemovePeers), other.RemovePeers...)
			d.Reaches = append(slices.Clone(d.Reaches), other.Reaches...)
		}
		if rapid.Bool().Draw(t, "sets") {
			d.UpsertSets, d.ChangeSets, d.RemoveSets = other.UpsertSets, other.ChangeSets, other.RemoveSets
		}
		if rapid.Bool().Draw(t, "rules") {
			d.UpsertRules, d.RemoveRules = other.UpsertRules, other.RemoveRules
		}
		if rapid.Bool().Draw(t, "barred") {
			d.UpsertBarred, d.RemoveBarred = other.UpsertBarred, other.RemoveBarred
		}
		before := deepCopy(a)
		got, err := a.Apply(d)
		if s := diff(before, a); s != "" {
			t.Fatalf("Apply changed what it was called on:\n%s", s)
		}
		switch {
		case err == nil:
			if err := got.Validate(); err != nil {
				t.Fatalf("applied, and invalid: %v", err)
			}
		case got != nil || !errors.Is(err, proto.ErrInvalid):
			t.Fatalf("got %v, %v", got, err)
		}
	})
}

func deepCopy(nm *proto.Netmap) *proto.Netmap {
	c := *nm
	c.Authorities = slices.Clone(nm.Authorities)
	c.Requires = slices.Clone(nm.Requires)
	c.Peers = slices.Clone(nm.Peers)
	for i := range c.Peers {
		c.Peers[i].Endpoints = slices.Clone(c.Peers[i].Endpoints)
	}
	c.Sets = slices.Clone(nm.Sets)
	for i := range c.Sets {
		c.Sets[i].Members = slices.Clone(c.Sets[i].Members)
	}
	c.Rules = slices.Clone(nm.Rules)
	c.Barred = slices.Clone(nm.Barred)
	return &c
}

func small() *proto.Netmap {
	return &proto.Netmap{
		Version: v(3), Mesh: prototest.Mesh(), Self: prototest.Self,
		Peers: []*proto.Peer{{ID: 1, Certificate: []byte{1}}, {ID: 2, Certificate: []byte{2}}},
		Sets:  []proto.Set{{Name: "group:a", Members: []proto.NodeID{1, 2}}, {Name: "group:b"}},
		Rules: []proto.Rule{{
			Key: "grants[0]/in", Origin: proto.Origin{Path: "grants[0]", Line: 1}, Direction: proto.In,
			Peers: proto.Selector{Sets: []string{"group:a"}},
		}},
	}
}

func TestHostileDeltas(t *testing.T) {
	other := prototest.Mesh()
	other.Domain = "elsewhere"
	peer := &proto.Peer{ID: 3, Certificate: []byte{3}}
	rule := proto.Rule{Key: "grants[1]/in", Origin: proto.Origin{Path: "grants[1]", Line: 1}, Direction: proto.In}
	tests := map[string]func(d *proto.Delta){
		"from another version": func(d *proto.Delta) { d.From = v(2) },
		"from another epoch":   func(d *proto.Delta) { d.From.Epoch = 2 },
		"to the same version":  func(d *proto.Delta) { d.To = v(3) },
		"to an older version":  func(d *proto.Delta) { d.To = v(2) },
		"of another node":      func(d *proto.Delta) { d.Head = &proto.Head{Mesh: prototest.Mesh(), Self: 99} },
		"of another mesh":      func(d *proto.Delta) { d.Head = &proto.Head{Mesh: other, Self: prototest.Self} },
		"negative grace": func(d *proto.Delta) {
			d.Head = &proto.Head{Mesh: prototest.Mesh(), Self: prototest.Self, Outage: proto.Outage{Grace: -time.Second}}
		},
		"removes no peer":          func(d *proto.Delta) { d.RemovePeers = []proto.NodeID{5} },
		"removes a peer twice":     func(d *proto.Delta) { d.RemovePeers = []proto.NodeID{1, 1} },
		"removes and upserts":      func(d *proto.Delta) { d.UpsertPeers, d.RemovePeers = []*proto.Peer{peer}, []proto.NodeID{3} },
		"moves a peer it removes":  func(d *proto.Delta) { d.Reaches, d.RemovePeers = []proto.ReachChange{{ID: 1}}, []proto.NodeID{1} },
		"moves no peer":            func(d *proto.Delta) { d.Reaches = []proto.ReachChange{{ID: 5}} },
		"the node as its own peer": func(d *proto.Delta) { d.UpsertPeers = []*proto.Peer{{ID: prototest.Self, Certificate: []byte{1}}} },
		"peer zero":                func(d *proto.Delta) { d.UpsertPeers = []*proto.Peer{{Certificate: []byte{1}}} },
		"peer without certificate": func(d *proto.Delta) { d.UpsertPeers = []*proto.Peer{{ID: 3}} },
		"unsorted peers":           func(d *proto.Delta) { d.UpsertPeers = []*proto.Peer{{ID: 4, Certificate: []byte{1}}, peer} },
		"removes no set":           func(d *proto.Delta) { d.RemoveSets = []string{"group:z"} },
		"removes a set in use":     func(d *proto.Delta) { d.RemoveSets = []string{"group:a"} },
		"changes no set":           func(d *proto.Delta) { d.ChangeSets = []proto.SetChange{{Name: "group:z", Add: []proto.NodeID{1}}} },
		"changes nothing of a set": func(d *proto.Delta) { d.ChangeSets = []proto.SetChange{{Name: "group:a"}} },
		"adds a member again":      func(d *proto.Delta) { d.ChangeSets = []proto.SetChange{{Name: "group:a", Add: []proto.NodeID{1}}} },
		"adds and removes": func(d *proto.Delta) {
			d.ChangeSets = []proto.SetChange{{Name: "group:a", Add: []proto.NodeID{3}, Remove: []proto.NodeID{3}}}
		},
		"removes no member":      func(d *proto.Delta) { d.ChangeSets = []proto.SetChange{{Name: "group:a", Remove: []proto.NodeID{3}}} },
		"unsorted members":       func(d *proto.Delta) { d.ChangeSets = []proto.SetChange{{Name: "group:a", Add: []proto.NodeID{5, 4}}} },
		"member zero":            func(d *proto.Delta) { d.UpsertSets = []proto.Set{{Name: "group:c", Members: []proto.NodeID{0}}} },
		"removes no rule":        func(d *proto.Delta) { d.RemoveRules = []string{"grants[9]/in"} },
		"rule of an unknown set": func(d *proto.Delta) { r := rule; r.Peers.Sets = []string{"group:z"}; d.UpsertRules = []proto.Rule{r} },
		"rule of no direction":   func(d *proto.Delta) { r := rule; r.Direction = 0; d.UpsertRules = []proto.Rule{r} },
		"rule with ports of ICMP": func(d *proto.Delta) {
			r := rule
			r.Services = []proto.Service{{Proto: proto.ProtoICMP, First: 8, Last: 8}}
			d.UpsertRules = []proto.Rule{r}
		},
		"rule with an empty interval": func(d *proto.Delta) {
			r := rule
			r.Services = []proto.Service{{Proto: proto.ProtoTCP, First: 8, Last: 7}}
			d.UpsertRules = []proto.Rule{r}
		},
		"rule that comes and goes":     func(d *proto.Delta) { d.UpsertRules, d.RemoveRules = []proto.Rule{rule}, []string{rule.Key} },
		"too many members in one step": func(d *proto.Delta) { d.UpsertSets = []proto.Set{{Name: "group:c", Members: many(proto.MaxMembers)}} },
		"too many peers":               func(d *proto.Delta) { d.UpsertPeers = manyPeers(proto.MaxPeers) },
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			nm, before := small(), small()
			d := &proto.Delta{From: v(3), To: v(4)}
			damage(d)
			got, err := nm.Apply(d)
			if err == nil || got != nil {
				t.Fatalf("applied: %v", got)
			}
			if !errors.Is(err, proto.ErrInvalid) && !errors.Is(err, proto.ErrVersion) {
				t.Errorf("error is of no kind: %v", err)
			}
			if s := diff(before, nm); s != "" {
				t.Errorf("changed all the same:\n%s", s)
			}
		})
	}
}

func many(n int) []proto.NodeID {
	out := make([]proto.NodeID, n)
	for i := range out {
		out[i] = proto.NodeID(i + 1)
	}
	return out
}

func manyPeers(n int) []*proto.Peer {
	out := make([]*proto.Peer, n)
	for i := range out {
		out[i] = &proto.Peer{ID: proto.NodeID(i + 1000), Certificate: []byte{1}}
	}
	return out
}

// TestSetDelta checks that a node that joins a large group is one change of one member.
func TestSetDelta(t *testing.T) {
	a, b := small(), small()
	a.Sets[0].Members = many(1000)
	b.Sets[0].Members = append(many(1000), 2000)
	b.Version = v(4)
	want := &proto.Delta{From: v(3), To: v(4), ChangeSets: []proto.SetChange{{Name: "group:a", Add: []proto.NodeID{2000}}}}
	if d := cmp.Diff(want, proto.Diff(a, b)); d != "" {
		t.Error(d)
	}
}

func BenchmarkDiffApply(b *testing.B) {
	old := small()
	old.Peers = manyPeers(10_000)
	next := *old
	next.Version = v(4)
	next.Peers = slices.Clone(old.Peers)
	next.Peers[5000].Certificate = []byte{9}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := old.Apply(proto.Diff(old, &next)); err != nil {
			b.Fatal(err)
		}
	}
}
