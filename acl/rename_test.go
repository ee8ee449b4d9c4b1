package acl

import (
	"fmt"
	"strings"
	"testing"
)

// TestRenamed names a user in every place where a policy can.
func TestRenamed(t *testing.T) {
	src := []byte(`{
		"groups": {"group:g": ["ann@"]}, "tagOwners": {"tag:a": ["ann@"]}, "postures": {"posture:p": ["node:os == 'linux'"]},
		"acls": [{"action": "accept", "src": ["ann@"], "dst": ["ann@:22"]}],
		"grants": [{"src": ["ann@"], "dst": ["ann@"], "ip": ["*"]}], "deny": [{"src": ["ann@"], "dst": ["ann@"], "ip": ["*"]}],
		"enforcement": [{"src": ["ann@"], "dst": ["ann@"], "mode": "monitor", "until": "2027-01-31"}],
		"autoApprovers": {"routes": {"10.0.0.0/8": ["ann@"]}, "exitNode": ["ann@"]},
		"nodeAttrs": [{"target": ["ann@"], "attr": ["x"]}],
		"ssh": [{"action": "accept", "src": ["ann@"], "dst": ["ann@"], "users": ["root"]}],
		"admission": [{"users": ["ann@"], "approval": true}],
		"tests": [{"src": "ann@", "accept": ["ann@:22"], "deny": ["ann@:23"]}],
		"sshTests": [{"src": "ann@", "dst": ["ann@"], "accept": ["root"]}]}`)
	before, found := Parse("test", src)
	if before == nil {
		t.Fatal(found.Format("test"))
	}
	was := fmt.Sprintf("%+v", before)
	after := before.Renamed(func(name string) string { return strings.ToUpper(name) + "@example.com" })
	if is := fmt.Sprintf("%+v", before); is != was {
		t.Errorf("the policy itself has changed: %s", is)
	}
	text := fmt.Sprintf("%+v", after)
	if want := strings.Count(was, "Name:ann "); strings.Contains(text, "Name:ann ") || strings.Count(text, "Name:ANN@example.com ") != want || want != 21 {
		t.Errorf("%d places, and afterwards: %s", want, text)
	}
	if strings.Count(text, "Text:ann@ ") != strings.Count(was, "Text:ann@ ") {
		t.Errorf("what was written has changed: %s", text)
	}
}
