package compile_test

import (
	"net/netip"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl/compile"
)

// TestSeveralRouters has two routers serve a network, of which the rules say different things: the best verdict counts,
// whichever router comes first.
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
