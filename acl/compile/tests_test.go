package compile_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/acl/compile"
)

func TestRunTests(t *testing.T) {
	const rules = `
"acls": [
  {"action": "accept", "proto": "tcp", "src": ["group:eng"], "dst": ["tag:db:5432"]},
  {"action": "accept", "src": ["ann@example.com"], "dst": ["four:22"]},
  {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:22"]},
],
`
	tests := []struct {
		name, test string
		who        []string // the nodes 1, 2, ...; nil: five
		want       string   // failures, one per line
	}{
		{"holds", `{"src": "group:eng", "accept": ["tag:db:5432"], "deny": ["tag:db:23", "tag:web:5432"]}`, nil, ""},
		{"one family of the destination", `{"src": "ann@example.com", "accept": ["four:22"], "deny": ["six:22"]}`, nil, ""},
		{"by protocol", `{"src": "ann@example.com", "proto": "udp", "deny": ["tag:db:5432"]}`, nil, ""},
		{"tcp or udp where none is named", `{"src": "ann@example.com", "accept": ["tag:db:5432"]}`, nil, ""},
		{"from one address", `{"src": "100.64.0.1", "accept": ["tag:db:5432", "four:22"]}`, nil, ""},
		{
			"accept is refused", `{"src": "tag:web", "accept": ["tag:db:5432"]}`, nil,
			`7:41: error: tests[0].accept[0]: the test wants tag:db:5432 to be reached, but no rule allows it (tcp or udp): 100.64.0.4 (n4, tag:web) to 100.64.0.3 (n3, tag:db)`,
		},
		{
			"deny is allowed", `{"src": "group:eng", "deny": ["tag:db:5432"]}`, nil,
			`7:41: error: tests[0].deny[0]: the test wants tag:db:5432 to be refused, but acls[0] (line 3) allows it: 100.64.0.1 (n1, ann@example.com) to 100.64.0.3 (n3, tag:db)`,
		},
		{
			"not every address of the source", `{"src": "group:eng", "accept": ["four:22"]}`, nil,
			`7:43: error: tests[0].accept[0]: the test wants four:22 to be reached, but no rule allows it (tcp or udp): 100.64.0.2 (n2, bob@example.com) to 100.64.0.3 (n3, tag:db)`,
		},
		{
			"not every address of the destination", `{"src": "ann@example.com", "accept": ["tag:db:22"]}`, nil,
			`7:49: error: tests[0].accept[0]: the test wants tag:db:22 to be reached, but no rule allows it (tcp or udp): fd00:1::1 (n1, ann@example.com) to fd00:1::3 (n3, tag:db)`,
		},
		{
			"the wrong protocol", `{"src": "group:eng", "proto": "udp", "accept": ["tag:db:5432"]}`, nil,
			`7:59: error: tests[0].accept[0]: the test wants tag:db:5432 to be reached, but no rule allows it (udp): 100.64.0.1 (n1, ann@example.com) to 100.64.0.3 (n3, tag:db)`,
		},
		{
			"a source of nobody", `{"src": "group:none", "deny": ["tag:db:5432"]}`, nil,
			`7:11: error: tests[0]: the source "group:none" matches nothing: the group has no members`,
		},
		{
			"a source outside", `{"src": "10.0.0.1", "deny": ["tag:db:5432"]}`, nil,
			`7:11: error: tests[0]: the source "10.0.0.1" matches nothing: 10.0.0.1/32 is outside of the mesh (100.64.0.0/10, fd00:1::/48), and no router has an approved route there`,
		},
		{
			"a destination outside", `{"src": "group:eng", "deny": ["10.0.0.1:22"]}`, nil,
			`7:41: error: tests[0].deny[0]: "10.0.0.1" has no address that "group:eng" could reach: 10.0.0.1/32 is outside of the mesh (100.64.0.0/10, fd00:1::/48), and no router has an approved route there`,
		},
		{
			"self of a machine", `{"src": "tag:db", "deny": ["autogroup:self:22"]}`, nil,
			`7:38: error: tests[0].deny[0]: "autogroup:self" has no address that "tag:db" could reach: autogroup:self is about nodes of users`,
		},
		{
			"several fail", `{"src": "tag:db", "accept": ["tag:web:1", "ann@example.com:1"]}, {"src": "bob@example.com", "deny": ["tag:db:5432"]}`, nil,
			`7:40: error: tests[0].accept[0]: the test wants tag:web:1 to be reached, but no rule allows it (tcp or udp): 100.64.0.3 (n3, tag:db) to 100.64.0.4 (n4, tag:web)
7:53: error: tests[0].accept[1]: the test wants ann@example.com:1 to be reached, but no rule allows it (tcp or udp): 100.64.0.3 (n3, tag:db) to 100.64.0.1 (n1, ann@example.com)
7:112: error: tests[1].deny[0]: the test wants tag:db:5432 to be refused, but acls[0] (line 3) allows it: 100.64.0.2 (n2, bob@example.com) to 100.64.0.3 (n3, tag:db)`,
		},

		// Stand-ins.
		{"nobody enrolled", `{"src": "group:eng", "accept": ["tag:db:5432"], "deny": ["tag:db:22"]}`, []string{}, ""},
		{
			"nobody enrolled, and a member may not", `{"src": "group:eng", "accept": ["four:22"]}`,
			[]string{},
			`7:43: error: tests[0].accept[0]: the test wants four:22 to be reached, but no rule allows it (tcp or udp): 100.64.0.4 (stand-in-2, bob@example.com) to 100.64.0.3 (stand-in-3)`,
		},
		{"a member without a node", `{"src": "user:*@example.com", "deny": ["tag:db:22"]}, {"src": "autogroup:tagged", "deny": ["tag:db:5432"]}`, []string{}, ""},
		{"own nodes", `{"src": "ann@example.com", "accept": ["autogroup:self:22"], "deny": ["autogroup:self:23"]}`, []string{"ann@example.com", "ann@example.com"}, ""},
		{"the only node so far", `{"src": "ann@example.com", "accept": ["autogroup:self:22"], "deny": ["autogroup:self:23"]}`, nil, ""},
		{
			"the only node so far, allowed", `{"src": "ann@example.com", "deny": ["autogroup:self:22"]}`, nil,
			`7:47: error: tests[0].deny[0]: the test wants autogroup:self:22 to be refused, but acls[2] (line 5) allows it: 100.64.0.1 (n1, ann@example.com) to 100.64.0.6 (stand-in-1, ann@example.com)`,
		},
		{"a tag to itself", `{"src": "tag:db", "deny": ["tag:db:5432"]}`, nil, ""},
		{"an address to itself", `{"src": "100.64.0.3", "deny": ["four:22"]}`, nil, `7:42: error: tests[0].deny[0]: "four" has no address that "100.64.0.3" could reach: it picks only the source itself, or addresses of the other family`},
		{"everybody to everybody", `{"src": "*", "deny": ["*:23"]}`, []string{}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			src := `{` + strings.Join(strings.Fields(defs), " ") + rules + `"tests": [` + test.test + `]}`
			who := test.who
			if who == nil {
				who = five
			}
			var got []string
			for _, f := range compile.RunTests(program(t, src), inventory(who...)) {
				got = append(got, f.Diagnostic().String())
			}
			if diff := cmp.Diff(test.want, strings.Join(got, "\n")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
