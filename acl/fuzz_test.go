package acl

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/proto"
)

// fuzzTime is when the fuzzer's policies take effect.
var fuzzTime = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)

// FuzzParse starts from files with one mistake each in testdata, from policies of a production system, and from those of the
// other tests.
func FuzzParse(f *testing.F) {
	for _, src := range realPolicies(f) {
		f.Add([]byte(src))
	}
	f.Add([]byte(everything))
	f.Add([]byte(sshPolicy))
	f.Add([]byte(`{` + postures + `, "defaultSrcPosture": ["posture:known"]}`))
	f.Fuzz(func(t *testing.T, src []byte) {
		policy, diags := Check("fuzz", src, fuzzTime)
		if (policy == nil) != diags.HasErrors() {
			t.Fatalf("policy %v with diagnostics:\n%s", policy, diags.Format("fuzz"))
		}
		_, again := Check("fuzz", src, fuzzTime)
		if diff := cmp.Diff(diags, again); diff != "" {
			t.Fatalf("another time other diagnostics:\n%s", diff)
		}
		lines := bytes.Split(bytes.TrimPrefix(src, []byte("\xef\xbb\xbf")), []byte("\n"))
		for _, d := range diags {
			if d.Line < 1 || d.Line > len(lines) || d.Column < 1 || d.Column > len(lines[d.Line-1])+1 {
				t.Errorf("outside of the file: %s", d)
			}
			if d.Message == "" || len(d.Message) > 2000 || len(d.Path) > 1000 {
				t.Errorf("no message for people: %s", d)
			}
		}
		sorted := slices.Clone(diags)
		sorted.Sort()
		if diff := cmp.Diff(sorted, diags); diff != "" {
			t.Errorf("not in the order of the file:\n%s", diff)
		}
		if policy != nil {
			checkPolicy(t, policy)
		}
	})
}

// realPolicies returns the policies of the compiler's test data.
func realPolicies(t testing.TB) []string {
	t.Helper()
	file, err := os.Open("compile/testdata/headscale/cases.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	z, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for d := json.NewDecoder(z); ; {
		var c struct{ Policy string }
		if err := d.Decode(&c); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, c.Policy)
	}
}

// checkPolicy checks invariants that hold for every accepted file.
func checkPolicy(t *testing.T, p *Policy) {
	selector := func(s Selector) {
		ok := s.Line > 0 && s.Column > 0 && s.Path != ""
		switch s.Kind {
		case Literal:
			ok = ok && s.Prefix.IsValid() && s.Prefix == s.Prefix.Masked()
		case GroupOf:
			_, defined := p.Groups[s.Name]
			ok = ok && defined
		case Tag:
			_, defined := p.TagOwners[s.Name]
			ok = ok && defined && proto.ValidTag(s.Name)
		case User:
			ok = ok && CheckUser(s.Text) == nil
		case AddressSet:
			_, defined := p.IPSets[s.Name]
			ok = ok && defined && sortedApart(s.Prefixes)
		case Internet:
			ok = ok && len(s.Prefixes) > 0
		case Any, Domain, Member, Tagged, Self, DangerAll, Role:
		default:
			ok = false
		}
		if set := s.Set(); set != "" && !proto.ValidText(set, proto.MaxName) {
			ok = false
		}
		if !ok {
			t.Errorf("selector %+v", s)
		}
	}
	for _, a := range p.Admission {
		if a.Line < 1 || a.Attestation != "" && !slices.Contains(Attestations[1:], a.Attestation) {
			t.Errorf("admission %+v", a)
		}
		for _, s := range a.Whom {
			selector(s)
		}
	}
	for _, r := range p.Rules {
		if (r.Action == Monitor) == r.Until.IsZero() || r.Action != Allow && (r.App != nil || r.Auth != nil || r.Via != nil) {
			t.Errorf("%s: %+v", r.Path, r)
		}
		for _, s := range r.Src {
			selector(s)
		}
		for _, name := range r.Postures {
			if _, defined := p.Postures[name]; !defined {
				t.Errorf("%s: posture %q", r.Path, name)
			}
		}
		for _, d := range r.Dst {
			selector(d.Selector)
			if len(d.Services) == 0 && len(r.App) == 0 || len(d.Services) > proto.MaxServices {
				t.Errorf("%s: %d services", d.Path, len(d.Services))
			}
			for i, s := range d.Services {
				if s.First > s.Last || i > 0 && (s.Proto < d.Services[i-1].Proto || s.Proto == d.Services[i-1].Proto && s.First <= d.Services[i-1].Last) {
					t.Errorf("%s: services %v", d.Path, d.Services)
				}
			}
		}
	}
	for _, r := range p.Approvers.Routes {
		if !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() {
			t.Errorf("%s: %s", r.Path, r.Prefix)
		}
		for _, s := range r.By {
			selector(s)
		}
	}
	for _, set := range p.IPSets {
		if !sortedApart(set.Prefixes) {
			t.Errorf("%s: %v", set.Path, set.Prefixes)
		}
	}
	for _, posture := range p.Postures {
		for _, c := range posture.Conditions {
			want := 1
			switch c.Op {
			case IsSet, NotSet:
				want = 0
			case In, NotIn:
				want = max(1, len(c.Values))
			}
			if c.Op == 0 || CheckFact(c.Fact) != nil || len(c.Values) != want {
				t.Errorf("%s: %+v", c.Path, c)
			}
		}
	}
	for _, r := range p.SSH {
		if len(r.Users) == 0 || !r.Check && (r.CheckPeriod != 0 || r.Always) {
			t.Errorf("%s: %+v", r.Path, r)
		}
		for _, s := range append(slices.Clone(r.Src), r.Dst...) {
			selector(s)
		}
	}
	for _, x := range p.Tests {
		selector(x.Src)
		for _, d := range append(slices.Clone(x.Accept), x.Deny...) {
			selector(d.Selector)
			if d.Port == 0 {
				t.Errorf("%s: port 0", d.Path)
			}
		}
	}
}

// sortedApart reports whether prefixes are sorted and disjoint.
func sortedApart(ps []netip.Prefix) bool {
	for i, p := range ps {
		if !p.IsValid() || p != p.Masked() || i > 0 && (p.Overlaps(ps[i-1]) || p.Addr().Less(ps[i-1].Addr())) {
			return false
		}
	}
	return true
}
