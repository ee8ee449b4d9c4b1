package compile_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// routed makes tag:web (4) a router of 10.1.0.0/16 with some facts.
func routed(inv *compile.Memory, facts map[string]string) netip.Addr {
	route := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	inv.SetTraits(4, compile.Traits{Facts: facts, Advertised: route, Approved: route})
	return netip.MustParseAddr("10.1.2.3")
}

// TestDenyOfRoutedSources checks a deny rule with a condition for hosts behind a router. The facts are the router's and say
// nothing about these hosts: the router itself is exempt if they are known not to match, but hosts behind it never are.
func TestDenyOfRoutedSources(t *testing.T) {
	db := node(3, "").Addrs.V4
	for _, src := range []string{`"10.1.0.0/16", "tag:web"`, `"*"`, `"autogroup:danger-all"`, `"10.0.0.0/8", "100.64.0.0/10"`} {
		for _, test := range []struct {
			name   string
			facts  map[string]string
			exempt bool
		}{
			{"not set", nil, false},
			{"matches", map[string]string{"node:os": "linux"}, false},
			{"known not to match", map[string]string{"node:os": "macos"}, true},
		} {
			for _, cond := range []string{"", `, "srcPosture": ["posture:managed"]`} {
				prog, inv := managed(t, `"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
					"deny": [{"src": [`+src+`], "dst": ["tag:db"], "ip": ["tcp:22"]`+cond+`}]`, nil, 0)
				behind := routed(inv, test.facts)
				b := prog.On(inv)
				for _, at := range []proto.NodeID{3, 4} {
					if v := b.Decide(at, behind, db, 6, 22); v.Allowed || v.Rule == nil || v.Rule.Path != "deny[0]" {
						t.Errorf("%s, %s%s at %v: behind the router: %+v", src, test.name, cond, at, v)
					}
					if v := b.Decide(at, behind, db, 6, 23); !v.Allowed {
						t.Errorf("%s, %s%s at %v: another port: %+v", src, test.name, cond, at, v)
					}
					want := test.exempt && cond != ""
					if v := b.Decide(at, node(4, "").Addrs.V4, db, 6, 22); v.Allowed != want {
						t.Errorf("%s, %s%s at %v: the router itself: %+v", src, test.name, cond, at, v)
					}
				}
				// The rules agree with the verdicts: the router's apply to its route, the destination's to the hosts there.
				if local := locals(b.For(4), proto.Out); !contains(local, behind) || contains(local, node(4, "").Addrs.V4) == (test.exempt && cond != "") {
					t.Errorf("%s, %s%s: the router denies from %v", src, test.name, cond, local)
				}
				v := b.For(3)
				peers := prefixesOf(v, proto.In)
				if !contains(peers, behind) {
					t.Errorf("%s, %s%s: the destination denies from %v", src, test.name, cond, peers)
				}
				if cond != "" && contains(peers, node(4, "").Addrs.V4) {
					t.Errorf("%s, %s: the destination denies the router by its address, whatever is known of it: %v", src, test.name, peers)
				}
			}
		}
	}
}

// locals returns the local addresses of a node's deny rules in a direction.
func locals(v compile.View, d proto.Direction) (out []netip.Prefix) {
	for _, r := range v.Rules {
		if r.Action == proto.Deny && r.Direction == d {
			out = append(out, r.Local...)
		}
	}
	return out
}

// prefixesOf returns the remote addresses of a node's deny rules in a direction.
func prefixesOf(v compile.View, d proto.Direction) (out []netip.Prefix) {
	for _, r := range v.Rules {
		if r.Action == proto.Deny && r.Direction == d {
			out = append(out, r.Peers.Prefixes...)
		}
	}
	return out
}

