package directory

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/proto"
)

func TestLabel(t *testing.T) {
	for in, want := range map[string]string{
		"web":                    "web",
		"Web-01.example.com":     "web-01",
		"Ann's MacBook Pro":      "ann-s-macbook-pro",
		"  spaced  ":             "spaced",
		"--x--y--":               "x-y",
		"xn--bcher-kva":          "xn-bcher-kva",
		"bücher":                 "b-cher",
		"":                       "node",
		"...":                    "node",
		"日本":                     "node",
		"42":                     "node-42",
		"10-0-0-1":               "node-10-0-0-1",
		"n000000000000g":         "node-n000000000000g",
		"under_score":            "under-score",
		strings.Repeat("a", 100): strings.Repeat("a", 63),
		strings.Repeat("a", 62) + "-" + strings.Repeat("b", 9): strings.Repeat("a", 62),
		strings.Repeat("7", 80):                                "node-" + strings.Repeat("7", 58),
	} {
		if got := label(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestEveryHostnameBecomesAName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.OneOf(rapid.String(), rapid.StringMatching(`[-0-9a-vA-Z.]{0,80}`)).Draw(t, "hostname")
		s := newState()
		for i := range rapid.IntRange(1, 12).Draw(t, "times") {
			n := s.name(in)
			if _, err := proto.ParseNodeID(n); !proto.ValidName(n) || err == nil || reservedLabels[n] || strings.Contains(n, "--") {
				t.Fatalf("%q became %q", in, n)
			}
			if _, taken := s.names.Get(n); taken {
				t.Fatalf("%q became %q twice", in, n)
			}
			put(&s.names, n, proto.NodeID(i+1))
		}
	})
}

func TestDuplicatesAreNumbered(t *testing.T) {
	r := newRig(t)
	var nodes []*Node
	for i, want := range []string{"web", "web-1", "web-2", "web-3", "web-4"} {
		n := r.node("web")
		if n.Name != want {
			t.Errorf("machine %d is called %s, want %s", i, n.Name, want)
		}
		nodes = append(nodes, n)
	}
	if err := r.DeleteNode(t.Context(), nodes[0].ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	if n := r.node("WEB.example.com"); n.Name != "web" {
		t.Errorf("a name that is free again was not given, but %s", n.Name)
	}
	for want, in := range map[string]string{"localhost-1": "localhost", "wpad-1": "WPAD", "coordinator-1": "coordinator"} {
		if n := r.node(in); n.Name != want {
			t.Errorf("%s is called %s, want %s", in, n.Name, want)
		}
	}
}

func TestNamingManyIsCheap(t *testing.T) {
	s := newState()
	for i := range 5000 {
		want := "host"
		if i > 0 {
			want = fmt.Sprint("host-", i)
		}
		n := s.name("host")
		if n != want {
			t.Fatalf("machine %d is called %s", i, n)
		}
		put(&s.names, n, proto.NodeID(i+1))
	}
}
