// Command mutants checks whether tests would notice a wrong decision. For every condition of an if, of a case in a switch
// without a value, and each side of && and || in the given files, it makes the condition false and then true and runs the
// package's tests: a mutant that survives is a decision that no test checks.
//
//	go run ./scripts/mutants [-every N] [-only TEXT] FILE...
//
// A mutant that does not build, or that exceeds the time limit, counts as noticed.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// limit is how long the tests of a mutant may take: a mutant that loops is noticed.
const limit = 2 * time.Minute

// mutant is a file with one condition changed.
type mutant struct {
	file, at, was, is string
	text              []byte
}

func main() {
	every := flag.Int("every", 1, "take each `N`th mutant only")
	only := flag.String("only", "", "take mutants only whose condition contains `TEXT`")
	flag.Parse()
	var all []mutant
	for _, file := range flag.Args() {
		list, err := mutate(file)
		if err != nil {
			fmt.Fprintln(os.Stderr, "mutants:", err)
			os.Exit(2)
		}
		all = append(all, list...)
	}
	all = slices.DeleteFunc(all, func(m mutant) bool { return !strings.Contains(m.was, *only) })
	var chosen []mutant
	for i := 0; i < len(all); i += max(*every, 1) {
		chosen = append(chosen, all[i])
	}
	if len(chosen) == 0 {
		fmt.Fprintln(os.Stderr, "mutants: nothing to do: name files with conditions in them")
		os.Exit(2)
	}
	alive := try(chosen)
	fmt.Printf("%d mutants, %d noticed, %d alive\n", len(chosen), len(chosen)-alive, alive)
	if alive > 0 {
		os.Exit(1)
	}
}

// try runs the tests with each mutant, as many at once as there are processors, and prints and counts the survivors.
func try(list []mutant) (alive int) {
	work := make(chan mutant)
	var mu sync.Mutex
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for m := range work {
				noticed, err := m.noticed()
				mu.Lock()
				switch {
				case err != nil:
					fmt.Printf("%s: %v\n", m.at, err)
					alive++
				case !noticed:
					fmt.Printf("%s: %s may be %s: no test notices\n", m.at, m.was, m.is)
					alive++
				}
				mu.Unlock()
			}
		})
	}
	for _, m := range list {
		work <- m
	}
	close(work)
	all.Wait()
	return alive
}

// noticed runs the tests of the mutant's package and reports whether they fail.
func (m mutant) noticed() (bool, error) {
	dir, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path, err := filepath.Abs(m.file)
	if err != nil {
		return false, err
	}
	changed, overlay := filepath.Join(dir, "mutant.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
	if err != nil {
		return false, err
	}
	if err := os.WriteFile(changed, m.text, 0o600); err != nil {
		return false, err
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	// Otherwise rapid would write its failure files into the tree.
	cmd := exec.CommandContext(ctx, "go", "test", "-overlay", overlay, "-failfast", "-vet=off", "-timeout", limit.String(), ".", "-args", "-rapid.nofailfile")
	cmd.Dir = filepath.Dir(path)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if bytes.Contains(out.Bytes(), []byte("no test files")) {
		return false, fmt.Errorf("%s has no tests", filepath.Dir(m.file))
	}
	return err != nil, nil
}

// mutate returns all mutants of a file.
func mutate(file string) ([]mutant, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, file, text, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var out []mutant
	for _, c := range conditions(tree) {
		from, to := set.Position(c.Pos()).Offset, set.Position(c.End()).Offset
		was := string(text[from:to])
		at := set.Position(c.Pos())
		for _, is := range []string{"false", "true"} {
			// Keep the names in the condition in use, so that it still builds.
			other := fmt.Sprintf("((%s) && false)", was)
			if is == "true" {
				other = fmt.Sprintf("((%s) || true)", was)
			}
			out = append(out, mutant{
				file: file, at: fmt.Sprintf("%s:%d:%d", file, at.Line, at.Column), was: was, is: is,
				text: slices.Concat(text[:from], []byte(other), text[to:]),
			})
		}
	}
	return out, nil
}

// conditions returns the expressions that decide something.
func conditions(tree *ast.File) (out []ast.Expr) {
	ast.Inspect(tree, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.IfStmt:
			out = append(out, n.Cond)
		case *ast.BinaryExpr:
			if n.Op == token.LAND || n.Op == token.LOR {
				out = append(out, n.X, n.Y)
			}
		case *ast.SwitchStmt:
			if n.Tag != nil {
				return true
			}
			for _, s := range n.Body.List {
				if clause, ok := s.(*ast.CaseClause); ok {
					out = append(out, clause.List...)
				}
			}
		}
		return true
	})
	slices.SortFunc(out, func(a, b ast.Expr) int { return cmp.Or(cmp.Compare(a.Pos(), b.Pos()), cmp.Compare(a.End(), b.End())) })
	return slices.CompactFunc(out, func(a, b ast.Expr) bool { return a.Pos() == b.Pos() && a.End() == b.End() })
}
