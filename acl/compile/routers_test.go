package compile_test

import (
	"net/netip"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// TestSeveralRouters has two routers that serve the same network under different rules: the best verdict counts, whichever router
// comes first.
func TestSeveralRouters(t *testing.T) {
	behind := netip.MustParseAddr("10.1.2.3")
	const (
		watch = `"enforcement": [{"src": ["ann@example.com"], "dst": ["10.1.0.0/16"], "mode": "monitor", "until": "2026-04-01"}]`
		deny  = `"deny": [{"src": ["ann@example.com"], "dst": ["10.1.0.0/16"], "ip": ["tcp:22"]}]`
	)
	via := func(tag string) string {
		return `"grants": [{"src": ["ann@example.com"], "dst": ["10.1.0.0/16"], "ip": ["tcp:22"], "via": ["` + tag + `"]}]`
	}
	for name, test := range map[string]struct {
		policy  string
		allowed bool
		mode    compile.Mode
		rule    string
	}{
		"by the one":                        {via("tag:db"), true, compile.Enforce, "grants[0]"},
		"by the other":                      {via("tag:web"), true, compile.Enforce, "grants[0]"},
		"by the one, else watched":          {via("tag:db") + "," + watch, true, compile.Enforce, "grants[0]"},
		"by the other, else watched":        {via("tag:web") + "," + watch, true, compile.Enforce, "grants[0]"},
		"watched":                           {watch, true, compile.Monitor, "enforcement[0]"},
		"denied":                            {deny + "," + via("tag:web"), false, compile.Enforce, "deny[0]"},
		"denied, and watched":               {deny + "," + watch, false, compile.Enforce, "deny[0]"},
		"no rule is about the connection":   {`"grants": [{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["tcp:22"]}]`, false, compile.Enforce, ""},
		"none is about the port or traffic": {via("tag:web") + `,"deny": [{"src": ["ann@example.com"], "dst": ["10.1.0.0/16"], "ip": ["tcp:23"]}]`, true, compile.Enforce, "grants[0]"},
	} {
		prog, inv := managed(t, test.policy, nil, 0)
		routed(inv, nil)
		traits := inv.Traits(4)
		inv.SetTraits(3, traits)
		v := prog.On(inv).Decide(1, node(1, "").Addrs.V4, behind, 6, 22)
		rule := ""
		if v.Rule != nil {
			rule = v.Rule.Path
		}
		if v.Allowed != test.allowed || v.Mode != test.mode || rule != test.rule {
			t.Errorf("%s: %v %s by %q, want %v %s by %q", name, v.Allowed, v.Mode, rule, test.allowed, test.mode, test.rule)
		}
	}
}

// TestWhoseConnection uses a policy that allows everything to everybody. A node must still not allow connections of which it is
// neither end, connections from a node to itself, or from a network to itself.
func TestWhoseConnection(t *testing.T) {
	prog, inv := managed(t, `"grants": [{"src": ["*"], "dst": ["*", "10.1.0.0/16", "autogroup:internet"], "ip": ["*"]}, {"src": ["10.1.0.0/16"], "dst": ["*"], "ip": ["*"]}]`, nil, 0)
	all := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("0.0.0.0/0")}
	inv.SetTraits(4, compile.Traits{Advertised: all, Approved: all})
	b := prog.On(inv)
	ann, bob, router := node(1, "").Addrs.V4, node(2, "").Addrs.V4, node(4, "").Addrs.V4
	here, there := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.9.9")
	for name, test := range map[string]struct {
		at       int
		src, dst netip.Addr
		want     bool
	}{
		"between two nodes, at the one":           {1, ann, bob, true},
		"between two nodes, at the other":         {2, ann, bob, true},
		"between two nodes, at a third":           {4, ann, bob, false},
		"to the router":                           {4, ann, router, true},
		"to behind the router":                    {4, ann, here, true},
		"to behind the router, at the source":     {1, ann, here, true},
		"from behind the router":                  {4, here, ann, true},
		"from a node to itself":                   {1, ann, ann, false},
		"from the router to behind it":            {4, router, here, false},
		"from behind the router to it":            {4, here, router, false},
		"from the network to itself":              {4, here, there, false},
		"at a node that there is not":             {9, ann, bob, false},
		"to the address of nobody, at the source": {1, ann, netip.MustParseAddr("100.64.9.9"), false},
	} {
		if v := b.Decide(proto.NodeID(test.at), test.src, test.dst, 6, 22); v.Allowed != test.want {
			t.Errorf("%s: %+v, want %v", name, v, test.want)
		}
	}
}

// TestSelfIsNotBehind checks that hosts behind a user's device do not get the permissions of the user's own devices.
func TestSelfIsNotBehind(t *testing.T) {
	prog, inv := managed(t, `"grants": [{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"]}]`, nil, 0)
	mustPut(inv, node(6, "ann@example.com"))
	route := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	inv.SetTraits(1, compile.Traits{Advertised: route, Approved: route})
	b := prog.On(inv)
	first, second, behind := node(1, "").Addrs.V4, node(6, "").Addrs.V4, netip.MustParseAddr("10.1.2.3")
	for name, test := range map[string]struct {
		src, dst netip.Addr
		want     bool
	}{
		"to her other one":            {first, second, true},
		"back":                        {second, first, true},
		"from behind it":              {behind, second, false},
		"to behind it":                {second, behind, false},
		"to bob's":                    {second, node(2, "").Addrs.V4, false},
		"from one role to another":    {node(3, "").Addrs.V4, node(4, "").Addrs.V4, false},
		"from nobody's to a role's":   {node(5, "").Addrs.V4, node(4, "").Addrs.V4, false},
		"from the role's to nobody's": {node(4, "").Addrs.V4, node(5, "").Addrs.V4, false},
	} {
		for at := range proto.NodeID(7) {
			v := b.Decide(at, test.src, test.dst, 6, 22)
			if v.Allowed && !test.want {
				t.Errorf("%s: node %v allows it: %+v", name, at, v)
			}
		}
		if v := b.Decide(6, test.src, test.dst, 6, 22); test.want && !v.Allowed {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// TestTheFirstRuleIsNamed checks which of several matching rules is named, in policies with and without deny rules.
func TestTheFirstRuleIsNamed(t *testing.T) {
	const deny = `"deny": [{"src": ["ann@example.com"], "dst": ["tag:web"], "ip": ["*"]}],`
	for _, before := range []string{"", deny} {
		prog, inv := managed(t, before+`
			"grants": [{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["tcp:22"]}, {"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["*"]}],
			"enforcement": [{"src": ["ann@example.com", "bob@example.com"], "dst": ["tag:db"], "mode": "monitor", "until": "2026-04-01"},
				{"src": ["*"], "dst": ["tag:db"], "mode": "monitor", "until": "2026-04-01"}]`, nil, 0)
		b := prog.On(inv)
		db := node(3, "").Addrs.V4
		for src, want := range map[int]string{1: "grants[0]", 2: "enforcement[0]", 4: "enforcement[1]"} {
			if v := b.Decide(3, node(src, "").Addrs.V4, db, 6, 22); v.Rule == nil || v.Rule.Path != want {
				t.Errorf("with %q, from %d: %+v, want %s", before, src, v, want)
			}
		}
		if v := b.Decide(3, node(1, "").Addrs.V4, db, 6, 23); v.Rule == nil || v.Rule.Path != "grants[1]" || v.Mode != compile.Enforce {
			t.Errorf("with %q, on another port: %+v", before, v)
		}
	}
}
