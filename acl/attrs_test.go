package acl

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNodeAttrs(t *testing.T) {
	p := good(t, `{"groups": {"group:g": []}, "tagOwners": {"tag:a": []}, "hosts": {"web": "100.64.0.9"}, "nodeAttrs": [
		{"target": ["*", "tag:a", "group:g", "ann@x.org", "autogroup:member", "autogroup:admin", "web", "100.64.0.0/16"],
		 "attr": ["nextdns:abc", "https://tailscale.com/cap/is-admin", "nextdns:abc"]},
		{"target": ["tag:a"], "app": {"tailscale.com/app-connectors": [{"name": "x", "domains": ["x.org"]}]}},
		{"target": ["*"], "attr": ["x"], "app": {}}]}`)
	a := p.NodeAttrs
	if len(a) != 3 || len(a[0].Target) != 8 || a[0].Path != "nodeAttrs[0]" || len(a[2].Attrs) != 1 {
		t.Fatalf("%+v", a)
	}
	if diff := cmp.Diff([]string{"nextdns:abc", "https://tailscale.com/cap/is-admin"}, a[0].Attrs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string][]json.RawMessage{"tailscale.com/app-connectors": {json.RawMessage(`{"name":"x","domains":["x.org"]}`)}}, a[1].App); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNodeAttrErrors(t *testing.T) {
	attr := func(s string) string { return `{"nodeAttrs": [{"target": ["*"], ` + s + `}]}` }
	runErrorTests(t, []errorTest{
		{"no target", `{"nodeAttrs": [|{"attr": ["x"]}]}`, `"target" is missing`},
		{"self", `{"nodeAttrs": [{"target": [|"autogroup:self"], "attr": ["x"]}]}`, `autogroup:self is allowed only in dst, not in target`},
		{"undefined tag", `{"nodeAttrs": [{"target": [|"tag:x"], "attr": ["x"]}]}`, `is not defined`},
		{"near key", attr(`|"attrs": ["x"]`), `did you mean "attr"?`},
		{"empty attribute", attr(`"attr": [|""]`), `is not an attribute`},
		{"attribute of a wrong type", attr(`"attr": [|true]`), `is a boolean; want an attribute`},
		{"app", attr(`"app": {|"connectors": [{}]}`), `is not a capability`},
	})
	runWarningTests(t, []warningTest{{"nothing", `{"nodeAttrs": [|{"target": ["*"], "attr": []}]}`, "grants nothing"}})
	pool := func(s string) []Diagnostic {
		_, diags := Parse("test", []byte(attr(`"ipPool": ["`+s+`"]`)))
		return diags
	}
	for s, bad := range map[string]bool{
		"100.96.0.0/16": false, "100.100.100.0/24": true, "100.100.0.0/16": true, "100.115.93.1": true, "10.0.0.0/8": true,
		"100.0.0.0/8": true, "pool": true, "100.64.0.0/10": true, "100.64.0.0/11": false, "100.80.0.0/12": false,
	} {
		if diags := pool(s); Diagnostics(diags).HasErrors() != bad || len(diags) == 0 {
			t.Errorf("%s: %v", s, diags)
		}
	}
}
