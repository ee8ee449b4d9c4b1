package explain

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/inventory"
	"github.com/redoubt-mesh/redoubt/proto"
)

// drawPolicies draws a policy of a few rules with many overlapping names, and a variant of it.
func drawPolicies(t *rapid.T) (before, after *acl.Policy) {
	list := func(from ...string) func() string {
		return func() string {
			return `["` + strings.Join(rapid.SliceOfNDistinct(rapid.SampledFrom(from), 1, 2, rapid.ID).Draw(t, "list"), `", "`) + `"]`
		}
	}
	side := []string{"*", "ann@", "group:g", "tag:a", "tag:r", "autogroup:member", "100.64.0.1", "100.64.0.0/30", "10.0.0.0/8", "10.1.0.0/16", "net"}
	rule := func(deny bool) string {
		src, dst, more := list(side...)(), list(append(side, "autogroup:internet")...)(), ""
		if !deny {
			more = rapid.SampledFrom([]string{
				"", "", `, "srcPosture": ["posture:p"]`, `, "via": ["tag:r"]`, `, "via": ["tag:a"]`, `, "auth": {"mfa": true}`,
			}).Draw(t, "more")
			if rapid.IntRange(0, 5).Draw(t, "self") == 0 {
				src, dst = list("ann@", "group:g", "autogroup:member")(), `["autogroup:self"]`
			}
		}
		return fmt.Sprintf(`{"src": %s, "dst": %s, "ip": %s%s}`, src, dst, list("*", "tcp:1", "tcp:2-3", "udp:2", "icmp:*", "3", "gre:*")(), more)
	}
	some := func(deny bool) func() string {
		return func() string {
			if rapid.Bool().Draw(t, "no rule") {
				return ""
			}
			return rule(deny) + ","
		}
	}
	draws := []func() string{
		list("ann@", "bob@"), func() string { return rapid.SampledFrom([]string{"1", "2"}).Draw(t, "tier") }, list("tag:r", "tag:a"), list("tag:r", "tag:a"),
		some(false), some(false), some(false), some(true),
	}
	parse := func(parts []any) *acl.Policy {
		src := fmt.Sprintf(`{"tagOwners": {"tag:a": [], "tag:r": []}, "hosts": {"net": "100.64.0.4/31"}, "groups": {"group:g": %s},
			"postures": {"posture:p": ["custom:tier == '%s'"]}, "autoApprovers": {"routes": {"10.0.0.0/8": %s}, "exitNode": %s},
			"grants": [%s %s %s], "deny": [%s]}`, parts...)
		p, found := acl.Parse("policy", []byte(src))
		if p == nil {
			t.Fatalf("%v\n%s", found, src)
		}
		return p
	}
	var parts []any
	for _, draw := range draws {
		parts = append(parts, draw())
	}
	before = parse(parts)
	for range rapid.IntRange(1, 2).Draw(t, "changes") {
		i := rapid.IntRange(0, len(draws)-1).Draw(t, "what")
		parts[i] = draws[i]()
	}
	return before, parse(parts)
}

func drawMesh(t *rapid.T) *inventory.Inventory {
	var nodes []string
	for i := range rapid.IntRange(1, 8).Draw(t, "nodes") {
		who := rapid.SampledFrom([]string{
			`"user": "ann"`, `"user": "bob"`, `"tags": ["tag:a"]`, `"tags": ["tag:a", "tag:r"]`,
			`"tags": ["tag:r"], "advertised": ["10.0.0.0/8", "10.1.2.0/24", "0.0.0.0/0"], "approved": ["10.1.2.0/24"]`,
		}).Draw(t, "who")
		nodes = append(nodes, fmt.Sprintf(`{"name": "n%d", "ipv4": "100.64.0.%d", "ipv6": "fd7a:115c:a1e0::%d", %s, "facts": {"custom:tier": "%d", "node:hostname": "h%d"%s}}`,
			i, i, i, who, rapid.IntRange(1, 2).Draw(t, "fact"), i,
			rapid.SampledFrom([]string{"", `, "user:mfa": true`}).Draw(t, "mfa")))
	}
	inv, err := inventory.Parse([]byte(`{"users": [{"name": "ann"}, {"name": "bob"}], "nodes": [`+strings.Join(nodes, ", ")+`]}`), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

// TestDiffMissesNothing compares the listed changes with the verdicts about all nodes, addresses and some services.
func TestDiffMissesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inv := drawMesh(t)
		old, changed := drawPolicies(t)
		a, b := inv.Program(old), inv.Program(changed)
		before, after := a.On(inv), b.On(inv)
		found, err := Diff(a, b, inv, 1e9)
		if err != nil {
			t.Fatal(err)
		}
		var listed, differ [2]bool // lost, gained
		for _, c := range found.Changes {
			listed[index(c.Gained)] = true
		}
		places := []netip.Addr{netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.1.0.0"), netip.MustParseAddr("10.1.2.0"), netip.MustParseAddr("8.8.8.8")}
		for _, n := range inv.Nodes {
			places = append(places, n.Addrs.Slice()...)
		}
		for _, n := range inv.Nodes {
			for _, src := range n.Addrs.Slice() {
				for _, dst := range places {
					for _, s := range []proto.Service{{Proto: 6, First: 1}, {Proto: 6, First: 2}, {Proto: 6, First: 3}, {Proto: 6, First: 9}, {Proto: 17, First: 2}, {Proto: 17, First: 3}, {Proto: 17, First: 9}, {Proto: 1}, {Proto: 47}, {Proto: 99}} {
						was := before.Decide(n.ID, src, dst, s.Proto, s.First).Allowed
						is := after.Decide(n.ID, src, dst, s.Proto, s.First).Allowed
						if was == is || wrongFamily(End{Addr: src}, s.Proto) {
							continue
						}
						differ[index(is)] = true
						if !lists(found.Changes, is, n, dst, inv) {
							t.Fatalf("%s -> %s %v: was %v, is %v, and is not in %+v", n.Name, dst, s, was, is, found.Changes)
						}
					}
				}
			}
		}
		if listed != differ {
			t.Fatalf("lost, gained: %v are listed, and there are %v: %+v", listed, differ, found.Changes)
		}
	})
}

func index(gained bool) int {
	if gained {
		return 1
	}
	return 0
}

// lists reports whether one of the changes includes a source, as far as names tell, and a destination.
func lists(changes []Change, gained bool, from proto.Identity, to netip.Addr, inv *inventory.Inventory) bool {
	names := func(list []string, n proto.Identity) bool {
		for _, s := range list {
			who, nodes, some := strings.Cut(s, " (")
			if who == "autogroup:member" && person(n) || who == n.Who() && (!some || strings.Contains(nodes, n.Name) || strings.Contains(nodes, "more")) {
				return true
			}
		}
		return false
	}
	id, own := inv.ByAddr(to)
	for _, c := range changes {
		if c.Gained != gained || !names(c.Src, from) {
			continue
		}
		if !own {
			return true
		}
		if n, _ := inv.Node(id); names(c.Dst, n) {
			return true
		}
	}
	return false
}
