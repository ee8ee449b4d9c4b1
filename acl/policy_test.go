package acl

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/proto"
)

const everything = `// One of each.
{
  "groups":    {"group:eng": ["ann@example.com", "bob@"]},
  "hosts":     {"web": "100.64.0.7", "lab": "10.0.0.0/8"},
  "tagOwners": {"tag:db": ["group:eng", "tag:db", "autogroup:member"], "tag:ci": ["tag:db"]},
  "acls": [
    {"action": "accept", "src": ["*", "user:*@example.com", "bob@"], "dst": ["tag:db:5432", "web:80,443,81-90", "[fd00::1]:22", "[fd00::]/64:*", "fd00::2:22"]},
    {"action": "accept", "proto": 47, "src": ["lab"], "dst": ["autogroup:tagged:*"]},
  ],
  "grants": [
    {"src": ["group:eng", "autogroup:member"], "dst": ["autogroup:self"], "ip": ["tcp:443", "80-90", "ipv6-icmp:*", "udp:91"]},
  ],
  "tests": [{"src": "bob@", "accept": ["tag:db:5432"], "deny": ["[fd00::1]:23"], "proto": "tcp"}, {"src": "lab", "deny": ["web:1"]}],
}
`

func TestParse(t *testing.T) {
	p, diags := Parse("everything", []byte(everything))
	if p == nil || len(diags) != 0 {
		t.Fatal(diags.Format("everything"))
	}
	type line struct {
		Path, Text, Name, Set string
		Kind                  Kind
		Line, Column          int
	}
	show := func(s Selector) line { return line{s.Path, s.Text, s.Name, s.Set(), s.Kind, s.Line, s.Column} }
	var got []line
	for _, r := range p.Rules {
		for _, s := range r.Src {
			got = append(got, show(s))
		}
		for _, d := range r.Dst {
			got = append(got, show(d.Selector))
		}
	}
	for _, o := range p.TagOwners["tag:db"].Owners {
		got = append(got, show(o))
	}
	for _, x := range p.Tests {
		got = append(got, show(x.Src))
		for _, d := range append(x.Accept, x.Deny...) {
			got = append(got, show(d.Selector))
		}
	}
	want := []line{
		{"acls[0].src[0]", "*", "*", "", Any, 7, 34},
		{"acls[0].src[1]", "user:*@example.com", "example.com", "user:*@example.com", Domain, 7, 39},
		{"acls[0].src[2]", "bob@", "bob", "user:bob@", User, 7, 61},
		{"acls[0].dst[0]", "tag:db", "tag:db", "tag:db", Tag, 7, 78},
		{"acls[0].dst[1]", "web", "web", "", Literal, 7, 93},
		{"acls[0].dst[2]", "fd00::1", "fd00::1", "", Literal, 7, 113},
		{"acls[0].dst[3]", "fd00::/64", "fd00::/64", "", Literal, 7, 129},
		{"acls[0].dst[4]", "fd00::2", "fd00::2", "", Literal, 7, 146},
		{"acls[1].src[0]", "lab", "lab", "", Literal, 8, 47},
		{"acls[1].dst[0]", "autogroup:tagged", "autogroup:tagged", "autogroup:tagged", Tagged, 8, 63},
		{"grants[0].src[0]", "group:eng", "group:eng", "group:eng", GroupOf, 11, 14},
		{"grants[0].src[1]", "autogroup:member", "autogroup:member", "autogroup:member", Member, 11, 27},
		{"grants[0].dst[0]", "autogroup:self", "autogroup:self", "", Self, 11, 56},
		{`tagOwners["tag:db"][0]`, "group:eng", "group:eng", "group:eng", GroupOf, 5, 28},
		{`tagOwners["tag:db"][1]`, "tag:db", "tag:db", "tag:db", Tag, 5, 41},
		{`tagOwners["tag:db"][2]`, "autogroup:member", "autogroup:member", "autogroup:member", Member, 5, 51},
		{"tests[0].src", "bob@", "bob", "user:bob@", User, 13, 21},
		{"tests[0].accept[0]", "tag:db", "tag:db", "tag:db", Tag, 13, 40},
		{"tests[0].deny[0]", "fd00::1", "fd00::1", "", Literal, 13, 65},
		{"tests[1].src", "lab", "lab", "", Literal, 13, 107},
		{"tests[1].deny[0]", "web", "web", "", Literal, 13, 123},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("selectors (-want +got):\n%s", diff)
	}
	if got := p.Rules[0].Dst[3].Prefix; got != netip.MustParsePrefix("fd00::/64") {
		t.Errorf("prefix in brackets: %s", got)
	}
	wantTests := []struct {
		protocols []uint8
		ports     []uint16
	}{{[]uint8{6}, []uint16{5432, 23}}, {[]uint8{6, 17}, []uint16{1}}}
	for i, w := range wantTests {
		x := p.Tests[i]
		var ports []uint16
		for _, d := range append(slices.Clone(x.Accept), x.Deny...) {
			ports = append(ports, d.Port)
		}
		if !slices.Equal(x.Protocols, w.protocols) || !slices.Equal(ports, w.ports) {
			t.Errorf("tests[%d]: %v %v", i, x.Protocols, ports)
		}
	}
}

