package acl

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestApprovers(t *testing.T) {
	p := good(t, `{"groups": {"group:net": ["ann@x.org"]}, "tagOwners": {"tag:r": []}, "autoApprovers": {
		"routes": {"10.0.0.0/8": ["tag:r", "group:net"], "::/0": ["ann@x.org"], "10.1.2.3": ["autogroup:admin"]},
		"exitNode": ["autogroup:member", "autogroup:tagged"]}}`)
	var got []string
	for _, r := range p.Approvers.Routes {
		for _, s := range r.By {
			got = append(got, fmt.Sprintf("%s %s %s", r.Path, r.Prefix, s.Text))
		}
	}
	for _, s := range p.Approvers.ExitNode {
		got = append(got, s.Path+" "+s.Text)
	}
	want := []string{
		`autoApprovers.routes["10.0.0.0/8"] 10.0.0.0/8 tag:r`, `autoApprovers.routes["10.0.0.0/8"] 10.0.0.0/8 group:net`,
		`autoApprovers.routes["::/0"] ::/0 ann@x.org`, `autoApprovers.routes["10.1.2.3"] 10.1.2.3/32 autogroup:admin`,
		"autoApprovers.exitNode[0] autogroup:member", "autoApprovers.exitNode[1] autogroup:tagged",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestApproverErrors(t *testing.T) {
	routes := func(s string) string { return `{"tagOwners": {"tag:r": []}, "autoApprovers": {"routes": {` + s + `}}}` }
	runErrorTests(t, []errorTest{
		{"wrong type", `{"autoApprovers": |[]}`, `is a list; want an object with routes and exitNode`},
		{"near key", `{"autoApprovers": {|"exitNodes": []}}`, `did you mean "exitNode"?`},
		{"no range", routes(`|"office": ["tag:r"]`), `"office" is not a range of addresses`},
		{"bad range", routes(`|"10.0.0.0/40": ["tag:r"]`), `is not a CIDR`},
		{"the same range", routes(`"10.0.0.0/8": ["tag:r"], |"10.0.0.0/08": ["tag:r"]`), `is not a CIDR`},
		{"the same range in other words", routes(`"10.0.0.0/8": ["tag:r"], |"10.1.0.0/8": ["tag:r"]`), `the same range as "10.0.0.0/8" above`},
		{"not a list", routes(`"10.0.0.0/8": |"tag:r"`), `is a string; want a list of users, groups and tags`},
		{"everybody", routes(`"10.0.0.0/8": [|"*"]`), `"*" cannot approve routes`},
		{"an address", routes(`"10.0.0.0/8": [|"10.0.0.1"]`), `cannot approve routes`},
		{"undefined tag", routes(`"10.0.0.0/8": [|"tag:x"]`), `tag "tag:x" is not defined`},
		{"undefined group", `{"autoApprovers": {"exitNode": [|"group:x"]}}`, `group "group:x" is not defined`},
	})
	runWarningTests(t, []warningTest{{"nobody", routes(`"10.0.0.0/8": |[]`), "approves nothing"}})
}
