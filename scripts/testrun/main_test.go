package main

import (
	"slices"
	"strings"
	"testing"
)

func read(text string, out *strings.Builder) result {
	r := result{output: map[string][]string{}}
	for l := range strings.Lines(text) {
		r.read(line{text: []byte(strings.TrimSuffix(l, "\n"))}, out)
	}
	return r
}

func TestWhatIsSaid(t *testing.T) {
	in := `{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:9: wrong answer\n"}
{"Action":"fail","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestC","Output":"=== RUN   TestC\n"}
{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:5: needs root: run it with sudo make test\n"}
{"Action":"skip","Package":"p","Test":"TestC"}
{"Action":"fail","Package":"p"}
{"Action":"output","Package":"q","Output":"?   \tq\t[no test files]\n"}
{"Action":"skip","Package":"q"}
`
	var out strings.Builder
	r := read(in, &out)
	if r.passed != 1 || r.failed != 2 || r.skipped != 1 {
		t.Errorf("passed %d, failed %d, skipped %d", r.passed, r.failed, r.skipped)
	}
	if !strings.Contains(out.String(), "wrong answer") || !strings.Contains(out.String(), "FAIL  p") {
		t.Errorf("the failure is not shown:\n%s", out.String())
	}
	if len(r.left) != 1 || r.left[0] != "TestC: c_test.go:5: needs root: run it with sudo make test" {
		t.Errorf("left out: %q", r.left)
	}
}

func TestAPanicIsShown(t *testing.T) {
	in := `{"Action":"output","Package":"p","Test":"TestA","Output":"panic: boom\n"}
{"Action":"fail","Package":"p","Elapsed":0.1}
`
	var out strings.Builder
	if r := read(in, &out); r.failed != 1 || !strings.Contains(out.String(), "panic: boom") {
		t.Errorf("failed %d:\n%s", r.failed, out.String())
	}
}

func TestExitCodes(t *testing.T) {
	if testing.Short() {
		t.Skip("runs go test")
	}
	var out strings.Builder
	if code := run([]string{"-strict", "-short", "-run", "TestExitCodes", "."}, &out); code != 1 {
		t.Errorf("a test was left out and -strict says %d:\n%s", code, out.String())
	}
	if code := run([]string{"-short", "-run", "TestExitCodes", "."}, &out); code != 1 {
		t.Errorf("no test ran and the exit code is %d:\n%s", code, out.String())
	}
	if code := run([]string{"-short", "-run", "TestWhatIsSaid", "."}, &out); code != 0 {
		t.Errorf("a test passed and the exit code is %d:\n%s", code, out.String())
	}
	out.Reset()
	one := []string{"-short", "-run", "TestWhatIsSaid", "."}
	if code := run(slices.Concat(one, []string{"--"}, one), &out); code != 0 || !strings.Contains(out.String(), "2 passed, 0 failed") {
		t.Errorf("of two runs with one test each the exit code is %d:\n%s", code, out.String())
	}
	if code := run(slices.Concat(one, []string{"--", "-strict-what", "."}), &out); code != 1 {
		t.Errorf("one of two runs fails and the exit code is %d:\n%s", code, out.String())
	}
}

// TestRunsAtOnce checks that interleaved output of two runs is kept apart.
func TestRunsAtOnce(t *testing.T) {
	var out strings.Builder
	r := result{output: map[string][]string{}}
	for _, l := range []line{
		{0, []byte(`{"Action":"output","Package":"p","Test":"TestA","Output":"of the first\n"}`)},
		{1, []byte(`{"Action":"output","Package":"p","Test":"TestA","Output":"of the second\n"}`)},
		{0, []byte(`{"Action":"pass","Package":"p","Test":"TestA"}`)},
		{1, []byte(`{"Action":"fail","Package":"p","Test":"TestA"}`)},
	} {
		r.read(l, &out)
	}
	if r.passed != 1 || r.failed != 1 || out.String() != "of the second\n" {
		t.Errorf("%d passed, %d failed:\n%s", r.passed, r.failed, out.String())
	}
}
