// Command testrun runs `go test` and reports at the end what a person needs to know: what failed, with its output, and what
// was skipped, with the reason. With -strict, a skipped test is a failure. Several runs, each with its own arguments, run
// concurrently and are summed up together:
//
//	testrun [-strict] arguments of go test [-- arguments of go test]...
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout)) }

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64

	run int
}

// key identifies the package or test of an event in one of the runs.
func (e *event) key() string { return fmt.Sprintf("%d %s %s", e.run, e.Package, e.Test) }

type result struct {
	passed, failed, skipped int
	left                    []string
	output                  map[string][]string
}

// line is a line that one of the runs printed.
type line struct {
	run  int
	text []byte
}

func run(args []string, out io.Writer) int {
	strict := len(args) > 0 && args[0] == "-strict"
	if strict {
		args = args[1:]
	}
	start := time.Now()
	runs := split(args)
	lines := make(chan line)
	errs := make([]error, len(runs))
	var all sync.WaitGroup
	for i, one := range runs {
		all.Go(func() { errs[i] = goTest(i, one, lines) })
	}
	go func() {
		all.Wait()
		close(lines)
	}()
	r := result{output: map[string][]string{}}
	for l := range lines {
		r.read(l, out)
	}
	err := errors.Join(errs...)
	for _, l := range r.left {
		fmt.Fprintln(out, "left out:", l)
	}
	fmt.Fprintf(out, "%s\n%d passed, %d failed, %d skipped\n", time.Since(start).Round(time.Second), r.passed, r.failed, r.skipped)
	switch {
	case err != nil || r.failed > 0:
		if err != nil {
			fmt.Fprintln(out, "testrun:", err)
		}
		return 1
	case r.passed == 0:
		fmt.Fprintln(out, "testrun: no test ran")
		return 1
	case strict && r.skipped > 0:
		fmt.Fprintln(out, "testrun: something was left out, and here nothing may be")
		return 1
	}
	return 0
}

// split returns the arguments of each run.
func split(args []string) (runs [][]string) {
	for {
		i := slices.Index(args, "--")
		if i < 0 {
			return append(runs, args)
		}
		runs, args = append(runs, args[:i]), args[i+1:]
	}
}

// goTest sends what one run prints to lines. The run ends by its own timeout.
func goTest(i int, args []string, lines chan<- line) error {
	cmd := exec.CommandContext(context.Background(), "go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	sc := bufio.NewScanner(pipe)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		lines <- line{i, bytes.Clone(sc.Bytes())}
	}
	if err := sc.Err(); err != nil {
		_, _ = io.Copy(io.Discard, pipe) // otherwise it would not end
		return errors.Join(fmt.Errorf("read the output of go test: %w", err), cmd.Wait())
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go test: %w", err)
	}
	return nil
}

// read prints a line for each package as it ends and keeps the output of tests until it is known whether they failed.
func (r *result) read(l line, out io.Writer) {
	var e event
	if json.Unmarshal(l.text, &e) != nil {
		fmt.Fprintf(out, "%s\n", l.text)
		return
	}
	e.run = l.run
	r.take(e, out)
}

func (r *result) take(e event, out io.Writer) {
	key := e.key()
	switch e.Action {
	case "build-output":
		fmt.Fprint(out, e.Output)
	case "output":
		r.output[key] = append(r.output[key], e.Output)
	case "pass", "fail", "skip":
		lines := r.output[key]
		delete(r.output, key)
		if e.Test == "" {
			r.endPackage(e, lines, out)
			return
		}
		switch e.Action {
		case "pass":
			r.passed++
		case "fail":
			r.failed++
			fmt.Fprint(out, strings.Join(lines, ""))
		case "skip":
			r.skipped++
			r.left = append(r.left, e.Test+": "+reason(lines))
		}
	}
}

func (r *result) endPackage(e event, lines []string, out io.Writer) {
	name := strings.TrimPrefix(e.Package, "github.com/redoubt-mesh/redoubt/")
	switch e.Action {
	case "fail":
		// A package may fail without a failing test: it did not build, it panicked, or its TestMain failed.
		r.failed++
		fmt.Fprint(out, strings.Join(lines, ""))
		for key, rest := range r.output {
			if strings.HasPrefix(key, e.key()) {
				fmt.Fprint(out, strings.Join(rest, ""))
				delete(r.output, key)
			}
		}
		fmt.Fprintf(out, "FAIL  %-44s %7.2fs\n", name, e.Elapsed)
	case "pass":
		fmt.Fprintf(out, "ok    %-44s %7.2fs\n", name, e.Elapsed)
	case "skip":
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, "no test files") }) {
			r.skipped++
			r.left = append(r.left, name+": "+reason(lines))
		}
	}
}

// reason returns what the test printed before it was skipped.
func reason(lines []string) string {
	var said []string
	for _, l := range lines {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "=== ") && !strings.HasPrefix(l, "--- ") {
			said = append(said, l)
		}
	}
	return strings.Join(said, " ")
}
