package acl

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// fill makes a text of about n bytes: a beginning, as many pieces as fit, and an end.
func fill(n int, begin string, piece func(int) string, end string) string {
	var b strings.Builder
	b.WriteString(begin)
	for i := 0; b.Len() < n-len(end)-200; i++ {
		b.WriteString(piece(i))
	}
	b.WriteString(end)
	return b.String()
}

func again(s string) func(int) string { return func(int) string { return s } }

func numbered(format string) func(int) string {
	return func(i int) string {
		args := make([]any, strings.Count(format, "%"))
		for n := range args {
			args[n] = i
		}
		return fmt.Sprintf(format, args...)
	}
}

func address(i int) string { return fmt.Sprintf(`"10.%d.%d.1",`, i>>8&255, i&255) }

// hostileFiles are large and made to take long. want is why they are refused, empty if they are not; size is the size of those
// that are bounded only by the limit on the file.
func hostileFiles(size int) map[string]struct{ src, want string } {
	const half = MaxSize / 2
	set := fill(50_000, `{"ipsets": {"ipset:a": [`, address, `]`)
	type file = struct{ src, want string }
	return map[string]file{
		"hosts": {fill(size, `{"hosts": {`, numbered(`"host-%d":"10.0.0.1",`), `}}`), ""},
		"hosts that are not there": {
			fill(half, `{"hosts": {`, numbered(`"host-%d": "10.0.0.1",`), `},`) +
				fill(half, `"acls": [{"action": "accept", "dst": ["*:*"], "src": [`, numbered(`"hosd-%d",`), `]}]}`),
			`host "hosd-0" is not defined in hosts; did you mean "host-0"?`,
		},
		"groups":     {fill(size, `{"groups": {`, numbered(`"group:g%d": ["a%d@x.org", "b%d@x.org", "c@x.org"],`), `}}`), ""},
		"unknown":    {fill(half, `{`, numbered(`"k%d": 1,`), `}`), `unknown key "k0"`},
		"tags":       {fill(size, `{"tagOwners": {`, func(i int) string { return fmt.Sprintf(`"tag:t%d":["tag:t%d"],`, i, i+1) }, `"tag:x": []}}`), `is not defined in tagOwners`},
		"sets":       {set + fill(MaxSize-len(set), `,`, numbered(`"ipset:b%d": ["ipset:a", "remove ipset:a"],`), `}}`), "expand to too many ranges"},
		"set":        {fill(half, `{"ipsets": {"ipset:a": [`, func(i int) string { return address(i) + `"remove fd00::",` }, `]}}`), "expand to too many ranges"},
		"rules":      {set + `},` + fill(MaxSize-len(set), `"grants": [`, again(`{"src": ["*"], "dst": ["ipset:a"], "ip": ["*"]},`), `]}`), "too large to send to a node"},
		"sources":    {set + `},` + fill(half, `"grants": [{"dst": ["*"], "ip": ["*"], "src": [`, again(`"ipset:a",`), `]}]}`), "addresses, and a rule has at most"},
		"internets":  {fill(MaxSize, `{"grants": [`, again(`{"src": ["*"], "ip": ["*"], "dst": ["autogroup:internet"]},`), `]}`), "too large to send to a node"},
		"denials":    {fill(MaxSize, `{"deny": [`, again(`{"src": ["*"], "dst": ["*"], "ip": ["*"]},`), `]}`), "too large to send to a node"},
		"denied":     {fill(half, `{"deny": [{"src": ["*"], "dst": ["*"], "ip": [`, again(`"*",        `), `]}]}`), ""},
		"capability": {fill(MaxSize, `{"grants": [`, again(`{"src": ["*"], "dst": ["*"], "app": {"x.org/c": [{"x": {"x": {"x": [1]}}}]}},`), `]}`), "more than 10000 rules"},
		"postures":   {fill(size, `{"postures": {`, numbered(`"posture:p%d": ["node:os == 'x'"],`), `}}`), ""},
		"ssh":        {fill(MaxSize, `{"ssh": [`, again(`{"action": "accept", "src": ["ann@x.org"], "dst": ["autogroup:self"], "users": ["root"]},`), `]}`), "more than 1000 rules"},
	}
}

func TestHostileFiles(t *testing.T) {
	for name, f := range hostileFiles(MaxSize / 4) {
		t.Run(name, func(t *testing.T) {
			if len(f.src) > MaxSize {
				t.Fatalf("%d bytes", len(f.src))
			}
			p, diags := Check("test", []byte(f.src), fuzzTime)
			text := diags.Format("test")
			if (p != nil) != (f.want == "") || !strings.Contains(text, f.want) {
				t.Errorf("want %q in:\n%.500s", f.want, text)
			}
		})
	}
}

func BenchmarkHostileFiles(b *testing.B) {
	for name, f := range hostileFiles(MaxSize) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Check("test", []byte(f.src), fuzzTime)
			}
		})
	}
}

// TestBrokenFiles checks that a file that is not a policy at all gets one clear error.
func TestBrokenFiles(t *testing.T) {
	binary := make([]byte, 4096)
	for i := range binary {
		binary[i] = byte(i * i >> 3)
	}
	files := map[string][]byte{
		"nothing": nil, "space": []byte(" \n\t"), "comment": []byte("// nothing\n"), "binary": binary, "zeros": make([]byte, 1000),
		"100 MB": make([]byte, 100<<20), "a word": []byte("policy"), "a list": []byte("[]"), "null": []byte("null"),
		"deep": bytes.Repeat([]byte(`{"a":[`), 100_000), "UTF-16": []byte("\xff\xfe{\x00}\x00"), "two": []byte("{}{}"), "HTML": []byte("<!DOCTYPE html>"),
	}
	for name, src := range files {
		p, diags := Check("test", src, fuzzTime)
		if p != nil || len(diags) != 1 || diags[0].Severity != Error || len(diags[0].Message) > 300 {
			t.Errorf("%s: %v", name, diags)
		}
	}
	for i := range len(Starter) - 1 {
		if Starter[i] == '}' && len(bytes.TrimSpace(Starter[i+1:])) == 0 {
			break
		}
		if p, diags := Check("test", Starter[:i], fuzzTime); p != nil || len(diags) != 1 {
			t.Errorf("cut off after %d bytes: %v", i, diags)
		}
	}
}
