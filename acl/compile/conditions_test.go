package compile_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// managed returns a mesh of ann (1), bob (2) and tag:db (3); ann's machine has the given facts, and she logged in since ago.
func managed(t *testing.T, src string, facts map[string]string, since time.Duration) (*compile.Program, *compile.Memory) {
	t.Helper()
	inv := inventory(five...)
	inv.SetNow(lawNow)
	ann := node(1, "ann@example.com")
	ann.User.AuthTime = lawNow.Add(-since)
	mustPut(inv, ann)
	inv.SetTraits(1, compile.Traits{Facts: facts})
	return compile.New(parseAt(t, []byte(`{`+defs+`"postures": {"posture:managed": ["node:os == 'linux'"]},`+src+`}`)), testMesh), inv
}

func TestWithheld(t *testing.T) {
	const rule = `"grants": [{"src": ["group:eng"], "dst": ["tag:db"], "ip": ["tcp:1"], "srcPosture": ["posture:managed"], "auth": {"age": "1h", "mfa": true}}]`
	for _, test := range []struct {
		facts map[string]string
		since time.Duration
		want  string
	}{
		{nil, time.Minute, "needs posture:managed: node:os is not set"},
		{map[string]string{"node:os": "win\ndows"}, time.Minute, `needs posture:managed: node:os == 'linux', and it is "win\ndows"`},
		{map[string]string{"node:os": "linux"}, time.Minute, "needs a login with several factors: user:mfa is not set"},
		{map[string]string{"node:os": "linux", "user:mfa": "true"}, 2 * time.Hour, "needs a login at most 1h old; log in again"},
		{map[string]string{"node:os": "linux", "user:mfa": "true"}, time.Hour, ""},
	} {
		prog, inv := managed(t, rule, test.facts, test.since)
		v, db := prog.For(inv, 1), prog.For(inv, 3)
		reason := ""
		if len(v.Withheld) == 1 {
			reason = v.Withheld[0].Reason
		}
		if reason != test.want || len(v.Withheld)+len(v.Rules) != 1 || (len(v.Peers) == 0) != (test.want != "") {
			t.Errorf("%v: withheld %q, want %q; peers %v, rules %v", test.facts, reason, test.want, v.Peers, v.Rules)
		}
		want := []proto.Set{{Name: "group:eng if posture:managed auth<=1h mfa", Conditional: true}}
		if test.want == "" {
			want[0].Members = []proto.NodeID{1}
		}
		if diff := cmp.Diff(want, db.Sets); diff != "" {
			t.Errorf("%v: the sets of the destination (-want +got):\n%s", test.facts, diff)
		}
	}
}

func TestNextChange(t *testing.T) {
	prog, inv := managed(t, `"grants": [{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["*"], "auth": {"age": "1h"}}]`, nil, 10*time.Minute)
	for {
		at, ok := prog.NextChange(inv, 1)
		if !ok {
			break
		}
		before := prog.For(inv, 1)
		inv.SetNow(at.Add(-1))
		if diff := cmp.Diff(before, prog.For(inv, 1), addrCmp); diff != "" {
			t.Fatalf("the view changed before %v:\n%s", at, diff)
		}
		inv.SetNow(at)
	}
	if got, want := inv.Now(), lawNow.Add(50*time.Minute+time.Second); !got.Equal(want) {
		t.Errorf("the last change is at %v, want %v", got, want)
	}
	if _, ok := prog.NextChange(inv, 3); ok {
		t.Error("a machine ages")
	}
	if v := prog.For(inv, 1); len(v.Rules) != 0 {
		t.Errorf("rules of a login that is too old: %v", v.Rules)
	}
}

func TestMonitorEnds(t *testing.T) {
	prog, inv := managed(t, `"enforcement": [{"src": ["ann@example.com"], "dst": ["tag:db"], "mode": "monitor", "until": "2026-04-01"}]`, nil, 0)
	ask := func() compile.Verdict {
		return prog.On(inv).Decide(3, node(1, "").Addrs.V4, node(3, "").Addrs.V4, 6, 22)
	}
	if v := ask(); !v.Allowed || v.Mode != compile.Monitor || len(prog.For(inv, 3).Peers) != 1 {
		t.Errorf("verdict %+v", v)
	}
	ends := prog.Until()
	if len(ends) != 1 {
		t.Fatalf("ends: %v", ends)
	}
	inv.SetNow(ends[0])
	if v := ask(); v.Allowed || len(prog.For(inv, 3).Rules) != 0 {
		t.Errorf("verdict %+v after the end", v)
	}
}