func TestServices(t *testing.T) {
	p, _ := Parse("everything", []byte(everything))
	const all = 65535
	type service struct {
		protocol    uint8
		first, last uint16
	}
	services := func(list ...service) (out []proto.Service) {
		for _, s := range list {
			out = append(out, proto.Service{Proto: s.protocol, First: s.first, Last: s.last})
		}
		return out
	}
	tests := []struct {
		name string
		got  []proto.Service
		want []proto.Service
	}{
		{"a port and no protocol", p.Rules[0].Dst[0].Services, services(service{1, 0, all}, service{6, 5432, 5432}, service{17, 5432, 5432}, service{58, 0, all})},
		{"ports that touch", p.Rules[0].Dst[1].Services, services(service{1, 0, all}, service{6, 80, 90}, service{6, 443, 443}, service{17, 80, 90}, service{17, 443, 443}, service{58, 0, all})},
		{"no protocol, every port", p.Rules[0].Dst[3].Services, services(service{1, 0, all}, service{6, 0, all}, service{17, 0, all}, service{58, 0, all})},
		{"a protocol without ports", p.Rules[1].Dst[0].Services, services(service{47, 0, all})},
		{"a grant", p.Rules[2].Dst[0].Services, services(service{1, 0, all}, service{6, 80, 90}, service{6, 443, 443}, service{17, 80, 91}, service{58, 0, all})},
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.want, test.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestProtocols(t *testing.T) {
	for name, want := range map[string]uint8{"tcp": 6, "icmpv6": 58, "ipv6-icmp": 58, "0": 0, "255": 255, "sctp": 132, "ip-in-ip": 4, "TCP": 6} {
		if got, err := ParseProtocol(name); err != nil || got != want {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "256", "-1", "06", "TCPP", "*", "6 "} {
		if _, err := ParseProtocol(bad); err == nil {
			t.Errorf("%q is taken for a protocol", bad)
		}
	}
	for n, want := range map[uint8]string{6: "tcp", 58: "icmpv6", 4: "ipv4", 99: "99"} {
		if got := ProtocolName(n); got != want {
			t.Errorf("%d is called %s", n, got)
		}
	}
}

// TestLanguageOfOthers checks policies as people bring them from other systems, as far as this version supports them.
func TestLanguageOfOthers(t *testing.T) {
	for name, src := range map[string]string{
		"nothing":              `{}`,
		"empty sections":       `{"acls": [], "grants": [], "groups": {}, "hosts": {}, "tagOwners": {}, "tests": []}`,
		"everything":           `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`,
		"protocol as a text":   `{"acls": [{"action": "accept", "proto": "1", "src": ["*"], "dst": ["*:*"]}]}`,
		"protocol left empty":  `{"acls": [{"action": "accept", "proto": "", "src": ["*"], "dst": ["*:*"]}]}`,
		"own nodes":            `{"acls": [{"action": "accept", "src": ["*"], "dst": ["autogroup:self:*"]}]}`,
		"tag owns itself":      `{"tagOwners": {"tag:a": ["tag:a"]}}`,
		"group without people": `{"groups": {"group:empty": []}, "grants": [{"src": ["group:empty"], "dst": ["*"], "ip": ["22"]}]}`,
		"escapes":              `{"grants": [{"src": ["\u002a"], "dst": ["*"], "ip": ["\u0032\u0032"]}]}`,
	} {
		if p, diags := Parse(name, []byte(src)); p == nil || len(diags) > 0 {
			t.Errorf("%s:\n%s", name, diags.Format(name))
		}
	}
}

func TestOneEdit(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"acls", "acl", true},
		{"acl", "acls", true},
		{"acls", "aclz", true},
		{"acls", "alcs", true},
		{"acls", "acls", true},
		{"acls", "ac", false},
		{"acls", "lacz", false},
		{"ab", "ba", true},
		{"", "a", true},
		{"", "ab", false},
		{"abcd", "badc", false},
	} {
		if got := oneEdit(test.a, test.b); got != test.want {
			t.Errorf("%q, %q: %v", test.a, test.b, got)
		}
	}
}

func TestDomainOf(t *testing.T) {
	for login, want := range map[string]string{"ann@example.com": "example.com", "ann": "", "": ""} {
		if got := DomainOf(login); got != want {
			t.Errorf("%q: %q", login, got)
		}
	}
}
