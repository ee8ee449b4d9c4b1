package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestIPSets(t *testing.T) {
	const sets = `{"hosts": {"web": "10.0.0.80", "lab": "10.9.0.0/16"}, "ipsets": {
		"ipset:used-before-it-is-there": ["add ipset:prod"],
		"ipset:prod": ["add 10.0.0.0/8", "remove 10.0.0.0/9", "add web"],
		"ipset:order": ["remove 10.0.0.1", "10.0.0.1", "add 10.0.0.0/31", " remove  10.0.0.0 "],
		"ipset:range": ["add 10.0.0.1-10.0.0.6", "remove 10.0.0.4", "fd00::/64", "fd00:0:0:1::/64"],
		"ipset:hosts": ["host:web", "add lab", "remove 10.9.128.0/17"],
		"ipset:other": ["add 10.0.0.0/30", "remove ipset:one"],
		"ipset:one": ["10.0.0.3"],
		"ipset:all": ["0.0.0.0/0", "::/0", "remove 0.0.0.0/1", "remove 8000::/1"],
		"ipset:joined": ["10.0.0.0/25", "10.0.1.0/24", "10.0.0.128/25"],
		"ipset:internet": ["add autogroup:internet", "remove 0.0.0.0/1", "remove 128.0.0.0/2", "remove 2000::/3"],
	}, "grants": [{"src": ["ipset:prod"], "dst": ["ipset:range"], "ip": ["*"]}]}`
	p := good(t, sets)
	for name, want := range map[string]string{
		"ipset:used-before-it-is-there": "10.0.0.80/32 10.128.0.0/9",
		"ipset:prod":                    "10.0.0.80/32 10.128.0.0/9",
		"ipset:order":                   "10.0.0.1/32",
		"ipset:range":                   "10.0.0.1/32 10.0.0.2/31 10.0.0.5/32 10.0.0.6/32 fd00::/63",
		"ipset:hosts":                   "10.0.0.80/32 10.9.0.0/17",
		"ipset:other":                   "10.0.0.0/31 10.0.0.2/32",
		"ipset:all":                     "128.0.0.0/1 ::/1",
		"ipset:joined":                  "10.0.0.0/23",
		"ipset:internet":                "192.0.0.0/9 192.128.0.0/11 192.160.0.0/13 192.169.0.0/16 192.170.0.0/15 192.172.0.0/14 192.176.0.0/12 192.192.0.0/10 193.0.0.0/8 194.0.0.0/7 196.0.0.0/6 200.0.0.0/5 208.0.0.0/4",
	} {
		if got := strings.Trim(fmt.Sprint(p.IPSets[name].Prefixes), "[]"); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	r := p.Rules[0]
	if s := r.Src[0]; s.Kind != AddressSet || len(s.Prefixes) != 2 || s.Set() != "" || len(r.Dst[0].Prefixes) != 5 {
		t.Errorf("the rule is about %+v", r)
	}
}

func TestIPSetErrors(t *testing.T) {
	set := func(lines string) string { return `{"ipsets": {"ipset:a": [` + lines + `]}}` }
	runErrorTests(t, []errorTest{
		{"name", `{"ipsets": {|"prod": ["10.0.0.0/8"]}}`, `"prod" is not a set of addresses`},
		{"verb", set(`|"del 10.0.0.0/8"`), `does not begin with add or remove`},
		{"no address", set(`|"add"`), `host "add" is not defined`},
		{"bad CIDR", set(`|"add 10.0.0.0/33"`), `is not a CIDR`},
		{"undefined set", `{"ipsets": {"ipset:prod": ["10.0.0.1"], "ipset:a": [|"add ipset:prot"]}}`, `did you mean "ipset:prod"?`},
		{"undefined host", set(`|"add host:web"`), `host "web" is not defined`},
		{"tag", set(`|"add tag:db"`), `name it in the rule next to the set`},
		{"user", set(`|"add ann@example.com"`), `name it in the rule next to the set`},
		{"other autogroup", set(`|"add autogroup:member"`), `autogroup:internet;`},
		{"range of two families", set(`|"10.0.0.1-fd00::1"`), `two addresses of one family`},
		{"range backwards", set(`|"10.0.0.9-10.0.0.1"`), `write 10.0.0.1-10.0.0.9`},
		{"range to nowhere", set(`|"10.0.0.9-"`), `is not a range`},
		{"uses itself", set(`|"add ipset:a"`), `in a circle: ipset:a <- ipset:a`},
		{"circle", `{"ipsets": {"ipset:a": ["ipset:b"], "ipset:b": ["ipset:c"], "ipset:c": [|"remove ipset:a"]}}`, `in a circle: ipset:a <- ipset:b <- ipset:c <- ipset:a`},
		{"wrong type", `{"ipsets": {"ipset:a": |"10.0.0.0/8"}}`, `is a string; want a list`},
		{"undefined in a rule", `{"grants": [{"src": [|"ipset:x"], "dst": ["*"], "ip": ["*"]}]}`, `set of addresses "ipset:x" is not defined in ipsets`},
		{"in the destination of a test", `{"ipsets": {"ipset:a": ["10.0.0.1"]}, "tests": [{"src": "*", "deny": [|"ipset:a:22"]}]}`, `is a range; a test goes to one address`},
	})
}

func TestIPSetWarnings(t *testing.T) {
	runWarningTests(t, []warningTest{
		{"nothing left", `{"ipsets": {|"ipset:a": ["10.0.0.1", "remove 10.0.0.0/8"]}}`, "has no addresses"},
		{"host bits", `{"ipsets": {"ipset:a": [|"10.0.0.1/8"]}}`, "covers all of 10.0.0.0/8"},
	})
}

// TestIPSetsThatAreMade checks files crafted to take long, or to need too much room in a netmap.
func TestIPSetsThatAreMade(t *testing.T) {
	var scattered, chain, alternating strings.Builder
	for i := range 8000 {
		fmt.Fprintf(&scattered, `"10.%d.%d.1",`, i>>8, i&255)
	}
	for i := range 100 {
		fmt.Fprintf(&chain, `"ipset:s%d": ["ipset:s%d"],`, i, i+1)
	}
	for i := range 20_000 {
		fmt.Fprintf(&alternating, `"10.%d.%d.1", "remove 10.0.0.2",`, i>>8, i&255)
	}
	for name, test := range map[string]struct{ sets, want string }{
		"too many prefixes": {`"ipset:a": [` + scattered.String() + `]`, "expands to 8000 prefixes, and a rule has at most 4032"},
		"too deep":          {chain.String() + `"ipset:s100": ["10.0.0.1"]`, "nested more than 64 deep"},
		"too much work":     {`"ipset:a": [` + alternating.String() + `]`, "expand to too many ranges"},
	} {
		if p, diags := Parse("test", []byte(`{"ipsets": {`+test.sets+`}}`)); p != nil || len(diags) != 1 || !strings.Contains(diags[0].Message, test.want) {
			t.Errorf("%s: want %q in:\n%s", name, test.want, diags.Format("test"))
		}
	}
}

// TestRangesAgainstBits compares the arithmetic of ranges with that of single addresses.
func TestRangesAgainstBits(t *testing.T) {
	base := netip.MustParseAddr("255.255.255.0").As4()
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{base[0], base[1], base[2], byte(i)}) }
	rapid.Check(t, func(t *rapid.T) {
		var have ranges
		var want [256]bool
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			first := rapid.IntRange(0, 255).Draw(t, "first")
			last := rapid.IntRange(first, 255).Draw(t, "last")
			add := rapid.Bool().Draw(t, "add")
			if r := (ranges{{addr(first), addr(last)}}); add {
				have = have.add(r)
			} else {
				have = have.remove(r)
			}
			for i := first; i <= last; i++ {
				want[i] = add
			}
		}
		prefixes := have.prefixes()
		if !sortedApart(prefixes) {
			t.Fatalf("%v become %v", have, prefixes)
		}
		for i := range want {
			if got := slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr(i)) }); got != want[i] {
				t.Fatalf("%s is in %v: %t, want %t", addr(i), prefixes, got, want[i])
			}
		}
	})
}
