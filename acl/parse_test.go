package acl

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// errorTest is a file with one mistake. The | marks where it must be reported and is not part of the file.
type errorTest struct{ name, src, want string }

var errorTests = []errorTest{
	// Syntax.
	{"nothing", "|", `parsing value: unexpected EOF`},
	{"cut off", "{\"groups\": {|", `parsing value: unexpected EOF`},
	{"missing comma", "{\n  \"groups\": {}\n  |\"hosts\": {}\n}", `invalid character '"' after object value`},
	{"columns are characters", "{\"ü\": /* ä */ |x}", `invalid`},
	{"control characters", "{\"acls\": |\"\x1b[31m\"}", `invalid literal: "?[31m"`},
	{"open comment", "{} |/* never closed", `parsing comment`},
	{"two values", "{} |{}", `after top-level value`},
	{"not UTF-8", "{\"gro|\xffups\": {}}", `not UTF-8`},
	{"too deep", strings.Repeat("[", 32) + "|[", `more than 32 objects and lists`},

	// Types and keys.
	{"root is a list", "|[]", `is a list; want an object`},
	{"unknown key", `{|"firewall": []}`, `unknown key "firewall"; known are OneCGNATRoute, access, acls,`},
	{"near key", `{|"group": {}}`, `unknown key "group"; did you mean "groups"?`},
	{"near another case of a key", `{|"ACLS ": []}`, `unknown key "ACLS "`},
	{"twice in other letters", `{"acls": [], |"ACLs": []}`, `"ACLs" means the same as "acls" above`},
	{"twice by an old name", `{"acls": [{"action": "accept", "src": ["*"], |"users": ["*"], "dst": ["*:*"]}]}`, `"users" means the same as "src"`},
	{"twice", "{\"acls\": [],\n|\"acls\": []}", `"acls" was given before, on line 1`},
	{"null section", `{"groups": |null}`, `is null; want an object`},
	{"section of a wrong type", `{"acls": |{}}`, `is an object; want a list`},
	{"rule of a wrong type", `{"acls": [|"accept"]}`, `is a string; want an object`},
	{"list of a wrong type", `{"acls": [{"action": "accept", "src": |"*", "dst": ["*:*"]}]}`, `is a string; want a list`},
	{"selector of a wrong type", `{"acls": [{"action": "accept", "src": [|7], "dst": ["*:*"]}]}`, `is a number; want a selector`},
	{"missing key", `{"acls": [|{"action": "accept", "src": ["*"]}]}`, `"dst" is missing`},
	{"near key of a rule", `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], |"prot": "tcp"}]}`, `did you mean "proto"?`},

	// Parts of the language that this version does not enforce.
	{"access", `{|"access": []}`, `"access" is not enforced by this version, which therefore refuses it`},
	{"services", `{"autoApprovers": {|"services": {}}}`, `"services" is not enforced`},

	// Definitions.
	{"group without prefix", `{"groups": {|"eng": []}}`, `"eng" is not a group`},
	{"group with a user's sign", `{"groups": {|"group:a@b": []}}`, `is not a group`},
	{"nested group", `{"groups": {"group:a": [], "group:b": [|"group:a"]}}`, `groups cannot be nested`},
	{"tag in a group", `{"groups": {"group:a": [|"tag:x"]}}`, `a group contains only users`},
	{"domain in a group", `{"groups": {"group:a": [|"user:*@example.com"]}}`, `a group contains only users`},
	{"member without @", `{"groups": {"group:a": [|"ann"]}}`, `"ann" is not a user; a user is written ann@example.com, or ann@`},
	{"member with two @", `{"groups": {"group:a": [|"a@b@c"]}}`, `is not a user's name`},
	{"members of a wrong type", `{"groups": {"group:a": |"ann@example.com"}}`, `is a string; want a list of users`},
	{"host is no address", `{"hosts": {"web": |"example.com"}}`, `"example.com" is not an address`},
	{"host with a bad length", `{"hosts": {"web": |"10.0.0.0/33"}}`, `the length of 10.0.0.0 is 0 to 32, not "33"`},
	{"host named as an address", `{"hosts": {|"10.0.0.1": "10.0.0.2"}}`, `cannot be a name for another`},
	{"host with a colon", `{"hosts": {|"a:b": "10.0.0.2"}}`, `cannot name a host`},
	{"IPv4 in IPv6", `{"hosts": {"web": |"::ffff:100.64.0.1"}}`, `write it as 100.64.0.1`},
	{"zone", `{"hosts": {"web": |"fe80::1%eth0"}}`, `has a zone`},
	{"tag starts with a digit", `{"tagOwners": {|"tag:1": []}}`, `is not a tag`},
	{"undefined owner", `{"tagOwners": {"tag:a": [|"group:x"]}}`, `group "group:x" is not defined in groups`},
	{"owner is everybody", `{"tagOwners": {"tag:a": [|"*"]}}`, `"*" cannot own a tag`},
	{"cycle of tags", `{"tagOwners": {"tag:a": ["tag:b"], "tag:b": ["tag:c"], "tag:c": [|"tag:a"]}}`, `in a circle: tag:a <- tag:b <- tag:c <- tag:a`},

	// Selectors.
	{"undefined group", `{"groups": {"group:eng": []}, "acls": [{"action": "accept", "src": [|"group:enk"], "dst": ["*:*"]}]}`, `group "group:enk" is not defined in groups; did you mean "group:eng"?`},
	{"undefined tag", `{"acls": [{"action": "accept", "src": ["*"], "dst": [|"tag:db:5432"]}]}`, `tag "tag:db" is not defined in tagOwners; define it there`},
	{"undefined host", `{"acls": [{"action": "accept", "src": [|"web"], "dst": ["*:*"]}]}`, `host "web" is not defined in hosts`},
	{"forgotten prefix", `{"tagOwners": {"tag:db": []}, "acls": [{"action": "accept", "src": [|"db"], "dst": ["*:*"]}]}`, `did you mean "tag:db"?`},
	{"empty selector", `{"acls": [{"action": "accept", "src": [|""], "dst": ["*:*"]}]}`, `is empty; name someone or something`},
	{"unknown autogroup", `{"acls": [{"action": "accept", "src": [|"autogroup:members"], "dst": ["*:*"]}]}`, `there is no "autogroup:members"; did you mean "autogroup:member"?`},
	{"self as a source", `{"acls": [{"action": "accept", "src": [|"autogroup:self"], "dst": ["*:*"]}]}`, `allowed only in dst`},
	{"domain as a destination", `{"acls": [{"action": "accept", "src": ["*"], "dst": [|"user:*@example.com:22"]}]}`, `allowed only in src`},
	{"domain without a name", `{"acls": [{"action": "accept", "src": [|"user:*@"], "dst": ["*:*"]}]}`, `want user:*@ and a domain`},
	{"tag beside self", `{"tagOwners": {"tag:a": []}, "acls": [{"action": "accept", "src": ["*", |"tag:a"], "dst": ["autogroup:self:*"]}]}`, `cannot be combined with autogroup:self`},
	{"everything beside self in a grant", `{"grants": [{"src": [|"*"], "dst": ["autogroup:self"], "ip": ["*"]}]}`, `cannot be combined with autogroup:self`},
	{"address beside self", `{"grants": [{"src": [|"100.64.0.1"], "dst": ["autogroup:self"], "ip": ["*"]}]}`, `cannot be combined with autogroup:self`},
	{"everything as a CIDR", `{"grants": [{"src": ["*"], "dst": [|"0.0.0.0/0"], "ip": ["*"]}]}`, `to allow all addresses of the mesh write *`},
	{"bad CIDR", `{"grants": [{"src": [|"10.0.0/8"], "dst": ["*"], "ip": ["*"]}]}`, `is not a CIDR`},
	{"group with @", `{"grants": [{"src": [|"group:a@b"], "dst": ["*"], "ip": ["*"]}]}`, `is read as a user, but a user's name has no colon`},
	{"invisible character", "{\"grants\": [{\"src\": [|\"ann\u200b@example.com\"], \"dst\": [\"*\"], \"ip\": [\"*\"]}]}", `is not a user's name`},

	// Rules.
	{"action", `{"acls": [{"action": |"deny", "src": ["*"], "dst": ["*:*"]}]}`, `action "deny" is not supported: rules only permit`},
	{"no ports", `{"tagOwners": {"tag:db": []}, "acls": [{"action": "accept", "src": ["*"], "dst": [|"tag:db"]}]}`, `"tag:db" names no ports; write tag:db:* or tag:db:22`},
	{"no ports at all", `{"acls": [{"action": "accept", "src": ["*"], "dst": [|"*"]}]}`, `"*" names no ports; write *:*`},
	{"name of a port", `{"tagOwners": {"tag:db": []}, "acls": [{"action": "accept", "src": ["*"], "dst": [|"tag:db:ssh"]}]}`, `"ssh" is not a port`},
	{"port 0", `{"acls": [{"action": "accept", "src": ["*"], "dst": [|"*:0"]}]}`, `0 is not a port`},
	{"port too big", `{"acls": [{"action": "accept", "src": ["*"], "dst": [|"*:65536"]}]}`, `"65536" is not a port`},
	{"range backwards", `{"acls": [{"action": "accept", "src": ["*"], "dst": [|"*:90-80"]}]}`, `write 80-90`},
	{"leading zero", `{"acls": [{"action": "accept", "src": ["*"], "dst": [|"*:022"]}]}`, `"022" is not a port`},
	{"brackets around IPv4", `{"acls": [{"action": "accept", "src": ["*"], "dst": [|"[100.64.0.1]:22"]}]}`, `brackets stand around an IPv6 address`},
	{"unknown protocol", `{"acls": [{"action": "accept", "proto": |"tpc", "src": ["*"], "dst": ["*:*"]}]}`, `did you mean "tcp"?`},
	{"protocol out of range", `{"acls": [{"action": "accept", "proto": |256, "src": ["*"], "dst": ["*:*"]}]}`, `a number from 0 to 255`},
	{"protocol of a wrong type", `{"acls": [{"action": "accept", "proto": |["tcp"], "src": ["*"], "dst": ["*:*"]}]}`, `is a list; want a protocol`},
	{"ports of icmp", `{"acls": [{"action": "accept", "proto": "icmp", "src": ["*"], "dst": [|"*:22"]}]}`, `icmp has no ports; write * for the ports`},
	{"grant of nothing", `{"grants": [|{"src": ["*"], "dst": ["*"]}]}`, `"ip" is missing`},
	{"empty grant", `{"grants": [{"src": ["*"], "dst": ["*"], "ip": |[]}]}`, `is empty; specify what is granted`},
	{"protocol without ports", `{"grants": [{"src": ["*"], "dst": ["*"], "ip": [|"tcp"]}]}`, `write "tcp:*"`},
	{"port of icmp", `{"grants": [{"src": ["*"], "dst": ["*"], "ip": [|"icmp:8"]}]}`, `icmp has no ports`},
	{"ports in the destination of a grant", `{"tagOwners": {"tag:db": []}, "grants": [{"src": ["*"], "dst": [|"tag:db:22"], "ip": ["*"]}]}`, `is not a tag`},

	// Tests.
	{"test of nothing", `{"tests": [|{"src": "*"}]}`, `needs "accept" or "deny"`},
	{"test of empty lists", `{"tests": [|{"src": "*", "accept": [], "deny": []}]}`, `needs "accept" or "deny"`},
	{"test to the internet", `{"tests": [{"src": "*", "deny": [|"autogroup:internet:443"]}]}`, `autogroup:internet is allowed only in dst`},
	{"test to a host that is a range", `{"hosts": {"net": "10.0.0.0/8"}, "tests": [{"src": "*", "deny": [|"net:443"]}]}`, `is a range`},
	{"test to one address as a range", `{"tests": [{"src": "*", "deny": [|"10.0.0.1/32:443"]}]}`, `is a range`},
	{"undefined source of a test", `{"tests": [{"src": |"group:x", "accept": ["*:22"]}]}`, `group "group:x" is not defined`},
	{"sources of a test", `{"tests": [{"src": |["*"], "accept": ["*:22"]}]}`, `is a list; want a selector`},
	{"several ports of a test", `{"tests": [{"src": "*", "accept": [|"*:22,23"]}]}`, `goes to one port, not to "22,23"`},
	{"every port of a test", `{"tests": [{"src": "*", "deny": [|"*:*"]}]}`, `goes to one port, not to "*"`},
	{"range in a test", `{"tests": [{"src": "*", "accept": [|"10.0.0.0/8:22"]}]}`, `is a range; a test goes to one address`},
	{"ping in a test", `{"tests": [{"src": "*", "proto": |"icmp", "accept": ["*:1"]}]}`, `icmp has no ports, and a test is about a port`},
}