func TestComparisons(t *testing.T) {
	for _, test := range []struct {
		fact, value, condition string
		want                   bool
	}{
		{"node:osVersion", "10.15", "node:osVersion > '10.9'", true},
		{"node:osVersion", "10.9.0", "node:osVersion == '10.9'", true},
		{"node:version", "1.2.0-rc1", "node:version >= '1.2'", false},
		{"node:version", "v1.2.1", "node:version >= '1.2'", true},
		{"custom:n", "10", "custom:n > 9", true},
		{"custom:n", "-1", "custom:n < 0", true},
		{"custom:n", "many", "custom:n > 9", false},
		{"custom:n", "many", "custom:n <= 9", false},
		{"custom:n", "b", "custom:n IN ['a', 'b']", true},
		{"custom:n", "b", "custom:n NOT IN ['a', 'b']", false},
		{"custom:n", "b", "custom:n IS SET", true},
		{"custom:n", "b", "custom:n NOT SET", false},
		{"custom:m", "b", "custom:n NOT SET", true},
		{"custom:m", "b", "custom:n != 'a'", false},
		{"custom:m", "b", "custom:n NOT IN ['a']", false},
		{"device:attestation", "tpm-unverified", "device:attestation >= 'x509'", true},
		{"device:attestation", "tpm-unverified", "device:attestation < 'tpm'", true},
		{"device:attestation", "measured", "device:attestation > 'tpm'", true},
		{"device:attestation", "token", "device:attestation > 'none'", true},
	} {
		src := fmt.Sprintf(`{"tagOwners": {"tag:db": []}, "postures": {"posture:p": [%q]},
			"grants": [{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["*"], "srcPosture": ["posture:p"]}]}`, test.condition)
		inv := inventory("ann@example.com", "tag:db")
		inv.SetTraits(1, compile.Traits{Facts: map[string]string{test.fact: test.value}})
		prog := compile.New(parseAt(t, []byte(src)), testMesh)
		if v := prog.On(inv).Decide(2, node(1, "").Addrs.V4, node(2, "").Addrs.V4, 6, 1); v.Allowed != test.want {
			t.Errorf("%s with %s = %s: %+v", test.condition, test.fact, test.value, v)
		}
	}
}

// TestNotFinite checks that a fact that is no finite number is neither below nor above any: no grant applies, every deny does.
func TestNotFinite(t *testing.T) {
	for _, value := range []string{"NaN", "nan", "Inf", "+inf", "-Infinity", "1e999", "-1e999"} {
		for _, condition := range []string{
			"custom:n < 5", "custom:n <= 5", "custom:n > 5", "custom:n >= 5", "custom:n >= '-Inf'", "custom:n <= 'NaN'",
		} {
			for _, section := range []string{"grants", "deny"} {
				src := fmt.Sprintf(`{"tagOwners": {"tag:db": []}, "postures": {"posture:p": [%q]},
					%q: [{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["*"], "srcPosture": ["posture:p"]}]`, condition, section)
				if section == "deny" {
					src += `, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]`
				}
				inv := inventory("ann@example.com", "tag:db")
				inv.SetTraits(1, compile.Traits{Facts: map[string]string{"custom:n": value}})
				b := compile.New(parseAt(t, []byte(src+"}")), testMesh).On(inv)
				if v := b.Decide(2, node(1, "").Addrs.V4, node(2, "").Addrs.V4, 6, 1); v.Allowed {
					t.Errorf("%s if %s with %s: %+v", section, condition, value, v)
				}
			}
		}
	}
}

func TestFactsOfTests(t *testing.T) {
	const rules = `"grants": [{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["tcp:1"], "srcPosture": ["posture:managed"], "auth": {"age": "1h"}}],`
	prog, inv := managed(t, rules+`"tests": [
		{"src": "ann@example.com", "srcPostureAttrs": {"node:os": "linux"}, "accept": ["tag:db:1"]},
		{"src": "ann@example.com", "srcPostureAttrs": {"node:os": "linux", "user:authAge": 7200}, "deny": ["tag:db:1"]},
		{"src": "ann@example.com", "srcPostureAttrs": {"node:os": "linux", "user:authAge": "NaN"}, "deny": ["tag:db:1"]},
		{"src": "ann@example.com", "deny": ["tag:db:1"]}]`, nil, 100*time.Hour)
	for _, f := range compile.RunTests(prog, inv) {
		t.Error(f.Diagnostic())
	}
}

