package explain

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/acl/inventory"
)

// TestExplain asks about destinations behind routers and about connections that are only monitored.
func TestExplain(t *testing.T) {
	const nodes = `{"users": [{"name": "ann"}, {"name": "bob"}], "nodes": [
  {"name": "a", "ipv4": "100.64.0.1", "ipv6": "fd7a:115c:a1e0::1", "user": "ann"},
  {"name": "b", "ipv4": "100.64.0.2", "ipv6": "fd7a:115c:a1e0::2", "user": "bob"},
  {"name": "r", "ipv4": "100.64.0.3", "ipv6": "fd7a:115c:a1e0::3", "tags": ["tag:r"],
   "advertised": ["10.1.0.0/16", "10.9.0.0/16"], "approved": ["10.1.0.0/16"]},
  {"name": "s", "ipv4": "100.64.0.4", "ipv6": "fd7a:115c:a1e0::4", "tags": ["tag:s"],
   "advertised": ["10.2.0.0/16"], "approved": ["10.2.0.0/16"]}]}`
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	inv, err := inventory.Parse([]byte(nodes), now)
	if err != nil {
		t.Fatal(err)
	}
	policy, found := acl.Check("policy", []byte(`{"tagOwners": {"tag:r": [], "tag:s": []}, "grants": [
  {"src": ["ann@"], "dst": ["10.0.0.0/8"], "ip": ["tcp:22"], "via": ["tag:r"]},
  {"src": ["10.1.0.0/16"], "dst": ["tag:s"], "ip": ["tcp:1"]}],
  "enforcement": [{"src": ["bob@"], "dst": ["tag:s"], "mode": "monitor", "until": "2026-04-01"}]}`), now)
	if policy == nil {
		t.Fatal(found)
	}
	for _, test := range []struct {
		from, to string
		port     uint16
		mode     compile.Mode
		rule     string // the one that allows; empty if none does
		want     string // part of the reason or of what the nearest rule misses
	}{
		{"a", "10.1.2.3", 22, compile.Enforce, "grants[0]", ""},
		{"a", "10.1.2.3", 23, compile.Enforce, "", "grants[0] port: tcp:23 is not in tcp:22"},
		{"a", "10.2.0.1", 22, compile.Enforce, "", "grants[0] via: only through routers with tag:r"},
		{"a", "10.9.0.1", 22, compile.Enforce, "", "no node has 10.9.0.1, and no approved route leads there; r offers one that is not approved"},
		{"10.1.2.3", "s", 1, compile.Enforce, "grants[1]", ""},
		{"10.2.0.1", "r", 1, compile.Enforce, "", "no rule is about either end"},
		{"b", "10.1.2.3", 22, compile.Enforce, "", "grants[0] source: b (bob) is not in ann@"},
		{"b", "tag:s", 80, compile.Monitor, "enforcement[0]", ""},
	} {
		book := Open(policy, inv)
		from, err := book.Find(test.from)
		if err != nil {
			t.Fatal(err)
		}
		to, err := book.Find(test.to)
		if err != nil {
			t.Fatal(err)
		}
		answers := book.Explain(from, to, 6, test.port)
		if len(answers) != 1 {
			t.Errorf("%s to %s: %+v", test.from, test.to, answers)
			continue
		}
		a, told := answers[0], []string{answers[0].Reason}
		for _, n := range a.Nearest {
			told = append(told, n.Rule.Path+" "+strings.Join(n.Missing, "; "))
		}
		if a.Verdict.Allowed != (test.rule != "") || origin(a.Verdict.Rule).Path != test.rule || a.Verdict.Mode != test.mode ||
			!slices.Contains(told, test.want) {
			t.Errorf("%s to %s:%d: %+v, told %q", test.from, test.to, test.port, a.Verdict, told)
		}
	}
}