func TestErrors(t *testing.T) { runErrorTests(t, errorTests) }

func runErrorTests(t *testing.T, tests []errorTest) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			at := strings.IndexByte(test.src, '|')
			before := test.src[:at]
			src := before + test.src[at+1:]
			line := 1 + strings.Count(before, "\n")
			column := 1 + len([]rune(before[strings.LastIndexByte(before, '\n')+1:]))
			policy, diags := parse("test", []byte(src), fuzzTime)
			if policy != nil || !diags.HasErrors() {
				t.Fatal("the policy was taken")
			}
			if len(diags) != 1 {
				t.Fatalf("%d diagnostics, want one:\n%s", len(diags), diags.Format("test"))
			}
			d := diags[0]
			if d.Line != line || d.Column != column || !strings.Contains(d.Message, test.want) {
				t.Errorf("got  %s\nwant %d:%d ... %s", d, line, column, test.want)
			}
		})
	}
}

// warningTest is a file that is accepted with one warning at the |, or without any if there is no |.
type warningTest struct{ name, src, want string }

func runWarningTests(t *testing.T, tests []warningTest) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before, after, marked := strings.Cut(test.src, "|")
			policy, diags := parse("test", []byte(before+after), fuzzTime)
			switch {
			case policy == nil:
				t.Fatalf("refused:\n%s", diags.Format("test"))
			case !marked && len(diags) == 0:
			case len(diags) != 1 || diags[0].Column != 1+len([]rune(before)) || !strings.Contains(diags[0].Message, test.want) || !marked:
				t.Errorf("want %q at %d in:\n%s", test.want, 1+len([]rune(before)), diags.Format("test"))
			}
		})
	}
}

