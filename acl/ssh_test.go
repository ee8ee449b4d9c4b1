package acl

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSSH(t *testing.T) {
	p := good(t, sshPolicy)
	var got []string
	for _, r := range p.SSH {
		got = append(got, fmt.Sprintf("%s %t %d>%d %v %s %t %v", r.Path, r.Check, len(r.Src), len(r.Dst), r.Users, r.CheckPeriod, r.Always, r.AcceptEnv))
	}
	want := []string{
		"ssh[0] false 4>3 [root autogroup:nonroot localpart:*@x.org ubuntu] 0s false [LANG LC_* *]",
		"ssh[1] true 1>1 [root] 12h0m0s false []",
		"ssh[2] true 1>1 [root] 168h0m0s false []",
		"ssh[3] true 1>1 [root] 0s true []",
		"ssh[4] true 1>1 [root] 0s false []",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	x := p.SSHTests[0]
	if x.Src.Text != "ann@x.org" || len(x.Dst) != 4 || !cmp.Equal([][]string{x.Accept, x.Deny, x.Check}, [][]string{{"ann"}, {"root", "daemon"}, {"admin"}}) {
		t.Errorf("%+v", x)
	}
	for user, want := range map[string]string{"localpart:*@x.org": "x.org", "localpart:*@": "", "localpart:a@x.org": "", "localpart:*@a@b": "", "root": ""} {
		if got := LocalpartDomain(user); got != want {
			t.Errorf("the domain of %s is %q, want %q", user, got, want)
		}
	}
}

const sshPolicy = `{"groups": {"group:g": []}, "tagOwners": {"tag:a": []}, "hosts": {"web": "100.64.0.9"},
	"ssh": [
		{"action": "accept", "src": ["group:g", "autogroup:member", "user:*@x.org", "autogroup:admin"], "dst": ["tag:a", "autogroup:tagged", "autogroup:self"],
		 "users": ["root", "autogroup:nonroot", "localpart:*@x.org", " ubuntu ", "root"], "acceptEnv": ["LANG", "LC_*", "*"]},
		{"action": "check", "src": ["ann@x.org"], "dst": ["ann@x.org"], "users": ["root"]},
		{"action": " check ", "src": ["tag:a"], "dst": ["tag:a"], "users": ["root"], "checkPeriod": "168h"},
		{"action": "check", "src": ["autogroup:tagged"], "dst": ["tag:a"], "users": ["root"], "checkPeriod": "always"},
		{"action": "check", "src": ["autogroup:member"], "dst": ["tag:a"], "users": ["root"], "checkPeriod": "0s"}],
	"sshTests": [{"src": "ann@x.org", "dst": ["tag:a", "web", "100.64.0.7", "autogroup:self"], "accept": ["ann"], "deny": ["root", "daemon"], "check": ["admin"]}]}`

func TestSSHErrors(t *testing.T) {
	rule := func(s string) string {
		return `{"groups": {"group:g": []}, "tagOwners": {"tag:a": []}, "hosts": {"web": "100.64.0.9", "net": "10.0.0.0/8"}, "ssh": [{` + s + `}]}`
	}
	full := func(s string) string {
		return rule(`"action": "accept", "src": ["autogroup:member"], "dst": ["tag:a"], "users": ["root"], ` + s)
	}
	sides := func(src, dst string) string {
		return rule(`"action": "accept", "src": [` + src + `], "dst": [` + dst + `], "users": ["root"]`)
	}
	users := func(s string) string {
		return rule(`"action": "accept", "src": ["autogroup:member"], "dst": ["tag:a"], "users": ` + s)
	}
	period := func(s string) string {
		return rule(`"action": "check", "src": ["autogroup:member"], "dst": ["tag:a"], "users": ["root"], "checkPeriod": ` + s)
	}
	test := func(s string) string {
		return `{"tagOwners": {"tag:a": []}, "hosts": {"net": "10.0.0.0/8"}, "sshTests": [{` + s + `}]}`
	}
	runErrorTests(t, []errorTest{
		{"no action", `{"ssh": [|{"src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}]}`, `"action" is missing`},
		{"action", rule(`"action": |"deny", "src": ["autogroup:member"], "dst": ["tag:a"], "users": ["root"], "checkPeriod": "1h"`), `action "deny" is not supported`},
		{"empty action", rule(`"action": |"", "src": ["autogroup:member"], "dst": ["tag:a"], "users": ["root"]`), `action "" is not supported`},
		{"no users", `{"ssh": [|{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"]}]}`, `"users" is missing`},
		{"empty users", users(`|[]`), `name who may be logged in as`},
		{"empty user", users(`["root", |" "]`), `is not a login name`},
		{"every user", users(`[|"*"]`), `"*" is not a login name`},
		{"users of a wrong type", users(`|"root"`), `is a string; want a list of login names`},
		{"period of accept", full(`"checkPeriod": |"1h"`), `is for "action": "check" only`},
		{"long period", period(`|"200h"`), `"200h" is not from 0s to 7d`},
		{"negative period", period(`|"-1h"`), `is not from 0s to 7d`},
		{"no period", period(`|"abc"`), `is not a duration`},
		{"number as a period", period(`|3600`), `or "always"`},
		{"empty variable", full(`"acceptEnv": [|""]`), `is not the name of a variable`},
		{"value of a variable", full(`"acceptEnv": [|"LANG=C"]`), `is not the name of a variable`},
		{"recorder", full(`|"recorder": ["tag:a"]`), `"recorder" is not enforced by this version`},
		{"near key", full(`|"acceptENVs": []`), `unknown key "acceptENVs"`},
		{"everyone as a source", sides(`|"*"`, `"tag:a"`), `"*" cannot be a source of ssh`},
		{"host as a source", sides(`|"web"`, `"tag:a"`), `cannot be a source of ssh`},
		{"self as a source", sides(`|"autogroup:self"`, `"tag:a"`), `allowed only in dst`},
		{"everything as a destination", sides(`"autogroup:member"`, `|"*"`), `cannot be a destination of ssh`},
		{"host as a destination", sides(`"autogroup:member"`, `|"web"`), `cannot be a destination of ssh`},
		{"group as a destination", sides(`"autogroup:member"`, `|"group:g"`), `cannot be a destination of ssh`},
		{"ports", sides(`"autogroup:member"`, `|"tag:a:22"`), `is not a tag`},
		{"tag to a user", sides(`"tag:a"`, `|"ann@x.org"`), `are machines of people`},
		{"tag to people", sides(`"autogroup:tagged"`, `|"autogroup:member"`), `are machines of people`},
		{"tag to self", sides(`"ann@x.org", "tag:a"`, `|"autogroup:self"`), `are machines of people`},
		{"to another user", sides(`"bob@x.org"`, `|"ann@x.org"`), `wants the same user alone in src`},
		{"to one of two users", sides(`"ann@x.org", "bob@x.org"`, `|"ann@x.org"`), `wants the same user alone in src`},
		{"group to a user", sides(`"group:g"`, `|"ann@x.org"`), `wants the same user alone in src`},

		{"test without a source", `{"sshTests": [|{"dst": ["ann@x.org"], "accept": ["root"]}]}`, `"src" is missing`},
		{"test to nowhere", test(`"src": "ann@x.org", "dst": |[], "accept": ["root"]`), `name where to log in`},
		{"test to the internet", test(`"src": "ann@x.org", "dst": [|"autogroup:internet"], "accept": ["root"]`), `allowed only in dst`},
		{"test to a range", test(`"src": "ann@x.org", "dst": [|"net"], "accept": ["root"]`), `is a range`},
		{"test to everything", test(`"src": "ann@x.org", "dst": [|"*"], "accept": ["root"]`), `cannot be the dst of a test of ssh`},
		{"test to an undefined tag", test(`"src": "ann@x.org", "dst": [|"tag:x"], "accept": ["root"]`), `is not defined`},
		{"test with ports", test(`"src": "ann@x.org", "dst": [|"tag:a:22"], "accept": ["root"]`), `is not a tag`},
		{"test as everybody", test(`"src": "ann@x.org", "dst": ["tag:a"], "accept": [|"*"]`), `is not a login name`},
		{"test of sources", test(`"src": |["ann@x.org"], "dst": ["tag:a"], "accept": ["root"]`), `is a list; want a selector`},
	})
	runWarningTests(t, []warningTest{
		{"no source", `{"ssh": [|{"action": "accept", "dst": ["autogroup:self"], "users": ["root"]}]}`, `"src" is missing, so the rule allows nothing`},
		{"autogroup as a login name", users(`[|"autogroup:member"]`), "is read as a login name"},
		{"group as a login name", users(`[|"group:g"]`), "is read as a login name"},
		{"localpart without a domain", users(`[|"localpart:foo"]`), "is read as a login name"},
		{"test of no user", `{"sshTests": [|{"src": "ann@x.org", "dst": ["ann@x.org"], "deny": []}]}`, "tests nothing"},
		{"test of nothing", `{"sshTests": [|{"src": "ann@x.org", "dst": ["ann@x.org"]}]}`, "tests nothing"},
	})
}
