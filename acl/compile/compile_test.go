package compile_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// node returns a node with ID i; who is such as "ann@example.com", "tag:a tag:b" or "".
func node(i int, who string) proto.Identity {
	n := proto.Identity{ID: proto.NodeID(i), Name: fmt.Sprintf("n%d", i), Addrs: proto.Addrs{
		V4: netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}),
		V6: netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", i)),
	}}
	if strings.HasPrefix(who, "tag:") {
		n.Tags = strings.Fields(who)
	} else if who != "" {
		n.User = proto.User{Issuer: "test", Subject: who, Name: who}
	}
	return n
}

func inventory(who ...string) *compile.Memory {
	inv := &compile.Memory{}
	for i, w := range who {
		mustPut(inv, node(i+1, w))
	}
	return inv
}

func program(t testing.TB, src string) *compile.Program {
	t.Helper()
	return compile.New(mustParse(t, []byte(src)), testMesh)
}

const (
	defs = `"groups": {"group:eng": ["ann@example.com", "bob@example.com"], "group:none": []},
		"tagOwners": {"tag:db": [], "tag:web": []}, "hosts": {"six": "fd00:1::3", "four": "100.64.0.3"},`
	// The nodes are 1 ann, 2 bob, 3 tag:db, 4 tag:web, 5 nobody.
	all = 65535
)

var five = []string{"ann@example.com", "bob@example.com", "tag:db", "tag:web", ""}

