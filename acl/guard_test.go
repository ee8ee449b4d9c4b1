package acl

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDenyAndEnforcement(t *testing.T) {
	p := good(t, `{"groups": {"group:c": ["cat@x.org"]}, "tagOwners": {"tag:pci": []},
		"enforcement": [
			{"src": ["*"], "dst": ["tag:pci"], "mode": "monitor", "until": "2027-01-31"},
			{"src": ["*"], "dst": ["tag:pci"], "mode": "monitor", "until": "2027-03-31T18:00:00.7+02:00"}],
		"deny": [
			{"src": ["group:c"], "dst": ["tag:pci"], "ip": ["*"]},
			{"src": ["*"], "dst": ["autogroup:internet", "autogroup:self"], "ip": ["tcp:25", "udp:53"]}],
		"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
		"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`)
	var got []string
	for _, r := range p.Rules {
		until := ""
		if !r.Until.IsZero() {
			until = " " + r.Until.Format(time.RFC3339Nano)
		}
		got = append(got, fmt.Sprintf("%s %d %d services%s", r.Path, r.Action, len(r.Dst[0].Services), until))
	}
	want := []string{
		"acls[0] 0 4 services", "grants[0] 0 4 services", "deny[0] 1 256 services", "deny[1] 1 2 services",
		"enforcement[0] 2 256 services 2027-01-31T00:00:00Z", "enforcement[1] 2 256 services 2027-03-31T16:00:00Z",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMonitoringEnds(t *testing.T) {
	src := func(until string) []byte {
		return []byte(`{"enforcement": [{"src": ["*"], "dst": ["*"], "mode": "monitor", "until": "` + until + `"}]}`)
	}
	for until, want := range map[string]string{
		"2027-01-02": "", "2027-04-01": "", "2027-04-01T00:00:01Z": "error", "2028-01-01": "error",
		"2027-01-01": "warning", "2026-12-31T23:00:00Z": "warning",
	} {
		_, diags := Check("test", src(until), fuzzTime)
		got := ""
		if len(diags) > 0 {
			got = diags[0].Severity.String()
		}
		if got != want {
			t.Errorf("until %s: %v, want %q", until, diags, want)
		}
		if p, _ := Parse("test", src(until)); p == nil {
			t.Errorf("until %s: a policy in force is refused", until)
		}
	}
}

func TestGuardErrors(t *testing.T) {
	deny := func(rest string) string { return `{"deny": [{"src": ["*"], "dst": ["*"], ` + rest + `}]}` }
	enforcement := func(mode, until string) string {
		return `{"enforcement": [{"src": ["*"], "dst": ["*"], "mode": ` + mode + `, "until": ` + until + `}]}`
	}
	runErrorTests(t, []errorTest{
		{"deny of nothing", `{"deny": [|{"src": ["*"], "dst": ["*"]}]}`, `"ip" is missing`},
		{"deny of no ports", deny(`"ip": |[]`), `is empty; specify what is granted`},
		{"deny of app", deny(`"ip": ["*"], |"app": {}`), `"app" cannot be denied`},
		{"deny by way of", deny(`"ip": ["*"], |"via": ["tag:r"]`), `unknown key "via"`},
		{"deny with an action", deny(`"ip": ["*"], |"action": "deny"`), `unknown key "action"`},
		{"deny to everything", `{"deny": [{"src": ["*"], "dst": [|"0.0.0.0/0"], "ip": ["*"]}]}`, `write *`},
		{"tag beside self", `{"tagOwners": {"tag:a": []}, "deny": [{"src": [|"tag:a"], "dst": ["autogroup:self"], "ip": ["*"]}]}`, `cannot be combined with autogroup:self`},
		{"mode", enforcement(`|"off"`, `"2027-01-31"`), `there is no mode "off"`},
		{"no end", `{"enforcement": [|{"src": ["*"], "dst": ["*"], "mode": "monitor"}]}`, `"until" is missing`},
		{"no day", enforcement(`"monitor"`, `|"2027-02-30"`), `is not a date or time`},
		{"a time without a zone", enforcement(`"monitor"`, `|"2027-01-31T18:00:00"`), `is not a date or time`},
		{"before all computers", enforcement(`"monitor"`, `|"1066-10-14"`), `is not a date or time`},
		{"not a text", enforcement(`"monitor"`, `|20270131`), `is a number; want a date`},
		{"too far", enforcement(`"monitor"`, `|"2027-04-02"`), `is more than 90 days ahead; monitor until 2027-04-01 at most`},
	})
}

func TestGrants(t *testing.T) {
	p := good(t, `{"tagOwners": {"tag:r": [], "tag:s": []}, "hosts": {"site": "10.1.0.0/16"}, "grants": [
		{"src": ["autogroup:danger-all"], "dst": ["site"], "ip": ["22"], "via": ["tag:r", "tag:s"]},
		{"src": ["autogroup:admin", "user:*@x.org"], "dst": ["autogroup:internet"], "ip": ["*"], "via": null, "auth": {"age": "1h", "mfa": true}},
		{"src": ["*"], "dst": ["tag:r"], "app": {
			"example.com/cap/admin": [{"role": "owner", /* of */ "of": [1, 2,],}, {}], "tailscale.com/cap/webui": []}},
		{"src": ["*"], "dst": ["tag:r"], "ip": [], "app": {"example.com/cap/x": [{}]}},
		{"src": [" tag:r "], "dst": ["* "], "ip": ["GRE:*"]}]}`)
	want := []string{
		"autogroup:danger-all 12 | site 1 | 4 services via [tag:r tag:s] app null",
		"autogroup:admin 13 user:*@x.org 4 | autogroup:internet 11 | 4 services via [] auth 1h0m0s true app null",
		`* 2 | tag:r 6 | 0 services via [] app {"example.com/cap/admin":[{"role":"owner","of":[1,2]},{}],"tailscale.com/cap/webui":[]}`,
		`* 2 | tag:r 6 | 0 services via [] app {"example.com/cap/x":[{}]}`,
		"tag:r 6 | * 2 | 1 services via [] app null",
	}
	for i, r := range p.Rules {
		src, dst, auth := "", "", ""
		for _, s := range r.Src {
			src += fmt.Sprintf("%s %d ", s.Text, s.Kind)
		}
		for _, d := range r.Dst {
			dst += fmt.Sprintf("%s %d ", d.Text, d.Kind)
		}
		if r.Auth != nil {
			auth = fmt.Sprintf(" auth %s %t", r.Auth.Age, r.Auth.MFA)
		}
		app, err := json.Marshal(r.App)
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprintf("%s| %s| %d services via %v%s app %s", src, dst, len(r.Dst[0].Services), r.Via, auth, app)
		if i >= len(want) || got != want[i] {
			t.Errorf("%s: %s", r.Path, got)
		}
	}
}

func TestGrantErrors(t *testing.T) {
	grant := func(rest string) string {
		return `{"tagOwners": {"tag:r": []}, "groups": {"group:g": []}, "grants": [{"src": ["*"], "dst": ["tag:r"], ` + rest + `}]}`
	}
	capability := func(name string) string { return grant(`"app": {|"` + name + `": [{}]}`) }
	runErrorTests(t, []errorTest{
		{"via of a group", grant(`"ip": ["*"], "via": [|"group:g"]`), `via names the tags of routers`},
		{"via of nobody", grant(`"ip": ["*"], "via": [|"tag:x"]`), `tag "tag:x" is not defined`},
		{"via of a wrong type", grant(`"ip": ["*"], "via": |"tag:r"`), `is a string; want a list of tags`},
		{"capability without a domain", capability("admin"), `is not a capability`},
		{"capability with a scheme", capability("https://example.com/cap"), `is not a capability`},
		{"capability of another program", capability("tailscale.com/cap/funnel"), `the domain of another program`},
		{"capability that is no object", grant(`"app": {"x.org/a": [|"admin"]}`), `is a string; want an object`},
		{"capability of a wrong type", grant(`"app": {"x.org/a": |{}}`), `is an object; want a list of objects`},
		{"no capability", grant(`"app": |{}`), `grants nothing`},
		{"key twice within a capability", grant(`"app": {"x.org/a": [{"b": [{"c": 1, |"c": 2}]}]}`), `"c" was given before`},
		{"large capability", grant(`"app": |{"x.org/a": [{"b": "` + strings.Repeat("x", 9000) + `"}]}`), `and a rule at most 8192`},
		{"capability for the internet", `{"grants": [{"src": ["*"], "dst": [|"autogroup:internet"], "app": {"x.org/a": [{}]}}]}`, `granted on Internet destinations`},
		{"auth of a wrong type", grant(`"ip": ["*"], "auth": |true`), `is a boolean; want an object`},
		{"age", grant(`"ip": ["*"], "auth": {"age": |"soon"}`), `is not a duration`},
		{"mfa", grant(`"ip": ["*"], "auth": {"mfa": |"yes"}`), `is a string; want true or false`},
		{"unknown key of auth", grant(`"ip": ["*"], "auth": {|"maxAge": "1h"}`), `unknown key "maxAge"`},
		{"internet as a source", `{"grants": [{"src": [|"autogroup:internet"], "dst": ["*"], "ip": ["*"]}]}`, `autogroup:internet is allowed only in dst, not in src`},
		{"all of the world as a destination", `{"grants": [{"src": ["*"], "dst": [|"autogroup:danger-all"], "ip": ["*"]}]}`, `autogroup:danger-all is allowed only in src, not in dst`},
		{"logins as a source", `{"grants": [{"src": [|"autogroup:nonroot"], "dst": ["*"], "ip": ["*"]}]}`, `autogroup:nonroot is allowed only in the users of ssh, not in src`},
		{"near role", `{"grants": [{"src": [|"autogroup:admins"], "dst": ["*"], "ip": ["*"]}]}`, `did you mean "autogroup:admin"?`},
	})
	runWarningTests(t, []warningTest{
		{"auth that asks nothing", grant(`"ip": ["*"], "auth": |{"mfa": false}`), "requires nothing"},
		{"everything in an acl", `{"acls": [{"action": "accept", "src": ["*"], "dst": ["0.0.0.0/0:*"]}]}`, ""},
		{"old names", `{"acls": [{"action": "accept", |"users": ["*"], "dst": ["*:*"]}]}`, `"users" is read as "src"`},
		{"other letters", `{|"ACLs": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`, `"ACLs" is read as "acls"`},
		{"notes", `{"acls": [{|"#id": 7, "action": "accept", "src": ["*"], "dst": ["*:*"]}]}`, `"#id" has no effect here`},
	})
	if p, _ := Parse("test", []byte(`{"ACLs": [{"Action": "accept", "Users": ["*"], "Ports": ["*:*"]}]}`)); p == nil || p.Rules[0].Path != "acls[0]" || p.Rules[0].Src[0].Path != "acls[0].src[0]" {
		t.Error("old names are not read as the new ones")
	}
}