// good parses a policy that must have neither errors nor warnings.
func good(t *testing.T, src string) *Policy {
	t.Helper()
	p, diags := parse("test", []byte(src), fuzzTime)
	if p == nil || len(diags) > 0 {
		t.Fatalf("not clean:\n%s", diags.Format("test"))
	}
	return p
}

func TestEveryErrorIsReportedInOrder(t *testing.T) {
	const src = `{
  "tests": [{"src": "ann", "accept": ["*:x"]}],
  "grants": [
    {"src": ["group:eng"], "dst": ["tag:db", "web"], "ip": ["tpc:1", "99999"]},
    {"source": ["*"]},
  ],
  "groups": {"group:eng": ["ann@example.com", "group:b"], "group:b": 1},
  "access": [],
  "derpMap": {},
  "acls": [{"action": "accept", "src": ["*"], "dst": ["tag:db:ssh", "tag:db", "web"]}],
}
`
	_, diags := Check("p.hujson", []byte(src), fuzzTime)
	want := `p.hujson:2:21: error: tests[0].src: host "ann" is not defined in hosts; define it there, or write a user with its @, group:NAME or tag:NAME
p.hujson:2:39: error: tests[0].accept[0]: "x" is not a port; use a number from 1 to 65535
p.hujson:4:36: error: grants[0].dst[0]: tag "tag:db" is not defined in tagOwners; define it there or correct the name
p.hujson:4:46: error: grants[0].dst[1]: host "web" is not defined in hosts; define it there, or write a user with its @, group:NAME or tag:NAME
p.hujson:4:61: error: grants[0].ip[0]: protocol "tpc" is not known; did you mean "tcp"?
p.hujson:4:70: error: grants[0].ip[1]: "99999" is not a port; use *, a number from 1 to 65535, a range such as 80-90, or several with commas
p.hujson:5:5: error: grants[1]: "dst" is missing; add it
p.hujson:5:5: error: grants[1]: "ip" is missing; specify what is granted, such as "ip": ["tcp:443"], or ["*"] for everything
p.hujson:5:5: error: grants[1]: "src" is missing; add it
p.hujson:5:6: error: grants[1].source: unknown key "source"; known are app, auth, dst, ip, src, srcPosture, via
p.hujson:7:47: error: groups["group:eng"][1]: "group:b": groups cannot be nested; list its members here, or both groups in the rule
p.hujson:7:70: error: groups["group:b"]: is a number; want a list of users
p.hujson:8:3: error: access: "access" is not enforced by this version, which therefore refuses it rather than ignore it; remove it, or use a version that enforces it
p.hujson:9:3: warning: derpMap: "derpMap" has no effect here: relays are not taken from the policy
p.hujson:10:55: error: acls[0].dst[0]: "ssh" is not a port; use *, a number from 1 to 65535, a range such as 80-90, or several with commas
p.hujson:10:55: error: acls[0].dst[0]: tag "tag:db" is not defined in tagOwners; define it there or correct the name
p.hujson:10:69: error: acls[0].dst[1]: "tag:db" names no ports; write tag:db:* or tag:db:22
p.hujson:10:69: error: acls[0].dst[1]: tag "tag:db" is not defined in tagOwners; define it there or correct the name
p.hujson:10:79: error: acls[0].dst[2]: "web" names no ports; write web:* or web:22
p.hujson:10:79: error: acls[0].dst[2]: host "web" is not defined in hosts; define it there, or write a user with its @, group:NAME or tag:NAME
`
	if diff := cmp.Diff(want, diags.Format("p.hujson")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWarnings(t *testing.T) {
	tests := []struct{ name, src, want string }{
		{"settings of others", `{"randomizeClientPort": true, "disableIPv4": false, "OneCGNATRoute": "", "derpMap": {}}`, "1:2 1:31 1:53 1:74"},
		{"nobody named", `{"grants": [{"src": [], "dst": ["*"], "ip": ["*"]}]}`, "1:21"},
		{"host bits", `{"hosts": {"net": "10.0.0.7/8"}}`, "1:19"},
		{"the same address in other words", `{"hosts": {"net": "FD00:0::/64", "one": "10.0.0.7/32"}}`, ""},
		{"port without ping", `{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["tcp:22"]}]}`, "1:36"},
		{"port with ping", `{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["22"]}]}`, ""},
		{"only ping", `{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["icmp:*"]}]}`, ""},
		{"ping by another rule", `{"groups": {"group:a": ["ann@x.org"]}, "tagOwners": {"tag:a": []}, "grants": [
			{"src": ["ann@x.org", "tag:a"], "dst": ["tag:a", "ann@x.org"], "ip": ["tcp:22"]},
			{"src": ["group:a", "autogroup:tagged"], "dst": ["autogroup:tagged", "user:*@x.org"], "ip": ["icmp:*"]}]}`, "error"},
		{"ping by wider rules", `{"groups": {"group:a": ["ann@x.org"]}, "tagOwners": {"tag:a": []}, "grants": [
			{"src": ["ann@x.org", "group:a", "tag:a"], "dst": ["tag:a", "ann@x.org", "autogroup:tagged"], "ip": ["tcp:22"]},
			{"src": ["group:a", "autogroup:member", "tag:a"], "dst": ["autogroup:tagged", "group:a"], "ip": ["icmp:*"]}]}`, ""},
		{"ping by a narrower rule", `{"groups": {"group:a": ["ann@x.org"]}, "grants": [
			{"src": ["group:a"], "dst": ["*"], "ip": ["tcp:22"]},
			{"src": ["ann@x.org"], "dst": ["*"], "ip": ["icmp:*"]}]}`, "2:33"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			policy, diags := Check("test", []byte(test.src), fuzzTime)
			if test.want == "error" {
				if !diags.HasErrors() {
					t.Fatal("the policy was taken")
				}
				return
			}
			var got []string
			for _, d := range diags {
				got = append(got, fmt.Sprintf("%d:%d", d.Line, d.Column))
			}
			if policy == nil || strings.Join(got, " ") != test.want {
				t.Errorf("warnings at %v, want %q:\n%s", got, test.want, diags.Format("test"))
			}
		})
	}
}

func TestBounds(t *testing.T) {
	big := func(n int) []byte { return []byte("{\"acls\": [] /*" + strings.Repeat("x", n-17) + "*/}") }
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	odd := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, 2*i+1)
		}
		return b.String()
	}
	tests := []struct {
		name, want string
		src        []byte
	}{
		{"largest file", "", big(MaxSize)},
		{"file too large", "1:1: error: the file has 1048577 bytes", big(MaxSize + 1)},
		{"many errors", "more; correct the ones above", []byte("{" + many(5000, `"k%d": 1,`) + "}")},
		{"many rules", "more than 10000 rules", []byte(`{"grants": [` + strings.Repeat(`{"src":["*"],"dst":["*"],"ip":["*"]},`, 10001) + `]}`)},
		{"many tests", "more than 1000 tests", []byte(`{"tests": [` + strings.Repeat(`{"src":"*","deny":["*:1"]},`, 1001) + `]}`)},
		{"many users in a rule", "put users into a group", []byte(`{"grants": [{"src": [` + many(257, `"u%d@x",`) + `], "dst": ["*"], "ip": ["*"]}]}`)},
		{"many addresses in a rule", "use ranges, or split the rule", []byte(`{"grants": [{"dst": [` + strings.Repeat(`"10.0.0.1",`, 8200) + `], "src": ["*"], "ip": ["*"]}]}`)},
		{"many destinations with their own ports", "1:11: error: acls[0]: with the rules before it there are more than 25000 destinations with their own ports", []byte(`{"acls": [{"action":"accept","src":["*"],"dst":[` + strings.TrimPrefix(many(25002, `"*:%d",`), `"*:0",`) + `]}]}`)},
		{"many ports in a grant", "names 5000 ports and ranges of ports, and a rule has at most 4096", []byte(`{"grants": [{"src": ["*"], "dst": ["*"], "ip": [` + odd(5000, `"tcp:%d",`) + `]}]}`)},
		{"many ports of a destination", "names 5000 ports and ranges of ports, and a rule has at most 4096", []byte(`{"acls": [{"action":"accept","proto":"tcp","src": ["*"], "dst": ["*:` + strings.TrimSuffix(odd(5000, "%d,"), ",") + `"]}]}`)},
		{"many sources of many destinations", "too large to send to a node", []byte(`{"acls": [{"action":"accept","src":[` + strings.Repeat(`"10.0.0.1",`, 4000) + `],"dst":[` + strings.TrimPrefix(many(201, `"*:%d",`), `"*:0",`) + `]}]}`)},
		{"long names", "is not a user's name", []byte(`{"groups": {"group:a": ["` + strings.Repeat("x", 300) + `@example.com"]}}`)},
		{"byte order mark", "", []byte("\xef\xbb\xbf{}")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			policy, diags := Parse("test", test.src)
			text := diags.Format("test")
			if test.want == "" && (policy == nil || len(diags) > 0) || !strings.Contains(text, test.want) || (policy == nil) != diags.HasErrors() {
				t.Errorf("got %q, want %q", text[:min(len(text), 2000)], test.want)
			}
			if len(diags) > maxDiagnostics+1 {
				t.Errorf("%d diagnostics", len(diags))
			}
		})
	}
}

func TestHopelessNestingDoesNotRecurse(t *testing.T) {
	for _, src := range []string{strings.Repeat("[", MaxSize), strings.Repeat(`{"a":`, MaxSize/5), `"` + strings.Repeat("[", 100) + `"`} {
		if policy, diags := Parse("test", []byte(src)); policy != nil || len(diags) != 1 {
			t.Errorf("%.20s...: %v", src, diags)
		}
	}
}