func TestView(t *testing.T) {
	addrs := func(i int) []netip.Prefix {
		n := node(i, "")
		return []netip.Prefix{netip.PrefixFrom(n.Addrs.V4, 32), netip.PrefixFrom(n.Addrs.V6, 128)}
	}
	tcp := func(ports ...uint16) (out []proto.Service) {
		for _, p := range ports {
			out = append(out, proto.Service{Proto: 6, First: p, Last: p})
		}
		return out
	}
	usual := []proto.Service{{Proto: 1, Last: all}, {Proto: 6, Last: all}, {Proto: 17, Last: all}, {Proto: 58, Last: all}}
	sets := func(s ...string) proto.Selector { return proto.Selector{Sets: s} }
	set := func(name string, ids ...proto.NodeID) proto.Set { return proto.Set{Name: name, Members: ids} }
	rule := func(path string, d proto.Direction, peers proto.Selector, local []netip.Prefix, services []proto.Service) proto.Rule {
		return proto.Rule{
			Key: path + "/" + d.String(), Origin: proto.Origin{Path: path, Line: 1}, Direction: d,
			Peers: peers, Local: local, Services: services,
		}
	}
	star := proto.Selector{Prefixes: slices.Concat(withoutReserved(), []netip.Prefix{testMesh.V6})}

	tests := []struct {
		name, policy string
		at           int
		want         compile.View
	}{
		{"no rules", `{` + defs + `}`, 1, compile.View{}},
		{
			"destination by tag", `{` + defs + `"acls": [{"action": "accept", "proto": "tcp", "src": ["group:eng", "tag:web"], "dst": ["tag:db:5432"]}]}`, 3,
			compile.View{
				Rules: []proto.Rule{rule("acls[0]", proto.In, sets("group:eng", "tag:web"), addrs(3), tcp(5432))},
				Sets:  []proto.Set{set("group:eng", 1, 2), set("tag:web", 4)}, Peers: []proto.NodeID{1, 2, 4},
			},
		},
		{
			"source by group", `{` + defs + `"acls": [{"action": "accept", "proto": "tcp", "src": ["group:eng", "tag:web"], "dst": ["tag:db:5432"]}]}`, 1,
			compile.View{
				Rules: []proto.Rule{rule("acls[0]", proto.Out, sets("tag:db"), addrs(1), tcp(5432))},
				Sets:  []proto.Set{set("tag:db", 3)}, Peers: []proto.NodeID{3},
			},
		},
		{
			"on neither side", `{` + defs + `"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432"]}]}`, 4, compile.View{},
		},
		{
			"on both sides, and not its own peer", `{` + defs + `"grants": [{"src": ["group:eng"], "dst": ["group:eng"], "ip": ["*"]}]}`, 1,
			compile.View{
				Rules: []proto.Rule{rule("grants[0]", proto.In, sets("group:eng"), addrs(1), usual), rule("grants[0]", proto.Out, sets("group:eng"), addrs(1), usual)},
				Sets:  []proto.Set{set("group:eng", 2)}, Peers: []proto.NodeID{2},
			},
		},
		{
			"everybody", `{` + defs + `"grants": [{"src": ["*"], "dst": ["tag:db"], "ip": ["tcp:1"]}]}`, 3,
			compile.View{
				// It is among the sources itself, but there is no other tag:db to connect to.
				Rules: []proto.Rule{rule("grants[0]", proto.In, star, addrs(3), tcp(1)), rule("grants[0]", proto.Out, sets("tag:db"), addrs(3), tcp(1))},
				Sets:  []proto.Set{set("tag:db")}, Peers: []proto.NodeID{1, 2, 4, 5},
			},
		},
		{
			"ports that differ", `{` + defs + `"acls": [{"action": "accept", "proto": "tcp", "src": ["tag:web"], "dst": ["tag:db:1", "group:eng:2", "six:1"]}]}`, 4,
			compile.View{
				Rules: []proto.Rule{
					rule("acls[0].dst[0]", proto.Out, proto.Selector{Sets: []string{"tag:db"}, Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00:1::3/128")}}, addrs(4), tcp(1)),
					rule("acls[0].dst[1]", proto.Out, sets("group:eng"), addrs(4), tcp(2)),
				},
				Sets: []proto.Set{set("group:eng", 1, 2), set("tag:db", 3)}, Peers: []proto.NodeID{1, 2, 3},
			},
		},
		{
			"one address of a node", `{` + defs + `"grants": [{"src": ["group:eng", "100.64.0.4", "10.0.0.0/8"], "dst": ["six"], "ip": ["tcp:1"]}]}`, 3,
			compile.View{
				Rules: []proto.Rule{rule("grants[0]", proto.In, sets("group:eng"), addrs(3)[1:], tcp(1))},
				Sets:  []proto.Set{set("group:eng", 1, 2)}, Peers: []proto.NodeID{1, 2},
			},
		},
		{"families that never meet", `{` + defs + `"grants": [{"src": ["100.64.0.4"], "dst": ["six"], "ip": ["*"]}]}`, 3, compile.View{}},
		{
			"own nodes", `{` + defs + `"acls": [{"action": "accept", "proto": "tcp", "src": ["*"], "dst": ["tag:db:1", "autogroup:self:1"]}]}`, 1,
			compile.View{
				Rules: []proto.Rule{
					rule("acls[0].dst[0]", proto.Out, sets("tag:db"), addrs(1), tcp(1)),
					rule("acls[0].dst[1]", proto.In, sets("user:ann@example.com"), addrs(1), tcp(1)),
					rule("acls[0].dst[1]", proto.Out, sets("user:ann@example.com"), addrs(1), tcp(1)),
				},
				Sets: []proto.Set{set("tag:db", 3), set("user:ann@example.com", 6)}, Peers: []proto.NodeID{3, 6},
			},
		},
		{
			"nobody yet", `{` + defs + `"grants": [{"src": ["group:none", "user:*@example.net"], "dst": ["tag:db"], "ip": ["tcp:1"]}]}`, 3,
			compile.View{
				Rules: []proto.Rule{rule("grants[0]", proto.In, sets("group:none", "user:*@example.net"), addrs(3), tcp(1))},
				Sets:  []proto.Set{set("group:none"), set("user:*@example.net")},
			},
		},
		{"no node", `{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]}`, 99, compile.View{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			src := strings.Join(strings.Fields(test.policy), " ")
			who := five
			if test.name == "own nodes" {
				who = append(slices.Clone(five), "ann@example.com", "tag:web")
			}
			got := program(t, src).For(inventory(who...), proto.NodeID(test.at))
			if diff := cmp.Diff(test.want, got, addrCmp); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// withoutReserved returns 100.64.0.0/10 without 100.115.92.0/23, written out by hand.
func withoutReserved() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range []string{
		"100.64.0.0/11", "100.96.0.0/12", "100.112.0.0/15", "100.114.0.0/16", "100.115.0.0/18", "100.115.64.0/20",
		"100.115.80.0/21", "100.115.88.0/22", "100.115.94.0/23", "100.115.96.0/19", "100.115.128.0/17", "100.116.0.0/14", "100.120.0.0/13",
	} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestNilPolicyAllowsNothing(t *testing.T) {
	inv := inventory(five...)
	p := compile.New(nil, testMesh)
	if v := p.For(inv, 1); len(v.Rules)+len(v.Sets)+len(v.Peers) > 0 {
		t.Errorf("view: %+v", v)
	}
	a, b := node(1, "").Addrs, node(2, "").Addrs
	if v := p.On(inv).Decide(2, a.V4, b.V4, 6, 22); v.Allowed {
		t.Error("a packet passes")
	}
	if f := compile.RunTests(p, inv); f != nil {
		t.Errorf("tests: %v", f)
	}
	if d := compile.Unresolved(p, inv); d != nil {
		t.Errorf("unresolved: %v", d)
	}
	if got := p.Affected(inv, inv, 1); !slices.Equal(got, []proto.NodeID{1}) {
		t.Errorf("affected: %v", got)
	}
}

func TestDecide(t *testing.T) {
	p := program(t, `{`+strings.Join(strings.Fields(defs), " ")+`
"acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:22"]}],
"grants": [{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["tcp:1-100"]}]}`)
	inv := inventory(five...)
	ann, bob, db := node(1, "").Addrs, node(2, "").Addrs, node(3, "").Addrs
	tests := []struct {
		name     string
		at       proto.NodeID
		src, dst netip.Addr
		port     uint16
		want     string
	}{
		{"in", 3, ann.V4, db.V4, 22, "acls[0]"},
		{"out", 1, ann.V6, db.V6, 22, "acls[0]"},
		{"the second rule", 3, ann.V4, db.V4, 23, "grants[0]"},
		{"another port", 3, bob.V4, db.V4, 23, ""},
		{"the way back", 1, db.V4, ann.V4, 22, ""},
		{"at a third node", 2, ann.V4, db.V4, 22, ""},
		{"between families", 3, ann.V4, db.V6, 22, ""},
		{"IPv4 in IPv6", 3, netip.AddrFrom16(ann.V4.As16()), db.V4, 22, "acls[0]"},
		{"to itself", 3, db.V4, db.V4, 22, ""},
		{"from nobody", 3, netip.MustParseAddr("100.64.9.9"), db.V4, 22, ""},
		{"to nobody", 1, ann.V4, netip.MustParseAddr("100.64.9.9"), 22, ""},
		{"no address", 1, netip.Addr{}, db.V4, 22, ""},
	}
	for _, test := range tests {
		v := p.On(inv).Decide(test.at, test.src, test.dst, proto.ProtoTCP, test.port)
		if v.Allowed != (test.want != "") || v.Allowed && v.Rule.Path != test.want {
			t.Errorf("%s: %+v, want %q", test.name, v, test.want)
		}
	}
}

// TestHostileIdentities checks identities that our coordinator never assigns: none may pass for somebody else.
func TestHostileIdentities(t *testing.T) {
	p := program(t, `{"groups": {"group:eng": ["ann@example.com"]}, "tagOwners": {"tag:db": []}, "grants": [
		{"src": ["group:eng", "user:*@example.com", "autogroup:member"], "dst": ["tag:db"], "ip": ["*"]},
		{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"]}]}`)
	person := func(i int, name string) proto.Identity {
		n := node(i, "")
		n.User = proto.User{Issuer: "test", Subject: "s", Name: name}
		return n
	}
	tagged := person(5, "ann@example.com")
	tagged.Tags = []string{"tag:web"}
	hostile := []proto.Identity{
		person(2, "*@example.com"), person(3, ""), person(4, "*@example.com"), tagged,
		node(6, "tag: group:eng"), node(7, "tag:x"), person(8, "a:b@example.com"), person(9, ""),
	}
	hostile[4].Tags = []string{"autogroup:member", "group:eng", "user:ann@example.com", "user:*@example.com"}
	inv := inventory("tag:db")
	for _, n := range hostile {
		mustPut(inv, n)
	}
	for _, n := range append(hostile, node(1, "")) {
		if v := p.For(inv, n.ID); len(v.Peers) > 0 {
			t.Errorf("%s (%q, %v) has peers %v", n.Name, n.User.Name, n.Tags, v.Peers)
		}
	}
}

func TestRangeWithinReserved(t *testing.T) {
	mesh := testMesh
	for _, r := range []string{"100.115.92.0/23", "100.115.93.0/24", "10.0.0.0/8"} {
		mesh.V4 = netip.MustParsePrefix(r)
		p := compile.New(mustParse(t, []byte(`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]}`)), mesh)
		inv := &compile.Memory{}
		for i := 1; i <= 2; i++ {
			n := node(i, "")
			n.Addrs.V4 = mesh.V4.Addr().Next()
			if i == 2 {
				n.Addrs.V4 = n.Addrs.V4.Next()
			}
			mustPut(inv, n)
		}
		a, _ := inv.Node(1)
		b, _ := inv.Node(2)
		if v := p.On(inv).Decide(2, a.Addrs.V4, b.Addrs.V4, 6, 1); !v.Allowed {
			t.Errorf("* does not cover %s", r)
		}
	}
}

func TestMemory(t *testing.T) {
	inv := inventory("ann@example.com", "tag:db")
	for name, n := range map[string]proto.Identity{
		"without id":       {Addrs: node(9, "").Addrs},
		"without IPv6":     {ID: 9, Addrs: proto.Addrs{V4: node(9, "").Addrs.V4}},
		"another's":        {ID: 9, Addrs: proto.Addrs{V4: node(1, "").Addrs.V4, V6: node(9, "").Addrs.V6}},
		"families swapped": {ID: 9, Addrs: proto.Addrs{V4: node(9, "").Addrs.V6, V6: node(9, "").Addrs.V4}},
	} {
		if err := inv.Put(n); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	mustPut(inv, node(1, "tag:db tag:web"))
	if got := slices.Sorted(inv.ByTag("tag:db")); !slices.Equal(got, []proto.NodeID{1, 2}) {
		t.Errorf("tag:db: %v", got)
	}
	if got := slices.Collect(inv.ByUser("ann@example.com")); len(got) > 0 {
		t.Errorf("ann still has %v", got)
	}
	inv.Remove(1)
	inv.Remove(1)
	if _, ok := inv.ByAddr(node(1, "").Addrs.V4); ok {
		t.Error("a removed node keeps its address")
	}
}

func TestUnresolved(t *testing.T) {
	p := program(t, `{`+strings.Join(strings.Fields(defs), " ")+`
"grants": [
  {"src": ["group:none", "group:eng", "cat@example.com", "user:*@example.net"], "dst": ["tag:db", "10.0.0.0/8", "100.64.9.0/24"], "ip": ["*"]},
  {"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"]},
]}`)
	got := compile.Unresolved(p, inventory("bob@example.com")).Format("p")
	want := `p:3:12: warning: grants[0].src[0]: "group:none" matches nothing: the group has no members
p:3:39: warning: grants[0].src[2]: "cat@example.com" matches nothing: no such user has a node without tags
p:3:58: warning: grants[0].src[3]: "user:*@example.net" matches nothing: no such user has a node without tags
p:3:89: warning: grants[0].dst[0]: "tag:db" matches nothing: no node has it
p:3:99: warning: grants[0].dst[1]: "10.0.0.0/8" matches nothing: 10.0.0.0/8 is outside of the mesh (100.64.0.0/10, fd00:1::/48), and no router has an approved route there
p:3:113: warning: grants[0].dst[2]: "100.64.9.0/24" matches nothing: no node has an address in 100.64.9.0/24
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestStarterPassesItsTests(t *testing.T) {
	p, diags := acl.Check("starter.hujson", acl.Starter, time.Time{})
	if len(diags) > 0 {
		t.Fatal(diags.Format("starter.hujson"))
	}
	for name, inv := range map[string]*compile.Memory{
		"an empty mesh":  {},
		"a mesh of five": inventory("ann@example.com", "bob@example.com", "tag:server", "tag:server", ""),
		"only servers":   inventory("tag:server"),
		"only one":       inventory("ann@example.com"),
	} {
		if f := compile.RunTests(compile.New(p, testMesh), inv); len(f) > 0 {
			t.Errorf("%s: %v", name, f)
		}
	}
}
