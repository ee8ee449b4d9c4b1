package compile_test

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl"
)

// realCase is a policy of a production system, and what became of it there.
type realCase struct {
	ID     string `json:"id"`
	Policy string `json:"policy"`
	Expect struct {
		Accept bool   `json:"accept"`
		Error  string `json:"error"`
	} `json:"expect"`
}

// readLines decodes a compressed file of one line of JSON each.
func readLines[T any](t testing.TB, name string) []T {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var out []T
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var x T
		if err := json.Unmarshal(lines.Bytes(), &x); err != nil {
			t.Fatalf("%s: line %d: %v", name, len(out)+1, err)
		}
		out = append(out, x)
	}
	if err := lines.Err(); err != nil || len(out) == 0 {
		t.Fatalf("%s: %d lines: %v", name, len(out), err)
	}
	return out
}

// TestRealPoliciesAreRead wants every policy that a production system took to be taken, and those that it refused for what
// they say to be refused. Whether their own tests hold is another question.
func TestRealPoliciesAreRead(t *testing.T) {
	for _, c := range readLines[realCase](t, "testdata/headscale/cases.jsonl.gz") {
		policy, diags := acl.Parse(c.ID, []byte(c.Policy))
		switch {
		case c.Expect.Accept && policy == nil:
			t.Errorf("%s is refused:\n%s", c.ID, diags.Format(c.ID))
		case !c.Expect.Accept && policy != nil && !strings.HasPrefix(c.Expect.Error, "test(s) failed"):
			t.Errorf("%s is taken, but %s", c.ID, c.Expect.Error)
		}
	}
}
