package acl

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/tailscale/hujson"
)

// whole is a policy with every key of the language.
const whole = `{
	"groups": {"group:g": ["ann@x.org", "bob@"]},
	"hosts": {"web": "100.64.0.9", "net": "10.0.0.0/8"},
	"tagOwners": {"tag:a": ["group:g"], "tag:r": ["tag:a"]},
	"ipsets": {"ipset:s": ["add net", "remove 10.1.0.0/16"]},
	"postures": {"posture:p": ["node:os == 'linux'"]},
	"defaultSrcPosture": ["posture:p"],
	"acls": [{"action": "accept", "proto": "tcp", "src": ["*"], "dst": ["tag:a:22"], "srcPosture": ["posture:p"]}],
	"grants": [{"src": ["group:g"], "dst": ["net"], "ip": ["tcp:1"], "app": {"x.org/cap": [{"y": [{"z": 1}]}]},
		"srcPosture": ["posture:p"], "via": ["tag:r"], "auth": {"age": "1h", "mfa": true}}],
	"deny": [{"src": ["group:g"], "dst": ["tag:a"], "ip": ["*"], "srcPosture": ["posture:p"]}],
	"enforcement": [{"src": ["*"], "dst": ["tag:a"], "mode": "monitor", "until": "2027-01-31"}],
	"autoApprovers": {"routes": {"10.0.0.0/8": ["tag:r"]}, "exitNode": ["group:g"]},
	"nodeAttrs": [{"target": ["tag:a"], "attr": ["x"], "app": {"x.org/connector": [{"y": 1}]}, "ipPool": ["100.96.0.0/16"]}],
	"ssh": [{"action": "check", "src": ["group:g"], "dst": ["tag:a"], "users": ["root"], "checkPeriod": "1h", "acceptEnv": ["LANG"], "srcPosture": ["posture:p"]}],
	"sshTests": [{"src": "ann@x.org", "dst": ["tag:a"], "accept": ["root"], "deny": ["x"], "check": ["y"], "srcPostureAttrs": {"node:os": "linux"}}],
	"tests": [{"src": "ann@x.org", "proto": "tcp", "accept": ["tag:a:22"], "deny": ["web:22"], "srcPostureAttrs": {"node:os": "linux"}}],
	"session": {"maxAge": "12h"},
	"outage": {"grace": "8h", "posture": "15m"},
	"node": {"certLifetime": {"*": "1h", "tag:a": "10m"}},
	"admission": [{"tags": ["tag:a"], "groups": ["group:g"], "users": ["ann@x.org"], "attestation": "tpm", "approval": true}],
	"randomizeClientPort": true, "disableIPv4": false, "OneCGNATRoute": "", "derpMap": {"Regions": {"1": null}}
}`

// spot is a value in a file, with its key if it is in an object.
type spot struct {
	path       string
	key        string
	keyAt      int
	start, end int
}

// spots lists a value and all values within it.
func spots(v hujson.Value, path string) []spot {
	var out []spot
	switch x := v.Value.(type) {
	case *hujson.Object:
		for _, m := range x.Members {
			key := m.Name.Value.(hujson.Literal).String()
			at := joinPath(path, key)
			out = append(out, spot{at, key, m.Name.StartOffset, m.Value.StartOffset, m.Value.EndOffset})
			out = append(out, spots(m.Value, at)...)
		}
	case *hujson.Array:
		for i, e := range x.Elements {
			at := fmt.Sprintf("%s[%d]", path, i)
			out = append(out, spot{path: at, start: e.StartOffset, end: e.EndOffset})
			out = append(out, spots(e, at)...)
		}
	}
	return out
}

// Paths of values that only other programs understand, and of objects whose keys are names.
var (
	opaquePath = regexp.MustCompile(`\.app\[.*\]\[|^derpMap|^randomize|^disable|^OneCGNAT`)
	namedPath  = regexp.MustCompile(`^(groups|hosts|tagOwners|ipsets|postures|autoApprovers\.routes|node\.certLifetime)[.[]|\.app\[|\.srcPostureAttrs\[`)
)

// TestEveryPlaceIsStrict makes one mistake at a time in a policy that has every key.
func TestEveryPlaceIsStrict(t *testing.T) {
	if p, diags := parse("test", []byte(whole), fuzzTime); p == nil {
		t.Fatalf("refused:\n%s", diags.Format("test"))
	}
	root, err := hujson.Parse([]byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	// wants checks for an error at an offset of the file.
	wants := func(src, path string, offset int, message string) {
		t.Helper()
		p, diags := parse("test", []byte(src), fuzzTime)
		at := newParser("test", []byte(src), fuzzTime).pos(offset)
		for _, d := range diags {
			if p == nil && d.Severity == Error && d.Line == at.Line && d.Column == at.Column && strings.HasPrefix(d.Path, path) && strings.Contains(d.Message, message) {
				return
			}
		}
		t.Errorf("%s: want %q at %d:%d in:\n%s", path, message, at.Line, at.Column, diags.Format("test"))
	}
	for _, s := range spots(root, "") {
		if !opaquePath.MatchString(s.path) {
			if s.key != "via" { // null means none there
				wants(whole[:s.start]+`null`+whole[s.end:], s.path, s.start, "is null; want ")
			}
			wrong := s.start
			if whole[s.start] == '[' { // a list is expected, so the fault is the one inside
				wrong++
			}
			wants(whole[:s.start]+`[[7]]`+whole[s.end:], s.path, wrong, "is a list; want ")
		}
		text := whole[s.start:s.end]
		for name, undefined := range map[string]string{"tag:a": "tag:b", "tag:r": "tag:b", "group:g": "group:b", "posture:p": "posture:b", "web": "wub", "net": "nut"} {
			if other := strings.Replace(text, name, undefined, 1); text[0] == '"' && other != text {
				wants(whole[:s.start]+other+whole[s.end:], s.path, s.start, fmt.Sprintf("%q is not defined in ", undefined))
			}
		}
		if s.key == "" {
			continue
		}
		member := whole[s.keyAt:s.end]
		wants(whole[:s.keyAt]+member+", "+whole[s.keyAt:], s.path, s.keyAt+len(member)+2, "was given before")
		if opaquePath.MatchString(s.path) || namedPath.MatchString(s.path) {
			continue
		}
		slip := s.key[:1] + "x" + s.key[1:]
		wants(whole[:s.keyAt]+`"`+slip+`"`+whole[s.keyAt+len(s.key)+2:], "", s.keyAt, fmt.Sprintf("unknown key %q; did you mean %q?", slip, s.key))
	}
}