func contains(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

// TestAllowOfRoutedSources checks that rules with conditions allow nobody about whom no facts are known.
func TestAllowOfRoutedSources(t *testing.T) {
	prog, inv := managed(t, `"grants": [{"src": ["10.1.0.0/16", "tag:web"], "dst": ["tag:db"], "ip": ["tcp:22"], "srcPosture": ["posture:managed"]}]`, nil, 0)
	behind := routed(inv, map[string]string{"node:os": "linux"})
	b, db := prog.On(inv), node(3, "").Addrs.V4
	for _, at := range []proto.NodeID{3, 4} {
		if v := b.Decide(at, behind, db, 6, 22); v.Allowed {
			t.Errorf("behind the router at %v: %+v", at, v)
		}
		if v := b.Decide(at, node(4, "").Addrs.V4, db, 6, 22); !v.Allowed {
			t.Errorf("the router itself at %v: %+v", at, v)
		}
	}
}

// TestDenySelf checks a deny rule between the nodes of one user that depends on facts of the node that opens the connection.
func TestDenySelf(t *testing.T) {
	for os, denied := range map[string]bool{"": true, "linux": true, "macos": false} {
		prog, inv := managed(t, `"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
			"deny": [{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"], "srcPosture": ["posture:managed"]}]`, nil, 0)
		mustPut(inv, node(6, "ann@example.com"))
		if os != "" {
			inv.SetTraits(1, compile.Traits{Facts: map[string]string{"node:os": os}})
		}
		b := prog.On(inv)
		if v := b.Decide(6, node(1, "").Addrs.V4, node(6, "").Addrs.V4, 6, 22); v.Allowed == denied {
			t.Errorf("%q: own nodes: %+v", os, v)
		}
		if v := b.Decide(2, node(1, "").Addrs.V4, node(2, "").Addrs.V4, 6, 22); !v.Allowed {
			t.Errorf("%q: another user: %+v", os, v)
		}
		// A node that is exempt opens what it likes, but still refuses the user's other nodes.
		if v := b.For(1); len(locals(v, proto.In)) == 0 || (len(locals(v, proto.Out)) > 0) != denied {
			t.Errorf("%q: rules %+v", os, v.Rules)
		}
	}
}

// TestDenyWins checks that deny takes precedence over allow and monitor, wherever it is in the file.
func TestDenyWins(t *testing.T) {
	for _, rest := range []string{
		`"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]`,
		`"enforcement": [{"src": ["*"], "dst": ["*"], "mode": "monitor", "until": "2026-04-01"}]`,
	} {
		prog, inv := managed(t, rest+`, "deny": [{"src": ["group:eng"], "dst": ["tag:db"], "ip": ["tcp:22"]}]`, nil, 0)
		b := prog.On(inv)
		for i, allowed := range []bool{false, false, true} {
			src := []int{1, 2, 4}[i]
			if v := b.Decide(3, node(src, "").Addrs.V6, node(3, "").Addrs.V6, 6, 22); v.Allowed != allowed || v.Rule == nil {
				t.Errorf("%s: from %d: %+v", rest, src, v)
			}
		}
	}
}

// TestRoutesInTests checks policy tests about hosts behind a router, and about roles that nobody has.
func TestRoutesInTests(t *testing.T) {
	const rules = `"grants": [
		{"src": ["10.1.0.0/16"], "dst": ["tag:db"], "ip": ["tcp:1"]},
		{"src": ["ann@example.com"], "dst": ["10.1.0.0/16"], "ip": ["tcp:2"]},
		{"src": ["autogroup:admin"], "dst": ["tag:db"], "ip": ["tcp:3"]}],
		"deny": [{"src": ["10.1.9.0/24"], "dst": ["tag:db"], "ip": ["*"]}],`
	for _, test := range []struct{ test, want string }{
		{`{"src": "10.1.2.3", "accept": ["tag:db:1"], "deny": ["tag:db:2", "tag:web:1"]}`, ""},
		{`{"src": "10.1.9.1", "deny": ["tag:db:1"]}`, ""},
		{`{"src": "10.1.9.1", "accept": ["tag:db:1"]}`, "the test wants tag:db:1 to be reached, but deny[0] (line"},
		{`{"src": "10.1.2.3", "deny": ["tag:db:1"]}`, "10.1.2.3 (behind n4) to 100.64.0.3 (n3, tag:db)"},
		{`{"src": "ann@example.com", "accept": ["10.1.2.3:2"], "deny": ["10.1.2.3:1"]}`, ""},
		{`{"src": "bob@example.com", "accept": ["10.1.2.3:2"]}`, "no rule allows it"},
		{`{"src": "10.2.0.1", "deny": ["tag:db:1"]}`, `the source "10.2.0.1" matches nothing`},
		{`{"src": "autogroup:admin", "deny": ["tag:db:4"]}`, `the source "autogroup:admin" matches nothing: nobody who has the role has a node without tags`},
	} {
		prog, inv := managed(t, rules+`"tests": [`+test.test+`]`, nil, 0)
		routed(inv, nil)
		var got []string
		for _, f := range compile.RunTests(prog, inv) {
			got = append(got, f.Message)
		}
		if len(got) > 1 || (len(got) == 0) != (test.want == "") || !strings.Contains(strings.Join(got, ""), test.want) {
			t.Errorf("%s: %q, want %q", test.test, got, test.want)
		}
	}
	// Once somebody has the role, the same test applies to them.
	prog, inv := managed(t, rules+`"tests": [{"src": "autogroup:admin", "accept": ["tag:db:3"], "deny": ["tag:db:4"]}]`, nil, 0)
	inv.SetRoles("ann@example.com", "admin")
	for _, f := range compile.RunTests(prog, inv) {
		t.Error(f.Diagnostic())
	}
}

// TestExplainWords checks each kind of answer.
func TestExplainWords(t *testing.T) {
	prog, inv := managed(t, `"grants": [
		{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["tcp:22"], "auth": {"mfa": true}},
		{"src": ["tag:web"], "dst": ["tag:db"], "ip": ["tcp:5432"]},
		{"src": ["bob@example.com"], "dst": ["10.1.0.0/16"], "ip": ["tcp:1"], "via": ["tag:db"]}],
		"deny": [{"src": ["tag:web"], "dst": ["four"], "ip": ["udp:53"]}],
		"enforcement": [{"src": ["bob@example.com"], "dst": ["tag:db"], "mode": "monitor", "until": "2026-04-01"}]`, nil, time.Minute)
	behind := routed(inv, nil)
	a := func(i int) netip.Addr { return node(i, "").Addrs.V4 }
	b := prog.On(inv)
	for _, test := range []struct {
		name     string
		src, dst netip.Addr
		protocol uint8
		port     uint16
		want     []string // allowed and mode, the rule or what is missing, the nearest rules
	}{
		{"a missing fact", a(1), a(3), 6, 22, []string{"false enforce", "grants[0]: needs a login with several factors: user:mfa is not set"}},
		{"a wrong port", a(4), a(3), 6, 5433, []string{"false enforce", "grants[1]: tcp:5433 is not among its services"}},
		{"a wrong protocol", a(4), a(3), 1, 0, []string{"false enforce", "grants[1]: icmp is not among its services"}},
		{"denied", a(4), a(3), 17, 53, []string{"false enforce", "deny[0]"}},
		{"monitored", a(2), a(3), 6, 80, []string{"true monitor", "enforcement[0]"}},
		{"nobody", netip.MustParseAddr("100.64.9.9"), a(3), 6, 22, []string{"false enforce", "100.64.9.9 is no node's address, and no router has an approved route to it"}},
		{"to oneself", a(4), behind, 6, 22, []string{"false enforce", "100.64.0.4 and 10.1.2.3 are on the same node, and do not meet in the mesh"}},
		{"two families", a(4), node(3, "").Addrs.V6, 6, 22, []string{"false enforce", "100.64.0.4 and fd00:1::3 are of different families"}},
		{"another router", a(2), behind, 6, 1, []string{"false enforce", "grants[2]: 10.1.2.3 is not reached through a router with tag:db"}},
	} {
		x := b.Explain(test.src, test.dst, test.protocol, test.port)
		got := []string{map[bool]string{true: "true ", false: "false "}[x.Allowed] + string(x.Mode)}
		if x.Rule != nil {
			got = append(got, x.Rule.Path)
		}
		if x.Missing != "" {
			got = append(got, x.Missing)
		}
		for _, n := range x.Near {
			got = append(got, n.Origin.Path+": "+strings.Join(n.Missing, ", "))
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}
