package acl

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestConditions(t *testing.T) {
	for text, want := range map[string]string{
		"node:os == 'linux'":                             "node:os == [linux]",
		`node:os != "mac os"`:                            "node:os != [mac os]",
		"node:osVersion>='13.4'":                         "node:osVersion >= [13.4]",
		"node:version < '1.10'":                          "node:version < [1.10]",
		"node:version <= '1.10'":                         "node:version <= [1.10]",
		"posture:updatesAge > 7":                         "posture:updatesAge > [7]",
		"custom:score == -7.5":                           "custom:score == [-7.5]",
		"user:mfa == true":                               "user:mfa == [true]",
		"  posture:diskEncrypted  ==  false ":            "posture:diskEncrypted == [false]",
		"node:os IN ['linux', 'macos',]":                 "node:os IN [linux macos]",
		"node:os IN['linux']":                            "node:os IN [linux]",
		"custom:tier NOT IN [ 'a' , 1 , true ]":          "custom:tier NOT IN [a 1 true]",
		"posture:edr IS SET":                             "posture:edr IS SET []",
		"custom:lost\tNOT  SET":                          "custom:lost NOT SET []",
		"device:attestation >= 'tpm'":                    "device:attestation >= [tpm]",
		"ip:country == 'CH'":                             "ip:country == [CH]",
		"falcon:ztaScore >= 50":                          "falcon:ztaScore >= [50]",
		"custom:it's == 'x'":                             "",
		"":                                               "",
		"node:os":                                        "",
		"node:os 'linux'":                                "",
		"node:os == ":                                    "",
		"node:os == linux":                               "",
		"node:os == 'linux":                              "",
		"node:os == 'linux' AND node:os == 'macos'":      "",
		"node:os = 'linux'":                              "",
		"node:os === 'linux'":                            "",
		"node:os INSIDE ['linux']":                       "",
		"node:os IN 'linux'":                             "",
		"node:os IN []":                                  "",
		"node:os IN ['linux'":                            "",
		"node:os IN ['linux' 'macos']":                   "",
		"node:os IS SET 'linux'":                         "",
		"node:os is set":                                 "",
		"node:color == 'red'":                            "",
		"os == 'linux'":                                  "",
		":os == 'linux'":                                 "",
		"custom: == 'linux'":                             "",
		"custom:x == 1.":                                 "",
		"custom:x == 1-1":                                "",
		"device:attestation == 'gold'":                   "",
		"custom:x == '" + strings.Repeat("x", 300) + "'": "",
	} {
		c, err := parseCondition(text)
		got := ""
		if err == nil {
			got = fmt.Sprintf("%s %s %s", c.Fact, c.Op, c.Values)
		}
		if got != want || c.Text != text {
			t.Errorf("%q is read as %q (%v), want %q", text, got, err, want)
		}
	}
}

const postures = `"postures": {
	"posture:managed": ["node:os == 'linux'", "posture:diskEncrypted == true"],
	"posture:known": ["custom:owner IS SET"]}`

func TestPostures(t *testing.T) {
	p := good(t, `{`+postures+`, "defaultSrcPosture": ["posture:known"],
		"acls": [
			{"action": "accept", "src": ["*"], "dst": ["*:*"], "srcPosture": ["posture:managed", "posture:known", "posture:managed"]},
			{"action": "accept", "src": ["*"], "dst": ["*:*"]},
			{"action": "accept", "src": ["*"], "dst": ["*:*"], "srcPosture": []}],
		"grants": [
			{"src": ["*"], "dst": ["*"], "ip": ["*"], "srcPosture": ["posture:managed"]},
			{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
		"deny": [
			{"src": ["*"], "dst": ["*"], "ip": ["*"]},
			{"src": ["*"], "dst": ["*"], "ip": ["*"], "srcPosture": ["posture:managed"]}],
		"enforcement": [{"src": ["*"], "dst": ["*"], "mode": "monitor", "until": "2027-01-31"}],
		"ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}],
		"tests": [{"src": "*", "accept": ["*:1"], "srcPostureAttrs": {"node:os": "linux", "custom:score": 7, "posture:firewall": true}}],
		"sshTests": [{"src": "ann@x.org", "dst": ["ann@x.org"], "accept": ["root"], "srcPostureAttrs": {"custom:owner": "ann"}}],
	}`)
	got := map[string]string{"ssh[0]": fmt.Sprint(p.SSH[0].Postures)}
	for _, r := range p.Rules {
		got[r.Path] = fmt.Sprint(r.Postures)
	}
	want := map[string]string{
		"acls[0]": "[posture:managed posture:known]", "acls[1]": "[posture:known]", "acls[2]": "[posture:known]",
		"grants[0]": "[posture:managed]", "grants[1]": "[posture:known]", "ssh[0]": "[posture:known]",
		"deny[0]": "[]", "deny[1]": "[posture:managed]", "enforcement[0]": "[]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	facts := []map[string]string{p.Tests[0].Facts, p.SSHTests[0].Facts}
	if diff := cmp.Diff([]map[string]string{{"node:os": "linux", "custom:score": "7", "posture:firewall": "true"}, {"custom:owner": "ann"}}, facts); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
	if c := p.Postures["posture:managed"].Conditions; len(c) != 2 || c[1].Path != `postures["posture:managed"][1]` || c[1].Line != 2 || c[1].Text != "posture:diskEncrypted == true" {
		t.Errorf("conditions %+v", c)
	}
}

func TestPostureErrors(t *testing.T) {
	runErrorTests(t, []errorTest{
		{"name", `{"postures": {|"managed": ["node:os == 'linux'"]}}`, `"managed" is not a posture`},
		{"no condition", `{"postures": {"posture:a": |[]}}`, `every node would satisfy it`},
		{"no operator", `{"postures": {"posture:a": [|"node:os"]}}`, `has no operator`},
		{"not a string", `{"postures": {"posture:a": [|true]}}`, `is a boolean; want a condition`},
		{"near fact", `{"postures": {"posture:a": [|"node:oss == 'linux'"]}}`, `did you mean "node:os"?`},
		{"undefined", `{` + postures + `, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"], "srcPosture": [|"posture:manage"]}]}`, `did you mean "posture:managed"?`},
		{"undefined default", `{"defaultSrcPosture": [|"posture:x"]}`, `posture "posture:x" is not defined in postures`},
		{"default of a wrong type", `{"defaultSrcPosture": |"posture:x"}`, `is a string; want a list of postures`},
		{"fact of a test", `{"tests": [{"src": "*", "deny": ["*:1"], "srcPostureAttrs": {|"os": "linux"}}]}`, `"os" is not a fact`},
		{"value of a fact", `{"tests": [{"src": "*", "deny": ["*:1"], "srcPostureAttrs": {"node:os": |null}}]}`, `is null; want a string`},
		{"values of a fact", `{"tests": [{"src": "*", "deny": ["*:1"], "srcPostureAttrs": {"node:os": |["linux"]}}]}`, `is a list; want a string`},
	})
	runWarningTests(t, []warningTest{
		{"country", `{"postures": {"posture:a": [|"ip:country == 'CH'"]}}`, "is never set here"},
		{"version of another program", `{"postures": {"posture:a": [|"node:tsVersion >= '1.40'"]}}`, "node:version"},
		{"facts of others", `{"postures": {"posture:a": [|"intune:complianceState == 'compliant'"]}}`, "is never set here"},
		{"facts that exist", `{"postures": {"posture:a": ["posture:whatever == 1", "custom:x IS SET"]}}`, ""},
	})
}
