package compile_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// TestBounds compiles a very wide policy and checks that the netmaps stay within what agents accept.
func TestBounds(t *testing.T) {
	var hosts, names, groups, sources strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&hosts, "\"h%d\": \"10.%d.%d.%d\",", i, i>>12, i>>4&255, i&15*2)
		if i < 4000 {
			fmt.Fprintf(&names, "\"h%d\",", i)
		}
	}
	for g := range 1000 {
		fmt.Fprintf(&groups, "\"group:g%d\": [],", g)
		if g < 100 {
			fmt.Fprintf(&sources, "\"group:g%d\",", g)
		}
	}
	src := fmt.Sprintf(`{"hosts": {%s}, "groups": {%s}, "tagOwners": {"tag:r": []},
		"grants": [{"src": ["*"], "dst": [%s], "ip": ["*"]}, {"src": [%s], "dst": ["10.0.0.0/8", "autogroup:internet"], "ip": ["tcp:443"]}],
		"acls": [{"action": "accept", "src": ["autogroup:danger-all"], "dst": ["[::]/0:22", "0.0.0.0/0:22"]}]}`,
		hosts.String(), groups.String(), names.String(), sources.String())
	inv := inventory("tag:r", "u1@e.org", "u2@e.org")
	traits := compile.Traits{}
	for _, p := range []string{"::/0", "0.0.0.0/0"} {
		traits.Advertised = append(traits.Advertised, netip.MustParsePrefix(p))
	}
	for i := range 200 {
		traits.Advertised = append(traits.Advertised, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16))
	}
	traits.Approved = traits.Advertised
	inv.SetTraits(1, traits)
	policy := mustParse(t, []byte(src)) // with members it would exceed the maximum size of a file
	for g := range 1000 {
		name := fmt.Sprintf("group:g%d", g)
		group := policy.Groups[name]
		for u := range 1000 {
			login := fmt.Sprintf("u%d@e.org", (g*7+u)%5000)
			group.Members = append(group.Members, acl.Selector{Kind: acl.User, Text: login, Name: login})
		}
		policy.Groups[name] = group
	}
	b := compile.New(policy, testMesh).On(inv)
	for id := range inv.All() {
		v := b.For(id)
		nm := proto.Netmap{Version: proto.Version{Epoch: 1, N: 1}, Mesh: testMesh, Self: id, Sets: v.Sets, Rules: v.Rules, Withheld: v.Withheld}
		for _, p := range v.Peers {
			nm.Peers = append(nm.Peers, &proto.Peer{ID: p, Certificate: []byte("certificate"), Routes: v.Routes[p]})
		}
		if err := nm.Validate(); err != nil {
			t.Errorf("the view of %v makes no netmap: %v", id, err)
		}
	}
	if v := b.Decide(1, node(2, "").Addrs.V4, netip.MustParseAddr("8.8.8.8"), 6, 443); !v.Allowed {
		t.Error("nobody reaches the internet")
	}
}
