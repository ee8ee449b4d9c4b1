package readme

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const fence = "```"

func TestParse(t *testing.T) {
	text := strings.ReplaceAll(`# Title
'''sh
# a comment
make build      # another
'''
'''jsonc policy.hujson
{}
'''
'''text
not for anybody
'''
'''console
laptop$ redoubt status
state  running

vm$ umask 077
'''
`, "'''", fence)
	got, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	want := []step{
		{line: 4, hosts: everywhere, clone: true, command: "make build"},
		{line: 7, hosts: []string{"laptop"}, file: "policy.hujson", content: "{}\n"},
		{line: 13, hosts: []string{"laptop"}, command: "redoubt status", want: "state  running\n\n"},
		{line: 16, hosts: []string{"vm"}, command: "umask 077"},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(step{})); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"'''\nls\n'''":                         `line 2: a block of ""`,
		"'''bash\nls\n'''":                     `line 2: a block of "bash"`,
		"'''jsonc\n{}\n'''":                    `line 2: a block of "jsonc"`,
		"'''sh\nls\n":                          "line 1: a block without an end",
		"'''console\nmars$ ls\n'''":            `line 2: there is no host "mars"`,
		"'''console\nsome output\n'''":         `line 2: "some output": want HOST$ COMMAND first`,
		"'''jsonc file\n{}\n'''\n'''text\n'''": "line 2: no command follows that could need file",
	} {
		_, err := parse(strings.ReplaceAll(text, "'''", fence))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestCompare(t *testing.T) {
	w := world{}
	if err := w.compare("laptop  100.64.0.1  valid for 59m, 1.2 KiB\n", "other line\nlaptop 100.80.3.4    valid for 1h02m, 0 B\n"); err != nil {
		t.Fatal(err)
	}
	if got := w.real("ping 100.64.0.1"); got != "ping 100.80.3.4" {
		t.Errorf("%q", got)
	}
	for _, c := range []struct {
		want, got string
		ok        bool
	}{
		{"at 100.64.0.1", "at 100.80.3.4", true},
		{"at 100.64.0.1", "at 100.80.3.5", false},
		{"at 100.64.0.2 and 100.64.0.2", "at 100.80.3.5 and 100.80.3.6", false},
		{"a\nb", "a\nx\nb", true},
		{"a\nb", "b\na", false},
		{"a\n…\nc", "a\nb\nc", true},
		{"begin … end", "begin with much between the end", true},
		{"begin … end", "begin", false},
		{"state running", "state expired", false},
		{"until 2026-11-22 10:15", "until 2027-01-01 00:00", true},
		{"node n6apai56k77e86", "node nnopfhvpj7v1dk", true},
		{"3 sent, 3 answered", "12 sent, 0 answered", true},
		{"a", "ab", false},
	} {
		if err := w.compare(c.want, c.got); (err == nil) != c.ok {
			t.Errorf("%q shown, %q printed: %v", c.want, c.got, err)
		}
	}
}
