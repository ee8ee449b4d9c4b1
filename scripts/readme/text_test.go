package readme

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

var (
	testName = regexp.MustCompile("`((?:Test|Fuzz|Benchmark)\\w+)`")
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	folder   = regexp.MustCompile("`((?:acl|agent|cmd|coordinator|netstack|proto|scripts)(?:/[\\w/]+)?)`")
	link     = regexp.MustCompile(`\]\(([^)#]*)(?:#([^)]*))?\)`)
	heading  = regexp.MustCompile(`(?m)^#+ (.*)$`)
	other    = regexp.MustCompile(`[^\w -]`)
)

// TestNamesInTheTextExist checks that the tests, directories and links that the texts at the root mention exist.
func TestNamesInTheTextExist(t *testing.T) {
	tests := testsOf(t)
	for _, name := range []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"} {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		for _, m := range testName.FindAllStringSubmatch(text, -1) {
			if !tests[m[1]] {
				t.Errorf("%s names the test %s, which does not exist", name, m[1])
			}
		}
		for _, m := range folder.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s names the folder %s: %v", name, m[1], err)
			}
		}
		anchors := map[string]bool{}
		for _, m := range heading.FindAllStringSubmatch(text, -1) {
			anchors[strings.ReplaceAll(other.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			switch {
			case strings.Contains(m[1], "://"):
			case m[1] != "":
				if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
					t.Errorf("%s links to %s: %v", name, m[1], err)
				}
			case !anchors[m[2]]:
				t.Errorf("%s links to #%s, which is no heading of it", name, m[2])
			}
		}
	}
}

// testsOf returns the names of all tests of the repository.
func testsOf(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllSubmatch(b, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
