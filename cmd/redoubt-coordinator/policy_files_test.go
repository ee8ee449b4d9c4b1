package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/acl/inventory"
)

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			return errors.Join(os.WriteFile(filepath.Join(e.WorkDir, "starter.hujson"), acl.Starter, 0o600),
				os.WriteFile(filepath.Join(e.WorkDir, "crowd.json"), crowd(3200), 0o600))
		},
	})
}

// crowd returns an inventory of n users with one node each.
func crowd(n int) []byte {
	var users, nodes []string
	for i := range n {
		users = append(users, fmt.Sprintf(`{"name": "u%d"}`, i))
		nodes = append(nodes, fmt.Sprintf(`{"name": "n%d", "ipv4": "100.64.%d.%d", "ipv6": "fd7a:115c:a1e0::%x", "user": "u%d"}`, i, i>>8, i&255, i+1, i))
	}
	return []byte(`{"users": [` + strings.Join(users, ",\n") + `], "nodes": [` + strings.Join(nodes, ",\n") + `]}`)
}

// The policies and connections of acl/compile/testdata/headscale, run through the program and its file formats.
type capturedCase struct {
	ID, Policy   string
	Users, Nodes json.RawMessage
	Expect       struct{ Accept bool }
}

type capturedProbe struct {
	Case    string
	Allowed bool
	Strict  *bool `json:"allowed_strict"`
}

func capturedLines(t *testing.T, name string) [][]byte {
	t.Helper()
	f, err := os.Open("../../acl/compile/testdata/headscale/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Split(bytes.TrimSpace(b), []byte("\n"))
}

// TestCapturedPolicies tries each policy as captured, and again with users given by name instead of mail address, which must make
// no difference.
func TestCapturedPolicies(t *testing.T) {
	t.Run("by mail", func(t *testing.T) { tryCaptured(t, strings.NewReplacer()) })
	t.Run("by name", func(t *testing.T) {
		tryCaptured(t, strings.NewReplacer("odin@example.com", "odin@", "thor@example.org", "thor@", "freya@example.com", "freya@"))
	})
}

func tryCaptured(t *testing.T, spelling *strings.Replacer) {
	probes, wants := map[string][][]byte{}, map[string][]bool{}
	for _, line := range capturedLines(t, "probes.jsonl.gz") {
		p := decode[capturedProbe](t, string(line))
		want := p.Allowed
		if p.Strict != nil {
			want = *p.Strict
		}
		probes[p.Case], wants[p.Case] = append(probes[p.Case], line), append(wants[p.Case], want)
	}
	dir := t.TempDir()
	file, inv := filepath.Join(dir, "policy.hujson"), filepath.Join(dir, "inv.json")
	s := &shell{t: t, data: dir}
	for _, line := range capturedLines(t, "cases.jsonl.gz") {
		c := decode[capturedCase](t, string(line))
		c.Policy = spelling.Replace(c.Policy)
		if err := os.WriteFile(file, []byte(c.Policy), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(inv, fmt.Appendf(nil, `{"users":%s,"nodes":%s}`, c.Users, c.Nodes), 0o600); err != nil {
			t.Fatal(err)
		}
		code, out, errs := s.try("", "policy", "test", file, "--inventory", inv)
		if (code == 0) != c.Expect.Accept {
			t.Errorf("%s: policy test: exit %d, accept is %v\n%s%s", c.ID, code, c.Expect.Accept, out, errs)
		}
		if !strings.Contains(c.Policy, `"acls"`) && !strings.Contains(c.Policy, `"grants"`) {
			continue // a policy without rules allows everything there, but nothing here
		}
		if code, out, errs = s.try(string(bytes.Join(probes[c.ID], []byte("\n"))), "policy", "eval", file, "--inventory", inv, "--probes", "-"); code != 0 {
			if c.Expect.Accept || out != "" {
				t.Errorf("%s: policy eval: exit %d\n%s%s", c.ID, code, out, errs)
			}
			continue
		}
		if len(probes[c.ID]) == 0 {
			continue
		}
		answers := strings.Split(strings.TrimSpace(out), "\n")
		if len(answers) != len(probes[c.ID]) {
			t.Fatalf("%s: %d answers to %d probes", c.ID, len(answers), len(probes[c.ID]))
		}
		for i, a := range answers {
			if decode[struct{ Allowed bool }](t, a).Allowed != wants[c.ID][i] {
				t.Errorf("%s: %s: %s\n%s", c.ID, probes[c.ID][i], a, c.Policy)
			}
		}
	}
}

func TestLongProbe(t *testing.T) {
	inv, err := inventory.Parse([]byte(`{"nodes":[]}`), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	bad, err := evaluate(compile.New(nil, inv.Mesh).On(inv), inv, strings.NewReader(strings.Repeat("x", 200_000)+"\n{}"), &out)
	if lines := strings.Count(out.String(), "\n"); bad != 2 || err != nil || lines != 2 || !strings.Contains(out.String(), "longer than") {
		t.Errorf("%d bad, %v, %s", bad, err, out.String())
	}
}

func BenchmarkEval(b *testing.B) {
	var nodes, probes []string
	for i := range 1000 {
		nodes = append(nodes, fmt.Sprintf(`{"name":"n%d","ipv4":"100.64.%d.%d","ipv6":"fd7a:115c:a1e0::%x","tags":["tag:t%d"]}`, i, i/250, i%250+1, i+1, i%50))
		j := (i*7 + 1) % 1000
		probes = append(probes, fmt.Sprintf(`{"at":"n%d","src_ip":"100.64.%d.%d","dst_ip":"100.64.%d.%d","proto":"tcp","port":%d}`, j, i/250, i%250+1, j/250, j%250+1, i%500))
	}
	var owners, grants []string
	for i := range 50 {
		owners = append(owners, fmt.Sprintf(`"tag:t%d":[]`, i))
		grants = append(grants, fmt.Sprintf(`{"src":["tag:t%d"],"dst":["tag:t%d","tag:t%d"],"ip":["tcp:%d-%d"]}`, i, (i*7+1)%50, (i+1)%50, i+1, i+300))
	}
	policy, found := acl.Parse("policy", fmt.Appendf(nil, `{"tagOwners":{%s},"grants":[%s]}`, strings.Join(owners, ","), strings.Join(grants, ",")))
	if policy == nil {
		b.Fatal(found)
	}
	inv, err := inventory.Parse([]byte(`{"nodes":[`+strings.Join(nodes, ",")+`]}`), time.Time{})
	if err != nil {
		b.Fatal(err)
	}
	bound, in := compile.New(policy, inv.Mesh).On(inv), strings.Join(probes, "\n")+"\n"
	b.ReportAllocs()
	for b.Loop() {
		if bad, err := evaluate(bound, inv, bufio.NewReader(strings.NewReader(in)), io.Discard); bad > 0 || err != nil {
			b.Fatal(bad, err)
		}
	}
	b.ReportMetric(float64(b.N)*float64(len(probes))/b.Elapsed().Seconds(), "probes/s")
}
