package compile_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// FuzzCompile compiles whatever policy parses, and checks that agents accept the netmaps. Its corpus is the parser's.
func FuzzCompile(f *testing.F) {
	files, err := filepath.Glob("../testdata/fuzz/FuzzParse/*")
	if err != nil || len(files) == 0 {
		f.Fatalf("no corpus: %v", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		_, literal, _ := strings.Cut(string(text), "[]byte(")
		src, err := strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(literal), ")"))
		if err != nil {
			f.Fatalf("%s: %v", name, err)
		}
		f.Add([]byte(src))
	}
	inv := inventory("ann@example.com", "bob", "tag:db", "tag:a tag:web", "", "ann@example.com", "x@y")
	f.Fuzz(func(t *testing.T, src []byte) {
		policy, _ := acl.Parse("fuzz", src)
		if policy == nil {
			return
		}
		prog := compile.New(policy, testMesh)
		bound := prog.On(inv)
		for id := range inv.All() {
			v := bound.For(id)
			nm := proto.Netmap{Version: proto.Version{Epoch: 1, N: 1}, Mesh: testMesh, Self: id, Sets: v.Sets, Rules: v.Rules}
			for _, p := range v.Peers {
				nm.Peers = append(nm.Peers, &proto.Peer{ID: p, Certificate: []byte("certificate")})
			}
			if err := nm.Validate(); err != nil {
				t.Fatalf("the view of %s makes no netmap: %v", id, err)
			}
		}
		compile.RunTests(prog, inv)
		compile.Unresolved(prog, inv)
	})
}
