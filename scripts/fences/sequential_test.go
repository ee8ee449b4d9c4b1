package fences

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSequential checks that the packages tested without the race detector do not need it.
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

// TestLong checks that the list of tests that run without the race detector names existing tests: a name skips all tests that
// have it.
func TestLong(t *testing.T) {
	list, err := os.ReadFile("../long")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	for line := range strings.Lines(string(list)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		dir, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		names[name] = dir
	}
	found := map[string][]string{}
	err = filepath.WalkDir("../..", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for name := range names {
			if bytes.Contains(src, []byte("\nfunc "+name+"(")) {
				found[name] = append(found[name], filepath.ToSlash(filepath.Dir(path)))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, dir := range names {
		if want := []string{"../../" + dir}; !slices.Equal(found[name], want) {
			t.Errorf("scripts/long names %s of %s; tests of that name are in %v", name, dir, found[name])
		}
	}
	if len(names) == 0 {
		t.Error("scripts/long names no test")
	}
}

// concurrent lists what a file does that involves other goroutines.
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
