package compile_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/proto"
)

// TestFiltersEnforceThePolicy gives the Views to the packet filter as a netmap would, and compares its verdicts.
func TestFiltersEnforceThePolicy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		doc, inv := drawDocument(t), drawInventory(t)
		oracle := naive{doc, testMesh}
		bound := compile.New(mustParse(t, doc.text()), testMesh).On(inv)
		filters, views := map[proto.NodeID]*filter.Program{}, map[proto.NodeID]compile.View{}
		for id := range inv.All() {
			v := bound.For(id)
			self, _ := inv.Node(id)
			rs := filter.Ruleset{Version: proto.Version{Epoch: 1, N: 1}, Mesh: testMesh, Self: self, Sets: v.Sets, Rules: v.Rules}
			for _, p := range v.Peers {
				n, _ := inv.Node(p)
				rs.Peers = append(rs.Peers, n)
			}
			program, err := filter.Compile(rs)
			if err != nil {
				t.Fatalf("the filter refuses the view of %s: %v\n%s", id, err, doc.text())
			}
			filters[id], views[id] = program, v
		}
		for _, from := range endpoints(inv) {
			for _, to := range endpoints(inv) {
				if from.node.ID == to.node.ID || from.addr.Is4() != to.addr.Is4() {
					continue
				}
				for _, p := range packets {
					want := oracle.allows(from, to, p.protocol, p.port)
					for _, side := range []struct {
						at, peer endpoint
						dir      proto.Direction
					}{{from, to, proto.Out}, {to, from, proto.In}} {
						rule, why := filters[side.at.node.ID].Why(side.dir, side.peer.addr, p.protocol, p.port)
						if (why == filter.Permitted) != want {
							t.Fatalf("%s at %s: %s -> %s %v: %v, want %v\n%s", side.dir, side.at.node.Name, from.addr, to.addr, p, why, want, doc.text())
						}
						if want && !slices.ContainsFunc(views[side.at.node.ID].Rules, func(r proto.Rule) bool { return r.Origin == rule }) {
							t.Fatalf("the filter names %v, which is no rule of its", rule)
						}
					}
				}
			}
		}
	})
}
