package acl

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAdmission(t *testing.T) {
	p := good(t, `{"groups": {"group:eng": ["ann@example.com"]}, "tagOwners": {"tag:prod": []},
		"admission": [
			{"tags": ["tag:prod"], "groups": ["group:eng", "autogroup:admin"], "users": ["bob@", "user:*@example.org"], "attestation": "tpm", "approval": true},
			{"tags": ["autogroup:tagged"], "groups": ["autogroup:member"], "attestation": "none", "approval": true},
			{"attestation": "x509"}]}`)
	type entry struct {
		Path  string
		Sets  []string
		Level string
		Asks  bool
	}
	var got []entry
	for _, a := range p.Admission {
		e := entry{Path: a.Path, Level: a.Attestation, Asks: a.Approval}
		for _, s := range a.Whom {
			e.Sets = append(e.Sets, s.Set())
		}
		got = append(got, e)
	}
	want := []entry{
		{"admission[0]", []string{"tag:prod", "group:eng", "autogroup:admin", "user:bob@", "user:*@example.org"}, "tpm", true},
		{"admission[1]", []string{"autogroup:tagged", "autogroup:member"}, "", true},
		{"admission[2]", nil, "x509", false},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("admission (-want +got):\n%s", diff)
	}
}

func TestAdmissionErrors(t *testing.T) {
	const defs = `"groups": {"group:eng": []}, "tagOwners": {"tag:prod": []}, `
	runErrorTests(t, []errorTest{
		{"admission of a wrong type", `{"admission": |{}}`, `is an object; want a list`},
		{"entry of a wrong type", `{"admission": [|"tpm"]}`, `is a string; want an object with tags, groups or users`},
		{"near key", `{"admission": [{|"tag": ["tag:prod"], "attestation": "tpm"}]}`, `did you mean "tags"?`},
		{"unknown key", `{"admission": [{|"posture": []}]}`, `unknown key "posture"; known are approval, attestation, groups, tags, users`},
		{"near level", `{"admission": [{"attestation": |"tmp"}]}`, `there is no attestation "tmp"; did you mean "tpm"?`},
		{"no level", `{"admission": [{"attestation": |"secure"}]}`, `it is one of none, token, x509, tpm-unverified, tpm, measured`},
		{"level of a wrong type", `{"admission": [{"attestation": |2}]}`, `is a number; want a kind of attestation`},
		{"approval of a wrong type", `{"admission": [{"approval": |"yes"}]}`, `is a string; want true or false`},
		{"nobody", `{` + defs + `"admission": [{"tags": |[], "attestation": "tpm"}]}`, `is empty; name someone, or leave "tags" out`},
		{"undefined tag", `{` + defs + `"admission": [{"tags": [|"tag:prodd"], "attestation": "tpm"}]}`, `did you mean "tag:prod"?`},
		{"group among tags", `{` + defs + `"admission": [{"tags": [|"group:eng"], "attestation": "tpm"}]}`, `"group:eng" is not a tag`},
		{"tag among groups", `{` + defs + `"admission": [{"groups": [|"tag:prod"], "attestation": "tpm"}]}`, `"tag:prod" is not a group`},
		{"group among users", `{` + defs + `"admission": [{"users": [|"group:eng"], "attestation": "tpm"}]}`, `"group:eng" is not a user`},
		{"everybody", `{` + defs + `"admission": [{"users": [|"*"], "attestation": "tpm"}]}`, `An entry without tags, groups and users applies to every node`},
		{"an address", `{` + defs + `"admission": [{"users": [|"100.64.0.1"], "attestation": "tpm"}]}`, `is not a user`},
		{"own nodes", `{` + defs + `"admission": [{"groups": [|"autogroup:self"], "attestation": "tpm"}]}`, `autogroup:self is allowed only in dst, not in the groups of admission`},
	})
}

func TestAdmissionThatAsksForNothing(t *testing.T) {
	for _, entry := range []string{`{}`, `{"attestation": "none"}`, `{"approval": false}`} {
		p, diags := parse("test", []byte(`{"admission": [`+entry+`]}`), fuzzTime)
		if p == nil || len(diags) != 1 || diags[0].Severity != Warning || diags[0].Path != "admission[0]" {
			t.Errorf("%s: %s", entry, diags.Format("test"))
		}
	}
}
