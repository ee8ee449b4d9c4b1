package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHostilePolicies checks and applies files that are not policies, or far too large: both commands refuse each of them with
// one clear error, and the policy in force stays.
func TestHostilePolicies(t *testing.T) {
	s, stop := populated(t)
	defer stop()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := "{\"grants\": [{\"src\": [\"*\"], \"dst\": [\"*\"], \"ip\": [\"tcp:22\", \"icmp:*\"]}]} // the one in force\n"
	s.ok("policy", "apply", file("good", good))
	huge := file("huge", "")
	if err := os.Truncate(huge, 100<<20); err != nil {
		t.Fatal(err)
	}
	var binary strings.Builder
	for i := range 4096 {
		binary.WriteByte(byte(i * i >> 3))
	}
	for name, want := range map[string]string{
		file("nothing", ""):             ":1:1: error: ",
		file("cut off", good[:40]):      ":1:41: error: ",
		file("binary", binary.String()): "not UTF-8 here; save it as UTF-8",
		huge:                            "more than 2097152 bytes: not a policy",
		file("deep", strings.Repeat(`{"a":[`, 100_000)):                                                          "more than 32 objects and lists in one another",
		file("deep below a key", `{"acls": `+strings.Repeat("[", 500_000)):                                       "more than 32 objects and lists in one another",
		file("twice", `{"grants": [], "grants": []}`):                                                            `:1:16: error: grants: `,
		file("circle", `{"tagOwners": {"tag:a": ["tag:b"], "tag:b": ["tag:a"]}}`):                                "in a circle: tag:a <- tag:b <- tag:a",
		file("near key", `{"grant": []}`):                                                                        `unknown key "grant"; did you mean "grants"?`,
		file("near key within", `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], "prot": "tcp"}]}`): `did you mean "proto"?`,
		file("a thousand groups of a thousand", groups(1000, 1000)):                                              "more than 2097152 bytes: not a policy",
		file("all addresses", `{"grants": [{"src": ["*"], "dst": ["::/0"], "ip": ["*"]}]}`):                      "to allow all addresses of the mesh write *",
		dir:                           "is a directory",
		filepath.Join(dir, "nowhere"): "no such file",
	} {
		for _, command := range []string{"check", "apply"} {
			code, out, errs := s.try("", "policy", command, name)
			if code != 1 || out != "" || !strings.Contains(errs, want) {
				t.Errorf("policy %s: exit %d, want %q in\n%s%.500s", command, code, want, out, errs)
			}
			if n := strings.Count(errs, "error: "); n > 1 || len(errs) > 600 {
				t.Errorf("policy %s: %d errors: %.900s", command, n, errs)
			}
		}
		if _, out, _ := s.try("", "policy", "show"); out != good {
			t.Fatalf("after %s the policy in force is %.200s", name, out)
		}
	}
	if out := s.ok("policy", "history"); strings.Count(out, "\n") != 2 {
		t.Errorf("more was in force than one policy:\n%s", out)
	}
}

// groups returns a policy with n groups of the given number of users.
func groups(n, users int) string {
	var b strings.Builder
	b.WriteString(`{"groups": {`)
	for g := range n {
		fmt.Fprintf(&b, `"group:g%d": [`, g)
		for u := range users {
			fmt.Fprintf(&b, `"u%d@e.org",`, u)
		}
		b.WriteString("],\n")
	}
	b.WriteString("}, \"grants\": []}")
	return b.String()
}

// TestWidePolicies checks and applies policies at the limits of what is allowed.
func TestWidePolicies(t *testing.T) {
	s, stop := populated(t)
	defer stop()
	var hosts, all, some strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&hosts, "\"h%d\": \"10.%d.%d.%d\",\n", i, i>>12, i>>4&255, i&15*2)
		if i < 4000 {
			fmt.Fprintf(&some, "\"h%d\",", i)
		}
		fmt.Fprintf(&all, "\"h%d\",", i)
	}
	everywhere := `"grants": [{"src": ["*"], "dst": ["10.0.0.0/8", "2000::/3"], "ip": ["tcp:443", "icmp:*"]}]`
	full := `{` + everywhere + `} /*` + strings.Repeat("x", 1<<20-len(everywhere)-8) + "*/"
	file := filepath.Join(t.TempDir(), "policy.hujson")
	version := 0
	for name, src := range map[string]string{
		"everywhere":         `{` + everywhere + `}`,
		"5,000 hosts":        `{"hosts": {` + hosts.String() + `}, "grants": [{"src": ["*"], "dst": [` + some.String() + `], "ip": ["tcp:443", "icmp:*"]}]}`,
		"hundreds of groups": groups(800, 100),
		"1 MB":               full,
	} {
		if err := os.WriteFile(file, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, errs := s.try("", "policy", "check", file); code != 0 {
			t.Errorf("%s: policy check: exit %d\n%.500s", name, code, errs)
		}
		version++
		if code, out, errs := s.try("", "policy", "apply", file); code != 0 || !strings.Contains(out, fmt.Sprintf("policy %d is in force", version)) {
			t.Errorf("%s: policy apply: exit %d\n%.500s\n%.500s", name, code, out, errs)
		}
	}
	tooMany := `{"hosts": {` + hosts.String() + `}, "grants": [{"src": ["*"], "dst": [` + all.String() + strings.Repeat(`"10.0.0.1",`, 4000) + `], "ip": ["*"]}]}`
	if err := os.WriteFile(file, []byte(tooMany), 0o600); err != nil {
		t.Fatal(err)
	}
	s.no("addresses, and a rule has at most", "policy", "check", file)
	s.no("addresses, and a rule has at most", "policy", "apply", file)
}
