package compile_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

const denied = `{"src": ["tag:a"], "dst": ["100.64.0.2"], "ip": ["tcp:7"]}`

const spanned = `{"tagOwners": {"tag:a": [], "tag:b": [], "tag:r": []}, "groups": {"group:g": ["ann@e.org"]},
	"postures": {"posture:p": ["node:os == 'linux'"], "posture:q": ["node:os == 'linux'"]},
	"autoApprovers": {"routes": {"10.1.0.0/16": ["tag:r"]}},
	"grants": [{"src": ["tag:a", "group:g"], "dst": ["tag:b", "10.0.0.0/8"], "ip": ["tcp:1-2"], "via": ["tag:r"], "srcPosture": ["posture:p"]},
		{"src": ["tag:a"], "dst": ["tag:b"], "app": {"x.org/c": [{"a": 1}]}},
		{"src": ["ann@e.org"], "dst": ["autogroup:self"], "ip": ["tcp:9"], "auth": {"age": "1h"}}],
	"deny": [` + denied + `],
	"enforcement": [{"src": ["tag:b"], "dst": ["tag:a"], "mode": "monitor", "until": "2027-01-31"}]}`

// TestSpans changes a policy in one place at a time: each change makes a span and touches the nodes that the rule covers,
// wherever it is in the file.
func TestSpans(t *testing.T) {
	inv := inventory("tag:a", "tag:b", "tag:r", "ann@e.org", "ann@e.org", "eve@e.org", "tag:x")
	traits := compile.Traits{Advertised: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")}}
	inv.SetTraits(3, traits)
	for _, id := range []proto.NodeID{1, 4} {
		inv.SetTraits(id, compile.Traits{Facts: map[string]string{"node:os": "linux"}})
	}
	before := program(t, spanned)
	route, self, app, deny, watch := []proto.NodeID{1, 2, 3, 4, 5}, []proto.NodeID{4, 5}, []proto.NodeID{1, 2}, []proto.NodeID{1, 2}, []proto.NodeID{1, 2}
	for _, test := range []struct {
		old, changed string
		touched      []proto.NodeID
	}{
		{`"grants": [`, "// moved\n\n\"grants\": [", nil},
		{`"tag:a", "group:g"], "dst"`, `"group:g", "tag:a"], "dst"`, nil},
		{`"tag:a", "group:g"], "dst"`, `"tag:a"], "dst"`, route},
		{`"tag:b", "10.0.0.0/8"`, `"10.0.0.0/8"`, route},
		{`"10.0.0.0/8"`, `"10.0.0.0/9"`, route},
		{`tcp:1-2`, `tcp:1-3`, route},
		{`tcp:1-2`, `tcp:2-2`, route},
		{`tcp:1-2`, `udp:1-2`, route},
		{`"via": ["tag:r"]`, `"via": ["tag:b"]`, route},
		{`["posture:p"]`, `["posture:q"]`, route},
		{`"posture:p": ["node:os == 'linux'"]`, `"posture:p": ["node:os == 'macos'"]`, route},
		{`"group:g": ["ann@e.org"]`, `"group:g": ["eve@e.org"]`, []proto.NodeID{1, 2, 3, 4, 5, 6}},
		{`"10.1.0.0/16": ["tag:r"]`, `"10.2.0.0/16": ["tag:r"]`, []proto.NodeID{1, 3, 4}},
		{`{"a": 1}`, `{"a": 2}`, app},
		{`x.org/c`, `x.org/d`, app},
		{`"autogroup:self"], "ip"`, `"ann@e.org"], "ip"`, self},
		{`"age": "1h"`, `"age": "2h"`, self},
		{denied, "", deny},
		{`"100.64.0.2"`, `"100.64.0.2/31"`, []proto.NodeID{1, 2, 3}},
		{`"2027-01-31"`, `"2027-01-30"`, watch},
	} {
		src := strings.Replace(spanned, test.old, test.changed, 1)
		if test.old == denied { // what was denied is allowed by a rule with the same text
			src = strings.Replace(src, `"grants": [`, `"grants": [`+denied+", ", 1)
		}
		after := program(t, src)
		for _, pair := range [][2]*compile.Program{{before, after}, {after, before}} {
			spans, touched := compile.Spans(pair[0].On(inv), pair[1].On(inv))
			if !slices.Equal(touched, test.touched) || (len(spans) == 0) != (test.touched == nil) {
				t.Errorf("%s: %d spans, nodes %v, want %v", test.changed, len(spans), touched, test.touched)
			}
		}
	}
}
