package fences

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSequential holds the packages that are tested without the race detector to having no use for it.
func TestSequential(t *testing.T) {
	list, err := os.ReadFile("../sequential")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(list)) {
		dir := strings.TrimSpace(line)
		if strings.HasPrefix(dir, "#") {
			continue
		}
		n++
		files, err := filepath.Glob(filepath.Join("../..", dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Errorf("%s: %d files, %v", dir, len(files), err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, what := range concurrent(t, file, src) {
				t.Errorf("%s: %s; take %s out of scripts/sequential", file, what, dir)
			}
		}
	}
	if n == 0 {
		t.Error("scripts/sequential names no package")
	}
	const guilty = `package p
import "sync/atomic"
var n atomic.Int64
func f(c chan int) { go func() { n.Add(1) }() }`
	if found := concurrent(t, "p.go", []byte(guilty)); !slices.Equal(found, []string{"imports sync/atomic", "has a channel", "starts a goroutine"}) {
		t.Errorf("of a package that does all three it is found that it %q", found)
	}
}

// concurrent lists what a file has to do with other goroutines.
func concurrent(t *testing.T, name string, src []byte) (found []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range f.Imports {
		if path := strings.Trim(i.Path.Value, `"`); path == "sync" || path == "sync/atomic" {
			found = append(found, "imports "+path)
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n.(type) {
		case *ast.GoStmt:
			found = append(found, "starts a goroutine")
		case *ast.ChanType:
			found = append(found, "has a channel")
		}
		return true
	})
	return found
}