func TestExplain(t *testing.T) {
	prog, inv := managed(t, `"grants": [
		{"src": ["group:eng"], "dst": ["tag:db"], "ip": ["tcp:1"], "srcPosture": ["posture:managed"]},
		{"src": ["ann@example.com"], "dst": ["tag:web"], "ip": ["tcp:1"]}],
		"deny": [{"src": ["tag:db"], "dst": ["100.64.0.4"], "ip": ["*"]}]`, nil, 0)
	a := func(i int) netip.Addr { return node(i, "").Addrs.V4 }
	for _, test := range []struct {
		src, dst netip.Addr
		port     uint16
		want     string
	}{
		{a(1), a(4), 1, "true grants[1]"},
		{a(1), a(3), 1, "false grants[0]: needs posture:managed: node:os is not set; grants[1]: 100.64.0.3 is not among its destinations; "},
		{a(1), a(4), 2, "false grants[1]: tcp:2 is not among its services; "},
		{a(3), a(4), 2, "false deny[0]"},
		{a(1), netip.MustParseAddr("10.0.0.1"), 2, "false 10.0.0.1 is no node's address, and no router has an approved route to it"},
	} {
		x := prog.On(inv).Explain(test.src, test.dst, 6, test.port)
		got := fmt.Sprint(x.Allowed, " ", x.Missing)
		if x.Rule != nil {
			got += x.Rule.Path
		}
		for _, n := range x.Near {
			got += n.Origin.Path + ": " + strings.Join(n.Missing, ", ") + "; "
		}
		if got != test.want {
			t.Errorf("%s to %s: %s, want %s", test.src, test.dst, got, test.want)
		}
	}
}

// TestSSHTests runs a test that holds and, of each kind, one that does not.
func TestSSHTests(t *testing.T) {
	const rules = `"ssh": [
		{"action": "check", "src": ["group:eng"], "dst": ["tag:db"], "users": ["root", "localpart:*@example.com"]},
		{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:db"], "users": ["root", "autogroup:nonroot"]}],`
	prog, inv := managed(t, rules+`"sshTests": [
		{"src": "ann@example.com", "dst": ["tag:db"], "check": ["root", "ann"], "deny": ["bob", "daemon"]},
		{"src": "bob@example.com", "dst": ["tag:db"], "accept": ["daemon"], "check": ["root"]},
		{"src": "tag:web", "dst": ["tag:db"], "accept": ["root"]},
		{"src": "bob@example.com", "dst": ["tag:db"], "check": ["daemon"]},
		{"src": "ann@example.com", "dst": ["tag:db"], "deny": ["root"]}]`, nil, 0)
	var got []string
	for _, f := range compile.RunSSHTests(prog, inv) {
		path, _, _ := strings.Cut(f.Path, ".")
		got = append(got, path)
	}
	if want := []string{"sshTests[2]", "sshTests[3]", "sshTests[4]"}; !slices.Equal(got, want) {
		t.Errorf("failed: %v, want %v", got, want)
	}
}

func TestAttributes(t *testing.T) {
	prog, inv := managed(t, `"nodeAttrs": [{"target": ["tag:db"], "attr": ["custom:b", "custom:a"]}]`, nil, 0)
	if attrs, _ := prog.On(inv).NodeAttrs(3); cmp.Diff([]string{"custom:a", "custom:b"}, attrs) != "" {
		t.Errorf("attributes: %v", attrs)
	}
}

// TestDenyByFacts checks each way in which a deny rule depends on facts of its source.
func TestDenyByFacts(t *testing.T) {
	const rules = `"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
		"deny": [{"src": ["100.64.0.1", "tag:web"], "dst": ["four"], "ip": ["*"], "srcPosture": ["posture:managed"]}]`
	for _, test := range []struct {
		os     string
		denied bool
	}{{"", true}, {"linux", true}, {"macos", false}} {
		facts := map[string]string{"node:os": test.os}
		if test.os == "" {
			facts = nil
		}
		prog, inv := managed(t, rules, facts, 0)
		ann, db := node(1, ""), node(3, "")
		for _, at := range []proto.NodeID{1, 3} {
			for _, pair := range [][2]netip.Addr{{ann.Addrs.V4, db.Addrs.V4}, {ann.Addrs.V6, db.Addrs.V6}} {
				v := prog.On(inv).Decide(at, pair[0], pair[1], 6, 22)
				if v.Allowed == test.denied || v.Rule == nil {
					t.Errorf("%q at %v: %s to %s: %+v", test.os, at, pair[0], pair[1], v)
				}
			}
		}
		out := false
		for _, r := range prog.For(inv, 1).Rules {
			out = out || r.Action == proto.Deny && r.Direction == proto.Out
		}
		if out != test.denied {
			t.Errorf("%q: the source has the rule that denies: %v", test.os, out)
		}
	}
}
