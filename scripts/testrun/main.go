// Command testrun runs `go test` with the arguments it is given and says at the end what a person needs to know: what
// failed, with its output, and what was left out, with the reason. With -strict anything left out is a failure.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout)) }

// event is a line of `go test -json`, see `go doc test2json`.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

type result struct {
	passed, failed, skipped int
	left                    []string
	output                  map[string][]string
}

func run(args []string, out io.Writer) int {
	strict := len(args) > 0 && args[0] == "-strict"
	if strict {
		args = args[1:]
	}
	start := time.Now()
	// go test ends by its own time-out.
	cmd := exec.CommandContext(context.Background(), "go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(out, "testrun: start go test:", err)
		return 1
	}
	r := read(pipe, out)
	err = cmd.Wait()
	for _, l := range r.left {
		fmt.Fprintln(out, "left out:", l)
	}
	fmt.Fprintf(out, "%s\n%d passed, %d failed, %d skipped\n", time.Since(start).Round(time.Second), r.passed, r.failed, r.skipped)
	switch {
	case err != nil || r.failed > 0:
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

// read prints a line for each package as it ends and keeps the output of tests until it is known whether they failed.
func read(in io.Reader, out io.Writer) result {
	r := result{output: map[string][]string{}}
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			fmt.Fprintln(out, sc.Text())
			continue
		}
		r.take(e, out)
	}
	if err := sc.Err(); err != nil {
		fmt.Fprintln(out, "testrun: read the output of go test:", err)
		r.failed++
	}
	return r
}

func (r *result) take(e event, out io.Writer) {
	key := e.Package + " " + e.Test
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
		// A package may fail without a failing test: it did not build, it panicked, or its TestMain said so.
		r.failed++
		fmt.Fprint(out, strings.Join(lines, ""))
		for key, rest := range r.output {
			if strings.HasPrefix(key, e.Package+" ") {
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

// reason is what the test said before it skipped.
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
